"""system.files: atomic writes, content digests, CSV and figures."""

import contextlib
import csv
import hashlib
import os
import re
import sys

import pytest
import torch
from conftest import full_disk, not_root
from matplotlib.figure import Figure
from PIL import Image

from networks import checkpoint_files
from system import files
from system.messages import UserError

# ---------------------------------------------------------------- atomic writes


def test_the_old_file_is_complete_until_the_new_one_is(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(file):
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"

    files.write_atomically(path, write)
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_stays_one_and_its_target_is_replaced(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    files.write_atomically(tmp_path / "link", lambda file: file.write(b"new"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: checkpoint_files.save_torch({"value": torch.zeros(1_000_000)}, path),
        lambda path: files.write_atomically(path, lambda file: file.write(bytes(1_000_000))),
    ],
    ids=["torch", "bytes"],
)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, write):
    path = tmp_path / "file.pth"
    checkpoint_files.save_torch({"value": torch.arange(3)}, path)
    before = path.read_bytes()
    with full_disk(), pytest.raises(UserError) as error:
        write(path)
    assert re.match(f"{re.escape(str(path))}: cannot write it: [A-Z][a-z ]+$", str(error.value))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["file.pth"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_a_write_that_stops_leaves_the_old_file_and_nothing_else(tmp_path, stop):
    path = tmp_path / "file"
    path.write_text("old")

    def write(file):
        file.write(b"new")
        raise stop

    with pytest.raises(stop):
        files.write_atomically(path, write)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("case", ["folder", "below a file", "locked", "the root", "too long"])
def test_a_path_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path, locked_folder, case):
    (tmp_path / "file").write_text("old")
    path = {
        "folder": tmp_path,
        "below a file": tmp_path / "file" / "new",
        "locked": locked_folder / "new",
        "the root": type(tmp_path)("/"),
        "too long": tmp_path / ("x" * 5000),
    }[case]
    before = sorted(os.listdir(tmp_path)), sorted(os.listdir(tmp_path.parent))
    reason = f"^{re.escape(str(path))}: cannot write it: [A-Z]"
    rights = not_root() if case == "locked" else contextlib.nullcontext()
    with pytest.raises(UserError, match=reason), rights:
        files.write_atomically(path, lambda file: file.write(b"new"))
    assert before == (sorted(os.listdir(tmp_path)), sorted(os.listdir(tmp_path.parent)))
    assert (tmp_path / "file").read_text() == "old"


# ---------------------------------------------------------------- regular files and digests


def test_the_status_of_a_regular_file_is_returned(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert files.check_regular_file(tmp_path / "link").st_size == 5


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "cannot read it: No such file or directory"),
        (lambda path: path.symlink_to(path), "cannot read it: Too many levels of symbolic links"),
        (lambda path: path.touch(), "empty"),
        (lambda path: path.mkdir(), "is a folder, not a file"),
        (os.mkfifo, "not a file, but a pipe or a device"),
        (lambda path: path.symlink_to("/dev/zero"), "not a file, but a pipe or a device"),
    ],
    ids=["missing", "circular link", "empty", "folder", "pipe", "device"],
)
def test_what_is_not_a_regular_file_is_a_users_error(tmp_path, make, reason):
    path = tmp_path / "file"
    make(path)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: {reason}$"):
        files.check_regular_file(path)


@pytest.mark.parametrize("content", [b"abc", bytes(2**21) + b"\n"])
def test_the_digest_of_a_file_is_its_sha256(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert files.sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------- CSV and figures


def test_a_csv_file_is_read_back_as_it_was_written(tmp_path):
    rows = [("path", "value"), ('a, "b".jpg', "1.5"), ("two\nlines", ""), ("gänseblümchen", "ü")]
    files.write_csv(tmp_path / "table.csv", rows)
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        assert [tuple(row) for row in csv.reader(file)] == rows


@pytest.mark.skipif(sys.platform == "win32", reason="its file names are text")
def test_bytes_of_file_names_that_are_not_text_are_escaped(tmp_path):
    files.write_csv(tmp_path / "table.csv", [(os.fsdecode(b"a\xff.jpg"),)])
    assert (tmp_path / "table.csv").read_bytes() == b"a\\udcff.jpg\r\n"


@pytest.mark.parametrize(("name", "kind"), [("figure.png", "PNG"), ("figure.jpg", "JPEG")])
def test_the_ending_of_a_figures_name_is_its_format(tmp_path, name, kind):
    files.save_figure(Figure((2, 1), dpi=100), tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert (image.format, image.size) == (kind, (200, 100))


def test_a_figure_of_an_unknown_format_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="a.what: cannot write it: [A-Z]"):
        files.save_figure(Figure(), tmp_path / "a.what")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_preserves_a_figure(tmp_path):
    (tmp_path / "a.png").write_text("old")
    with full_disk(1000), pytest.raises(UserError, match="a.png: cannot write it: File too"):
        files.save_figure(Figure((20, 20), dpi=100), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "old"


def test_a_font_that_lacks_letters_is_warned_of_in_one_line(tmp_path, capfd):
    figure = Figure((2, 1))
    figure.text(0, 0, "\U0001f33b ひまわり")
    files.save_figure(figure, tmp_path / "a.png")
    out, err = capfd.readouterr()
    [line] = err.splitlines()
    assert line.startswith(f"warning: {tmp_path}/a.png: the font lacks some letters") and out == ""

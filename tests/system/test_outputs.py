"""system.outputs: no command writes what it reads, another kind of file, or beside another."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import draw, held_by_another_process, not_root

from system import files, outputs
from system.messages import UserError


def check(path, kind="checkpoint", inputs=()) -> None:
    outputs.check_outputs([outputs.Output("--flag", path, kind)], inputs)


# ---------------------------------------------------------------- output paths


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("folder.v2", "folder.v2/default.pth"),
        ("new", "new/default.pth"),
        ("new.v2/", "new.v2/default.pth"),
        ("new/deep/model.pt", "new/deep/model.pt"),
    ],
)
def test_an_output_path_is_a_file_or_a_folder(tmp_path, text, file):
    (tmp_path / "folder.v2").mkdir()
    path = outputs.output_path(f"{tmp_path}/{text}", "default.pth")
    assert path == tmp_path / file
    check(path)
    assert path.parent.is_dir() and not list(tmp_path.rglob("*.*th"))


UNWRITABLE = {
    "below a file": "file/new/a.pth",
    "taken by a folder": "taken",
    "many folders": "/".join(["x"] * 2048) + "/a.pth",
    "long name": "x" * 246 + ".pth",  # until it is complete, its name is longer
    "NUL": "a\0b.pth",
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_a_path_that_cannot_be_written_is_a_users_error(tmp_path, case):
    (tmp_path / "file").touch()
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="^--flag .*: cannot write there: .") as error:
        check(f"{tmp_path}/{UNWRITABLE[case]}")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("name", ["model.pth", "new/model.pth"])
def test_a_folder_that_may_not_be_written_is_a_users_error(locked_folder, name):
    locked_folder.chmod(0o555)
    with pytest.raises(UserError, match="^--flag .*locked.*Permission denied"), not_root():
        check(locked_folder / name)


# ---------------------------------------------------------------- inputs and other kinds


def link(path: Path) -> Path:
    other = path.with_name(f"link to {path.name}")
    other.symlink_to(path)
    return other


def hard_link(path: Path) -> Path:
    other = path.with_name(f"second {path.name}")
    os.link(path, other)
    return other


ALIASES = {
    "itself": lambda path: path,
    "relative": lambda path: Path(os.path.relpath(path)),
    "dots": lambda path: path.parent / "x" / ".." / path.name,
    "link": link,
    "hard link": hard_link,
}


@pytest.mark.parametrize("alias", ALIASES)
def test_an_input_is_not_replaced(tmp_path, alias):
    (tmp_path / "x").mkdir()
    path = tmp_path / "image.png"
    draw(0, 1).save(path)
    other = ALIASES[alias](path)
    with pytest.raises(UserError, match="this command reads that file; name another one"):
        check(other, "figure", [None, tmp_path / "missing", path])
    check(other, "figure", [None, tmp_path / "missing"])


def archive_of(name: str) -> bytes:
    """Return a ZIP archive with an empty file of this name."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, "")
    return content.getvalue()


CONTENTS = {
    "checkpoint": archive_of("model/data.pkl"),
    "figure": b"\x89PNG\r\n",
    "ONNX model": b"\x08\x08\x12\x07pytorch ... preprocessing_version",
    "table of findings": b"finding,split",
    "table of a training": b"epoch,loss",
    "unfinished output": b'{"path": ',
    "lock": b"process 1 on",
    "page": b"<!doctype html>\n<!-- Image Classifier: report -->",
    "metrics": b'{\n  "checkpoint": "model.pth"',
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_file_is_replaced_by_one_of_its_kind_only(tmp_path, kind):
    path = tmp_path / "file.png"
    others = (
        archive_of("word/document.xml"),
        b"PK\3\4",
        b"\x08\x08\x12\x07pytorch",
        b"text",
        b"<!doctype html>\n",
        b"[{",
    )
    for content in (*CONTENTS.values(), *others, b"\xff\xd8\xff\xe0"):
        path.write_bytes(content)
        is_kind = content == CONTENTS[kind] or (kind == "figure" and content[0] == 255)
        if is_kind:
            check(path, kind)
            continue
        with pytest.raises(UserError, match=f"file.png: exists and is no {kind}"):
            check(path, kind)
    path.write_bytes(b"")
    check(path, kind)


def test_pipes_devices_and_circular_links_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    (tmp_path / "null.png").symlink_to("/dev/null")
    for name, reason in (("pipe", "a pipe or a device"), ("null", "device"), ("circle", "link")):
        with pytest.raises(UserError, match=f"{name}.png: cannot write there: .*{reason}"):
            check(tmp_path / f"{name}.png", "figure")
    (tmp_path / "new.png").symlink_to(tmp_path / "not yet.png")
    check(tmp_path / "new.png", "figure")


def test_the_format_of_a_figure_is_known(tmp_path):
    for name in ("a.txt", "a", "a.png.bak"):
        with pytest.raises(UserError, match="has to end in one of .png, "):
            check(tmp_path / name, "figure")
    check(tmp_path / "a.SVG", "figure")


@pytest.mark.parametrize("other", ["a.png", "./a.png", "link to a.png"])
def test_no_file_is_written_twice(tmp_path, other):
    path = tmp_path / "a.png"
    path.touch()
    link(path)
    names = {"--plot": str(path), "--heatmap": f"{tmp_path}/{other}"}
    both = [outputs.Output(flag, name, "figure") for flag, name in names.items()]
    with pytest.raises(UserError, match="^--heatmap .*: --plot writes that file, too; name"):
        outputs.check_outputs(both, [])
    outputs.check_outputs([both[0], outputs.Output("--heatmap", tmp_path / "b.png", "figure")], [])


def test_files_beside_two_outputs_are_four():
    names = {
        "runs/lr0.01": "lr0.01.history.csv",
        "runs/lr0.03": "lr0.03.history.csv",
        "runs/model.pth": "model.history.csv",
        "runs/model.v2.pth": "model.v2.history.csv",
    }
    for path, expected in names.items():
        assert outputs.path_beside(path, "history.csv") == Path("runs", expected)


# ---------------------------------------------------------------- locks


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path):
    path = tmp_path / "model.pth"
    held = ("from system.outputs import lock", f"lock('--flag', {str(path)!r})")
    with held_by_another_process(*held) as process:
        expected = rf"^--flag {path}: process {process.pid} on .*, since .*, is writing it$"
        with pytest.raises(UserError, match=expected), outputs.lock("--flag", path):
            pass
        process.kill()  # its lock file stays
    assert (tmp_path / "model.pth.lock").exists()
    with outputs.lock("--flag", path):
        assert (tmp_path / "model.pth.lock").read_text().startswith(f"process {os.getpid()} on ")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_has_left_is_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead, alive = process.pid, os.getpid()
    end = files.TEMPORARY
    names = [f".model.pth.{dead}{end}", f".model.curves.png.{dead}{end}"]
    others = [f".model.pth.{alive}{end}", f".other.pth.{dead}{end}", f".model.x{end}"]
    others += [f".model.pth.{10**20}{end}", f".model.letter.{dead}.tmp"]
    for name in names + others:
        (tmp_path / name).touch()
    with outputs.lock("--flag", tmp_path / "model.pth"):
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            [*others, "model.pth.lock"]
        )


def test_a_lock_does_not_follow_a_link(tmp_path):
    """Not to a file that is there, nor to one that would be made."""
    for name in ("letter.txt", "missing.txt"):
        (tmp_path / "model.pth.lock").symlink_to(tmp_path / name)
        with pytest.raises(UserError, match="cannot write model.pth.lock: .*symbolic link"):
            outputs.lock("--flag", tmp_path / "model.pth").__enter__()
        assert not (tmp_path / name).exists()
        (tmp_path / "model.pth.lock").unlink()


def test_a_lock_file_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "model.pth.lock").mkdir()
    with pytest.raises(UserError, match="cannot write model.pth.lock: Is a directory"):
        outputs.lock("--flag", tmp_path / "model.pth").__enter__()

"""image_files/folders.py: which files count as images, sub-folders, links."""

import collections
import io
import itertools
from pathlib import Path

import pytest
from conftest import not_root

from image_files.folders import (
    check_words,
    files_below,
    find_files,
    images_below,
    read_list,
)
from system.messages import UserError


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a.jpg", "Thumbs.db", "desktop.ini", "Icon\r", ".hidden", "no suffix"):
        (tmp_path / name).touch()
    for name in ("notes.txt", "b.CSV", "a.MOV", "a.AAE", "model.pth"):
        (tmp_path / name).touch()
    of_systems = ("__MACOSX", "$RECYCLE.BIN", "@eaDir/a.jpg", "lost+found", "__pycache__")
    for name in ("sub/deep", "sub/pad.lock", ".git", "m.pth.unfinished", *of_systems):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.jpg").touch()
    return tmp_path


def test_what_systems_make_is_left_out_and_files_that_are_no_images_are_counted(folder):
    ignored: collections.Counter[str] = collections.Counter()
    images = list(images_below(folder, "", ignored))
    assert images == ["a.jpg", "no suffix", "sub/deep/x.jpg", "sub/pad.lock/x.jpg"]
    assert ignored == {".txt": 1, ".csv": 1, ".mov": 1, ".aae": 1, ".pth": 1}


def test_links_are_followed_but_not_in_a_circle(folder):
    other = folder / "sub" / "other"
    other.symlink_to(folder / "sub" / "deep")
    (folder / "sub" / "deep" / "round").symlink_to(folder)
    (folder / "sub" / "to file").symlink_to(folder / "a.jpg")
    (folder / "sub" / "nowhere").symlink_to(folder / "missing")
    expected = ["sub/deep/x.jpg", "sub/nowhere", "sub/other/x.jpg"]
    expected += ["sub/pad.lock/x.jpg", "sub/to file"]
    found = itertools.islice(files_below(str(folder)), 20)  # in a circle, there is no end
    found = [path for path in found if "sub" in path]
    assert found == [str(folder / path) for path in expected]


def test_a_folder_that_cannot_be_read_is_an_error_or_is_yielded(locked_folder):
    root, name = locked_folder.parent, locked_folder.name
    with not_root():
        with pytest.raises(UserError, match=name):
            list(images_below(root, name, collections.Counter()))
        assert list(images_below(root, name, collections.Counter(), strict=False)) == [name]
        assert list(files_below(str(locked_folder))) == [str(locked_folder)]


def test_a_pattern_follows_links_but_not_in_a_circle(tmp_path, monkeypatch):
    for name in ("a", "b [1]"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").touch()
        (tmp_path / name / "round").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    expected = ["a/x.jpg", "b [1]/x.jpg"]
    assert list(find_files(["**/*.jpg"])) == expected
    assert list(find_files(["**/b*/**/x.jpg"])) == expected[1:]
    for pattern in (f"{tmp_path}/**", f"{tmp_path}/**/*.jpg"):
        assert list(find_files([pattern])) == [f"{tmp_path}/{path}" for path in expected]


def test_a_pattern_that_matches_nothing_is_an_error_with_advice(tmp_path):
    with pytest.raises(UserError, match=r"x\*.jpg: no file matches this pattern$"):
        check_words([f"{tmp_path}/x*.jpg"])
    with pytest.raises(UserError, match=r"no file matches .* write \[\[\] instead of \["):
        check_words([f"{tmp_path}/**/x [1].jpg"])


@pytest.mark.parametrize(
    "content",
    [
        " a.jpg\n\nä\udcff.jpg\n".encode(errors="surrogateescape"),
        b"\xef\xbb\xbf a.jpg\r\n\xc3\xa4\xff.jpg",
        b" a.jpg\0\xc3\xa4\xff.jpg\0",  # of find -print0
    ],
)
def test_a_list_has_a_path_a_line_or_ends_each_with_nul(content):
    assert list(read_list(io.BytesIO(content))) == [" a.jpg", "ä\udcff.jpg"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_list_in_utf_16_is_read_by_its_byte_order_mark(encoding):
    text = " a.jpg\r\nä.jpg\r\n"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    assert list(read_list(io.BytesIO(mark + text.encode(encoding)))) == [" a.jpg", "ä.jpg"]

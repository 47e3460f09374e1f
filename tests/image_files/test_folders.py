"""image_files/folders.py: which files count as images, sub-folders, links."""

import collections
from pathlib import Path

import pytest
from conftest import not_root

from image_files.folders import files_below, images_below, scan_folder
from system.messages import UserError


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a.jpg", "Thumbs.db", "desktop.ini", ".hidden", "notes.txt", "b.CSV", "no suffix"):
        (tmp_path / name).touch()
    for name in ("sub/deep", "__MACOSX", ".git"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.jpg").touch()
    return tmp_path


def test_hidden_files_and_files_of_the_system_are_left_out(folder):
    assert scan_folder(folder) == (["sub"], ["a.jpg", "b.CSV", "no suffix", "notes.txt"])


def test_files_that_are_no_images_are_counted_and_sub_folders_are_listed(folder):
    ignored: collections.Counter[str] = collections.Counter()
    images = list(images_below(folder, "", ignored))
    assert images == ["a.jpg", "no suffix", "sub/deep/x.jpg"]
    assert ignored == {".txt": 1, ".csv": 1}


def test_links_are_followed_but_not_in_a_circle(folder):
    other = folder / "sub" / "other"
    other.symlink_to(folder / "sub" / "deep")
    (folder / "sub" / "deep" / "round").symlink_to(folder)
    (folder / "sub" / "to file").symlink_to(folder / "a.jpg")
    (folder / "sub" / "nowhere").symlink_to(folder / "missing")
    expected = ["a.jpg", "no suffix", "sub/deep/x.jpg", "sub/nowhere", "sub/other/x.jpg"]
    expected.append("sub/to file")
    assert list(files_below(str(folder))) == [str(folder / path) for path in expected]


def test_a_folder_that_cannot_be_read_is_an_error_or_is_yielded(locked_folder):
    root, name = locked_folder.parent, locked_folder.name
    with not_root():
        with pytest.raises(UserError, match=name):
            list(images_below(root, name, collections.Counter()))
        assert list(images_below(root, name, collections.Counter(), strict=False)) == [name]
        assert list(files_below(str(locked_folder))) == [str(locked_folder)]

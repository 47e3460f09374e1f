"""image_files/digests.py: content identifies a file; the cache is trusted only where it is safe."""

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from image_files import digests
from image_files.digests import CACHE_FILE, digest_files, digest_of_file


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with two old files of the same size."""
    root = tmp_path / "files"
    root.mkdir()
    for name in "ab":
        (root / name).write_text(name * 100)
    return root


@pytest.fixture
def read_files(monkeypatch) -> list[str]:
    """The names of the files that are read."""
    names: list[str] = []
    real = digests.digest_of_file

    def counting(path):
        names.append(os.path.basename(path))
        return real(path)

    monkeypatch.setattr(digests, "digest_of_file", counting)
    return names


@pytest.fixture(autouse=True)
def any_age(monkeypatch):
    """Let files be old enough for the cache at once."""
    monkeypatch.setattr(digests, "MIN_AGE", -(10**18))


def digest(folder: Path, cache: Path | None = None) -> dict[str, str]:
    names = sorted(os.listdir(folder))
    return {path: value for path, value, error in digest_files(folder, names, cache) if not error}


def test_the_digest_follows_from_the_content_alone(folder, tmp_path):
    before = digest(folder)
    assert before["a"] != before["b"] and len(before["a"]) == 32
    shutil.copy(folder / "a", tmp_path / "copy")
    assert digest_of_file(tmp_path / "copy") == before["a"]
    (folder / "a").write_bytes(b"a" * 99 + b"b")  # the last byte
    assert digest(folder)["a"] != before["a"]


def test_a_file_that_did_not_change_is_read_once(folder, tmp_path, read_files, monkeypatch):
    first = digest(folder, tmp_path / "cache")
    assert sorted(read_files) == ["a", "b"]
    assert digest(folder, tmp_path / "cache") == first
    monkeypatch.chdir(folder.parent)
    assert digest(Path(folder.name), tmp_path / "cache") == first  # another name of the folder
    assert sorted(read_files) == ["a", "b"]
    assert digest(folder) == first and len(read_files) == 4  # without a cache


def set_time(path: Path) -> None:
    os.utime(path, ns=(10**18, 10**18))


def swap(folder: Path) -> None:
    (folder / "a").rename(folder / "c")
    (folder / "b").rename(folder / "a")
    (folder / "c").rename(folder / "b")


def overwrite_and_restore_time(folder: Path) -> None:
    (folder / "a").write_text("x" * 100)
    set_time(folder / "a")


@pytest.mark.parametrize("change", [swap, overwrite_and_restore_time])
def test_a_change_under_the_same_name_size_and_time_is_noticed(folder, tmp_path, change):
    set_time(folder / "a")
    set_time(folder / "b")
    digest(folder, tmp_path / "cache")
    clock = tmp_path / "clock"  # of the system, which sets the ctime: it advances in milliseconds
    clock.touch()
    while clock.stat().st_ctime_ns <= (folder / "b").stat().st_ctime_ns:
        clock.touch()
    change(folder)
    expected = {name: digest_of_file(folder / name) for name in "ab"}
    assert digest(folder, tmp_path / "cache") == expected


def test_a_file_that_has_just_changed_is_not_remembered(folder, tmp_path, read_files, monkeypatch):
    monkeypatch.setattr(digests, "MIN_AGE", 10**12)
    digest(folder, tmp_path / "cache")
    digest(folder, tmp_path / "cache")
    assert sorted(read_files) == ["a", "a", "b", "b"]


def test_what_cannot_be_read_has_a_reason(folder, tmp_path):
    (folder / "empty").touch()
    os.mkfifo(folder / "pipe")
    files = list(digest_files(folder, ["a", "empty", "missing", "pipe"], tmp_path / "cache"))
    assert [bool(file.digest) for file in files] == [True, False, False, False]
    reasons = [file.error.removeprefix(f"{folder / file.path}: ") for file in files]
    assert reasons[1] == "empty" and reasons[3].startswith("not a file, but a pipe")
    assert "No such file" in reasons[2]


def test_a_cache_that_cannot_be_used_is_not_needed(folder, tmp_path):
    expected = digest(folder, tmp_path / "cache")
    (tmp_path / "cache" / CACHE_FILE).write_bytes(b"garbage" * 100)
    assert digest(folder, tmp_path / "cache") == expected
    (tmp_path / "file").touch()  # where the folder should be
    assert digest(folder, tmp_path / "file") == expected


@pytest.mark.parametrize("value", ["x'ff00'", "7", "NULL", "replace(digest, 'a', 'b')"])
def test_a_damaged_row_of_the_cache_is_not_used(folder, tmp_path, value):
    expected = digest(folder, tmp_path / "cache")
    assert "a" in expected["a"] + expected["b"]
    with contextlib.closing(sqlite3.connect(tmp_path / "cache" / CACHE_FILE)) as database, database:
        database.execute(f"UPDATE files SET digest = {value}")
    assert digest(folder, tmp_path / "cache") == expected

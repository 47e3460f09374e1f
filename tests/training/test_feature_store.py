"""training.feature_store: records are found by their key, and damaged ones are not."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import not_root

from system.messages import UserError
from training.feature_store import KEY_BYTES, MISSING, RecordStore, default_cache_folder

SHAPE = (3, 4)


def keys_of(*numbers: int) -> list[bytes]:
    return [bytes([number]) * KEY_BYTES for number in numbers]


def values_of(count: int) -> np.ndarray:
    """Make values (count, *SHAPE)."""
    return np.random.default_rng(0).random((count, *SHAPE)).astype(np.float16)


def store_of(folder: Path, keys: list[bytes], values: np.ndarray) -> RecordStore:
    """Write a store with one file of these records."""
    store = RecordStore(folder, SHAPE)
    store.append(keys, values)
    store.close()
    return store


def test_records_are_read_as_they_were_written(tmp_path):
    values = values_of(5)
    store = store_of(tmp_path / "new" / "folder", keys_of(0, 1, 2, 3, 4), values)
    again = RecordStore(tmp_path / "new" / "folder", SHAPE)
    for opened in (store, again):
        files, rows = opened.find(keys_of(3, 9, 0, 3))
        assert files.tolist() == [0, MISSING, 0, 0]
        files, rows = files[[0, 2, 3]], rows[[0, 2, 3]]
        read = opened.read(files, rows)
        assert read.dtype == np.float16
        assert np.array_equal(read, values[[3, 0, 3]])
        items = opened.read(files, rows, np.array([2, 0, 1]))
        assert np.array_equal(items, values[[3, 0, 3], [2, 0, 1]])


def test_append_returns_the_location_and_records_of_several_files_are_found(tmp_path):
    keys, values = keys_of(*range(7)), values_of(7)
    store_of(tmp_path, keys[:1], values[:1])
    store = RecordStore(tmp_path, SHAPE)
    assert store.append(keys[1:3], values[1:3]) == (1, range(0, 2))
    assert store.append(keys[3:5], values[3:5]) == (1, range(2, 4))
    files, rows = np.ones(4, int), np.arange(4)
    assert np.array_equal(store.read(files, rows), values[1:5])  # before it is closed
    store.close()
    assert store.append(keys[5:6], values[5:6]) == (2, range(0, 1))  # a new file
    store.close()
    again = RecordStore(tmp_path, SHAPE)
    files, rows = again.find(keys)
    assert (files != MISSING).tolist() == [True] * 6 + [False]
    assert len(again.paths) == 3 and set(files[:6].tolist()) == {0, 1, 2}
    order = [5, 0, 3]
    assert np.array_equal(again.read(files[order], rows[order]), values[order])


def cut(path: Path, size: int) -> None:
    os.truncate(path, path.stat().st_size - 10)


def flip(path: Path, size: int) -> None:
    content = bytearray(path.read_bytes())
    content[2 * size + size // 2] ^= 1  # one bit of the third record
    path.write_bytes(content)


@pytest.mark.parametrize(("damage", "number"), [(cut, 7), (flip, 2)])
def test_a_damaged_record_is_missing_and_can_be_added_again(tmp_path, damage, number):
    keys, values = keys_of(*range(1, 9)), values_of(8)
    store = store_of(tmp_path, keys, values)
    damage(store.paths[0], store.dtype.itemsize)
    files, _ = RecordStore(tmp_path, SHAPE).find(keys)
    assert np.flatnonzero(files == MISSING).tolist() == [number]
    rows = slice(number, number + 1)
    store_of(tmp_path, keys[rows], values[rows])
    store = RecordStore(tmp_path, SHAPE)
    files, rows = store.find(keys)
    assert (files != MISSING).all()
    assert np.array_equal(store.read(files, rows), values)


def test_files_of_garbage_have_no_records(tmp_path):
    keys, values = keys_of(*range(4)), values_of(4)
    store_of(tmp_path, keys, values)
    (tmp_path / "0.features").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "1.features").touch()
    (tmp_path / "2.features").write_bytes(bytes(5000))  # zeros have a key, but no valid checksum
    store = RecordStore(tmp_path, SHAPE)
    files, rows = store.find(keys)
    assert len(store.paths) == 4 and len(set(files.tolist())) == 1
    assert np.array_equal(store.read(files, rows), values)


def test_records_that_vanish_while_in_use_are_an_error(tmp_path):
    store = store_of(tmp_path, keys_of(0, 1, 2), values_of(3))
    cut(store.paths[0], 0)
    with pytest.raises(UserError, match="cut off"):
        store.read(np.zeros(3, int), np.arange(3))
    assert np.isfinite(store.read(np.zeros(2, int), np.arange(2))).all()
    store.paths[0].unlink()
    with pytest.raises(UserError, match="gone"):
        store.read(np.zeros(1, int), np.arange(1))


def test_a_file_that_may_not_be_read_is_named_with_the_hint(tmp_path):
    store = store_of(tmp_path / "unreadable", keys_of(0), values_of(1))
    store.paths[0].chmod(0)
    with pytest.raises(UserError, match="unreadable: cannot store .*; try another"), not_root():
        RecordStore(tmp_path / "unreadable", SHAPE, hint="; try another").find(keys_of(0))


# ---------------------------------------------------------------- the cache folder


def test_the_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder().parent == tmp_path
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_folder().parent == tmp_path / "home" / ".cache"


def test_a_user_without_home_has_a_cache_folder(monkeypatch, call):
    """As in a container whose user has no entry in /etc/passwd."""
    pwd = pytest.importorskip("pwd", reason="this system has no /etc/passwd")

    def no_entry(user):
        raise KeyError(f"uid not found: {user}")

    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    folder = default_cache_folder()
    assert folder.is_absolute() and folder.name == "image-classifier"
    done = call("train.py", "--help")
    assert done.returncode == 0 and str(folder) in done.stdout

"""A digest of each file's content, which identifies it, and a memo that saves reading files again.

The memo is trusted for a file whose path, size, inode, modification time and ctime are those that
it had when it was read. The system sets the ctime itself: a file that is overwritten, replaced or
renamed gets a new one, whatever its name, size and modification time are. Windows has no such time:
there, every file is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path
from typing import IO, NamedTuple

from system.files import check_regular_file
from system.messages import UserError

DIGEST_BYTES = 16
BLOCK = 2**20  # bytes
THREADS = 8  # they wait for the disk
MEMO_FILE = "digests.sqlite"
MIN_AGE = 2 * 10**9  # nanoseconds: a younger file may change again within a tick of its clock
CHUNK = 1000  # files between two writes of the memo


class FileDigest(NamedTuple):
    """The digest of a file's content, or why it cannot be read."""

    path: str
    digest: str  # "" if there is an error
    error: str = ""


def digest_files(
    root: str | os.PathLike, paths: Sequence[str], memo: str | os.PathLike | None = None
) -> Iterator[FileDigest]:
    """Yield the digest of each file, in their order; a file is read if the memo does not know it.

    Args:
        paths: relative to `root`.
        memo: a folder for the memo; None reads every file.
    """
    with contextlib.closing(_Memo(memo)) as known, ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            files = [os.path.join(root, path) for path in chunk]
            started = time.time_ns()
            statuses = list(pool.map(_status_of, files))
            digests = [
                known.find(file, status) for file, status in zip(files, statuses, strict=True)
            ]
            results = list(pool.map(_read, chunk, files, statuses, digests))
            is_new = [not digest for digest in digests]
            known.add(compress(zip(files, statuses, results, strict=True), is_new), started)
            yield from results


def digest_of_file(path: str | os.PathLike) -> str:
    """Return the digest of a file's content, in hexadecimal."""
    with open(path, "rb", buffering=0) as file:
        return digest_of(file)


def digest_of(file: IO[bytes]) -> str:
    """Return the digest of what an open file holds: BLAKE2b of DIGEST_BYTES, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    file.seek(0)
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()


class _Status(NamedTuple):
    """What the memo compares, as text, and the last change in nanoseconds; or an error."""

    text: str
    changed: int
    error: str = ""


def _status_of(file: str) -> _Status:
    try:
        s = check_regular_file(file)
    except UserError as error:
        return _Status("", 0, str(error))
    text = f"{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino} {s.st_dev}"
    return _Status(text, max(s.st_mtime_ns, s.st_ctime_ns))


def _read(path: str, file: str, status: _Status, digest: str) -> FileDigest:
    """Read a file unless its digest is known or its status is an error."""
    if status.error or digest:
        return FileDigest(path, digest, status.error)
    try:
        return FileDigest(path, digest_of_file(file))
    except OSError as error:
        return FileDigest(path, "", f"{file}: cannot read it: {error.strerror}")


class _Memo:
    """Digests by path and status, in a database; it is empty if that cannot be used."""

    def __init__(self, folder: str | os.PathLike | None):
        self.database: sqlite3.Connection | None = None
        if folder is None or os.name == "nt":
            return
        with contextlib.suppress(OSError, sqlite3.Error):
            Path(folder).mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(Path(folder, MEMO_FILE), timeout=10)
            columns = "path BLOB PRIMARY KEY, status TEXT, digest TEXT"
            database.execute(f"CREATE TABLE IF NOT EXISTS files ({columns}) WITHOUT ROWID")
            self.database = database

    def find(self, file: str, status: _Status) -> str:
        """Return the digest of a file with this status, or ""."""
        if self.database is not None:
            query = "SELECT digest FROM files WHERE path = ? AND status = ?"
            with contextlib.suppress(sqlite3.Error):
                row = self.database.execute(query, (_key(file), status.text)).fetchone()
                return row[0] if row else ""
        return ""

    def add(self, items: Iterable[tuple[str, _Status, FileDigest]], started: int) -> None:
        """Store the digests of files that did not change for MIN_AGE before they were read."""
        if self.database is None:
            return
        rows = [
            (_key(file), status.text, result.digest)
            for file, status, result in items
            if result.digest and status.changed < started - MIN_AGE
        ]
        with contextlib.suppress(sqlite3.Error), self.database:
            self.database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Close the database."""
        if self.database is not None:
            self.database.close()


def _key(file: str) -> bytes:
    return os.fsencode(os.path.abspath(file))

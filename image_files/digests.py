"""A digest of each file's content, which identifies it, and a cache that saves reading files again.

The cache is trusted for a file whose path, size, inode, modification time and ctime are those that
it had when it was read. The system sets the ctime itself: a file that is overwritten, replaced or
renamed gets a new one, whatever its name, size and modification time are. Windows has no such time:
there, every file is read.
"""

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

from system.files import check_regular_file
from system.messages import UserError

DIGEST_BYTES = 16
BLOCK = 2**20  # bytes
THREADS = 8  # they wait for the disk
CACHE_FILE = "digests.sqlite"
MIN_AGE = 2 * 10**9  # nanoseconds: a younger file may change again within a tick of its clock
CHUNK = 1000  # files between two writes of the cache


class FileDigest(NamedTuple):
    """The digest of a file's content, or why it cannot be read."""

    path: str
    digest: str  # "" if there is an error
    error: str = ""


def digest_files(
    root: str | os.PathLike, paths: Sequence[str], cache: str | os.PathLike | None = None
) -> Iterator[FileDigest]:
    """Yield the digest of each file, in their order; a file is read if the cache lacks its digest.

    Args:
        paths: relative to `root`.
        cache: a folder for the cache; None reads every file.
    """
    with contextlib.closing(_Cache(cache)) as stored, ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            files = [os.path.join(root, path) for path in chunk]
            started = time.time_ns()
            statuses = list(pool.map(_status_of, files))
            digests = [
                stored.find(file, status) for file, status in zip(files, statuses, strict=True)
            ]
            results = list(pool.map(_read, chunk, files, statuses, digests))
            new = []
            for file, status, digest, result in zip(files, statuses, digests, results, strict=True):
                if result.digest and not digest and status.changed < started - MIN_AGE:
                    new.append((_key(file), status.text, result.digest))
            stored.add(new)
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
    """What the cache compares, as text, and the last change in nanoseconds; or an error."""

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


class _Cache:
    """Digests by path and status, in a database; it is empty if that cannot be used."""

    def __init__(self, folder: str | os.PathLike | None):
        self.database: sqlite3.Connection | None = None
        if folder is None or os.name == "nt":
            return
        with contextlib.suppress(OSError, sqlite3.Error):
            Path(folder).mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(Path(folder, CACHE_FILE), timeout=10)
            columns = "path BLOB PRIMARY KEY, status TEXT, digest TEXT"
            database.execute(f"CREATE TABLE IF NOT EXISTS files ({columns}) WITHOUT ROWID")
            self.database = database

    def find(self, file: str, status: _Status) -> str:
        """Return the digest of a file with this status, or ""."""
        if self.database is not None:
            query = "SELECT digest FROM files WHERE path = ? AND status = ?"
            # A damaged row may have any type, or bytes that are not text.
            with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
                row = self.database.execute(query, (_key(file), status.text)).fetchone()
                digest = str(row[0])[: 2 * DIGEST_BYTES] if row else ""
                if row and row[0] == digest + _checksum(_key(file), status.text, digest):
                    return digest
        return ""

    def add(self, rows: list[tuple[bytes, str, str]]) -> None:
        """Store the digests of files: key, text of the status, digest."""
        rows = [(key, text, digest + _checksum(key, text, digest)) for key, text, digest in rows]
        if self.database is not None:
            with contextlib.suppress(sqlite3.Error), self.database:
                self.database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Close the database."""
        if self.database is not None:
            self.database.close()


def _key(file: str) -> bytes:
    return os.fsencode(os.path.abspath(file))


def _checksum(key: bytes, status: str, digest: str) -> str:
    """Return a checksum of a row: a wrong digest would leave out an image for ever."""
    content = b"\0".join([key, status.encode(), digest.encode()])
    return hashlib.blake2b(content, digest_size=4).hexdigest()

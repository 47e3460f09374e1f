"""A folder of append-only files of fixed-size records: key, float16 values, checksum.

Also the folder where they are stored by default. What features depend on, so that others are
computed when it changes, is in `features.settings_text`.
"""

import tempfile
import uuid
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import platformdirs

from system.messages import UserError

KEY_BYTES = 16
MISSING = -1  # the file of a record that is not stored


class RecordStore:
    """Stores records by their key, and reads them by the number of their file and their row.

    Each process that writes appends to a new file, so that none needs a lock. What a cut-off or
    damaged file holds beyond its complete and unchanged records is ignored. The memory that is
    needed does not depend on the number of records.

    Args:
        shape: of the values of a record.
        hint: what to do if the folder cannot be used, for the error message.

    Raises:
        UserError: the folder cannot be made or read.
    """

    def __init__(self, folder: str | Path, shape: tuple[int, ...], hint: str = ""):
        self.folder = Path(folder)
        self.hint = hint
        self.values_type = np.dtype(("<f2", shape))
        self.dtype = np.dtype(
            [("key", f"V{KEY_BYTES}"), ("values", self.values_type), ("checksum", "<u4")]
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.paths = sorted(self.folder.glob("*.features"))
        except OSError as error:
            raise self._unusable(error) from error
        self._file: BinaryIO | None = None
        self._written = 0

    def find(self, keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Read all files, and return where the records of these keys are.

        Returns:
            Number of the file (len(keys),) int32, MISSING if there is no undamaged record, and row
            in it (len(keys),) int64.
        """
        numbers = {key: number for number, key in enumerate(keys)}
        files = np.full(len(keys), MISSING, np.int32)
        rows = np.zeros(len(keys), np.int64)
        try:
            for file, path in enumerate(self.paths):
                for row, record in enumerate(_records(path, self.dtype.itemsize)):
                    number = numbers.get(record[:KEY_BYTES])
                    if number is not None and _checksum(record) == record[-4:]:
                        files[number] = file
                        rows[number] = row
        except OSError as error:
            raise self._unusable(error) from error
        last = [numbers[key] for key in keys]  # a key may be asked for twice
        return files[last], rows[last]

    def append(self, keys: Sequence[bytes], values: np.ndarray) -> tuple[int, range]:
        """Append a record for each key.

        Args:
            values: (len(keys), *shape).

        Returns:
            The number of the file, and the rows in it.
        """
        records = np.zeros(len(keys), self.dtype)
        records["values"] = values
        for record, key in zip(records, keys, strict=True):
            record["key"] = np.void(key)
            record["checksum"] = np.frombuffer(_checksum(record.tobytes()), "<u4")[0]
        try:
            if self._file is None:
                path = self.folder / f"{uuid.uuid4().hex}.features"
                self._file = open(path, "xb", buffering=0)
                self.paths.append(path)
                self._written = 0
            data = memoryview(records.tobytes())
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise self._unusable(error) from error
        self._written += len(keys)
        return len(self.paths) - 1, range(self._written - len(keys), self._written)

    def read(
        self, files: np.ndarray, rows: np.ndarray, items: np.ndarray | None = None
    ) -> np.ndarray:
        """Read the values of records, as float16.

        The files are read, not memory-mapped: how much of a mapped file counts as this process's
        memory depends on the system, and may be all of it.

        Args:
            files, rows: (N,) where the records are.
            items: (N,) index into the first axis of values: read only that item of each record.

        Returns:
            (N, *shape), or (N, *shape[1:]) with `items`.

        Raises:
            UserError: a file has been deleted or cut off.
        """
        shape = self.values_type.shape
        start = rows * self.dtype.itemsize + KEY_BYTES
        if items is not None:
            start = start + items * (self.values_type.itemsize // shape[0])
            shape = shape[1:]
        values = np.empty((len(rows), *shape), self.values_type.base)
        target = values.view(np.uint8).reshape(len(rows), -1)  # their bytes
        for number in np.unique(files):
            path = self.paths[number]
            try:
                with open(path, "rb", buffering=0) as file:
                    for index in np.flatnonzero(files == number):
                        file.seek(start[index])
                        if file.readinto(target[index]) < target.shape[1]:
                            raise UserError(f"{path}: the cached features have been cut off")
            except OSError as error:
                raise UserError(
                    f"{path}: the cached features are gone: {error.strerror}"
                ) from error
        return values

    def read_all(self, files: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Read the values of records as `read` does; those of MISSING ones are 0."""
        values = np.zeros((len(rows), *self.values_type.shape), np.float16)
        is_stored = files != MISSING
        values[is_stored] = self.read(files[is_stored], rows[is_stored])
        return values

    def close(self) -> None:
        """Close the file that was appended to, if any."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _unusable(self, error: OSError) -> UserError:
        return UserError(f"{self.folder}: cannot store features there: {error.strerror}{self.hint}")


def _records(path: Path, size: int) -> Iterator[bytes]:
    """Yield the records of a file, except one at its end that was cut off."""
    with open(path, "rb") as file:
        while len(record := file.read(size)) == size:
            yield record


def _checksum(record: bytes) -> bytes:
    return zlib.crc32(memoryview(record)[:-4]).to_bytes(4, "little")


def default_cache_folder() -> Path:
    """Return `image-classifier` in the user's cache folder, or in /tmp for a user without home."""
    try:
        folder = platformdirs.user_cache_path("image-classifier", appauthor=False)
    except RuntimeError:  # from newer versions of platformdirs; older ones return "~/.cache"
        folder = Path()
    return folder if folder.is_absolute() else Path(tempfile.gettempdir(), "image-classifier")

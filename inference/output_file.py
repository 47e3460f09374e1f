"""The file of many predictions: it grows with each of them, and an interrupted one is resumed."""

from __future__ import annotations

import collections
import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from inference.formats import BYTES_PRESERVED, FILE_FORMATS, format_of
from inference.results import Result
from system.files import write_atomically
from system.messages import UserError
from system.outputs import Output, lock, lock_path

PARTIAL = "jsonl"  # the format of FILE.partial: a line that is cut off is no JSON
FOREIGN = (csv.Error, LookupError, RecursionError, TypeError, ValueError)  # raised by Format.read


def outputs_of(path: str) -> list[Output]:
    """List the files that an OutputFile writes: FILE, and those beside it while it grows."""
    real = Path(os.path.realpath(path))
    return [
        Output("--output", path, ""),
        Output("--output", _partial_path(real), "unfinished output"),
        Output("--output", _record_path(real), "unfinished output"),
        Output("--output", lock_path(real), "lock"),
    ]


def _partial_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.settings")


class OutputFile:
    """A file of results, which is written when all of them are there.

    Until then they are in `FILE.partial`, one a line as JSON, which `resume` continues after an
    interruption; without such a file, it continues FILE itself. `FILE.settings` records how the
    results were made. Use it in a `with` statement, which locks the file.

    Args:
        settings: flag -> value of what the results depend on, for JSON.
        overwrite: discard the results of an interrupted run, which are an error otherwise.

    Attributes:
        resume: whether there are results to continue.
        done: how often each path is in it already.
        unreadable: number of errors among all results, when they are written.

    Raises:
        UserError: it cannot be written, another process writes it, or it exists and is no output;
            or, with `resume`, it was made with other settings.
    """

    def __init__(
        self, path: str, resume: bool, settings: Mapping[str, Any], overwrite: bool = False
    ):
        self.path = Path(os.path.realpath(path))
        self.partial = _partial_path(self.path)
        self.record = _record_path(self.path)
        self.format_name = format_of(path)
        self.settings = json.dumps(settings, indent=1)
        self.resume = resume and (self.partial.exists() or self.path.exists())
        self.overwrite = overwrite
        self.done: collections.Counter[str] = collections.Counter()
        self.unreadable = 0

    def __enter__(self) -> OutputFile:
        with contextlib.ExitStack() as stack:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock("--output", self.path))
                self.file = stack.enter_context(self._open())
            except OSError as error:
                raise self._cannot_write(error) from error
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError):  # of a full disk, which `write` has reported
            self._stack.close()

    def _open(self) -> TextIO:
        """Open `FILE.partial` behind its last complete result."""
        if self.path.is_dir():
            raise IsADirectoryError(0, "is a folder")
        if self.path.exists():
            _check_beginning(self.path, self.format_name)
        if self.resume:
            self._check_settings()
            if not self.partial.exists():
                write_atomically(self.partial, self._copy_complete)
            _check_beginning(self.partial, PARTIAL)
            os.truncate(self.partial, self._count_done())
            return open(self.partial, "a", encoding="ascii")
        if not self.overwrite and self.partial.exists() and self.partial.stat().st_size:
            raise UserError(
                f"--output {self.path}: {self.partial.name} has the results of an interrupted run; "
                "continue it with --resume, or discard them with --overwrite"
            )
        write_atomically(self.record, lambda file: file.write(self.settings.encode()))
        return open(self.partial, "w", encoding="ascii")

    def _check_settings(self) -> None:
        """Raise UserError, which names a difference, if the results were made with others."""
        try:
            previous = json.loads(self.record.read_bytes())
            differences = {
                flag: (previous.get(flag), value)
                for flag, value in json.loads(self.settings).items()
                if previous.get(flag) != value
            }
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                f"--resume: {self.record}, which says how {self.path.name} was made, is missing or "
                "damaged; leave out --resume to start from the beginning"
            ) from error
        if "--checkpoint" in differences:  # others may follow from it
            digest = str(differences["--checkpoint"][0])[:12]
            texts = [f"--checkpoint, whose sha256 begins with {digest}"]
        else:
            texts = [f"{flag} ({old}, not {new})" for flag, (old, new) in differences.items()]
        if texts:
            raise UserError(
                f"--resume: {self.path} was made with another {', another '.join(texts)}; "
                "type that, or leave out --resume to start from the beginning"
            )

    def _copy_complete(self, file: BinaryIO) -> None:
        """Write the results of a complete FILE as JSON lines."""
        try:
            with open(self.path, **BYTES_PRESERVED) as complete:
                for result in FILE_FORMATS[self.format_name].read(complete):
                    file.write(FILE_FORMATS[PARTIAL].row(result).encode())
        except FOREIGN as error:
            raise _foreign(self.path, self.format_name) from error

    def _count_done(self) -> int:
        """Count the paths in `FILE.partial`; returns the byte where its last complete line ends."""
        end = 0
        with open(self.partial, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break  # cut off here
                try:
                    self.done[json.loads(line)["path"]] += 1
                except FOREIGN:
                    break  # what a power failure may leave
                end += len(line)
        return end

    def missing(self, paths: Iterable[str]) -> Iterator[str]:
        """Yield those of the paths that are not in it yet."""
        for path in paths:
            if self.done[path]:
                self.done[path] -= 1  # a path that is given twice is there twice
            else:
                yield path

    def write(self, results: Iterable[Result]) -> None:
        """Add results as they come, then write the file in its own format.

        Raises:
            UserError: the disk is full, or the like.
        """
        for result in results:  # outside of the errors below: it may print to a closed pipe
            self._append(FILE_FORMATS[PARTIAL].row(result))
        try:
            self.file.close()
            write_atomically(self.path, self._convert)
            self.partial.unlink()
        except OSError as error:
            raise self._cannot_write(error) from error

    def _append(self, row: str) -> None:
        try:
            self.file.write(row)
            self.file.flush()
        except OSError as error:
            raise self._cannot_write(error) from error

    def _convert(self, file: BinaryIO) -> None:
        """Write all results of `FILE.partial` in the format of the file."""
        text = io.TextIOWrapper(file, **BYTES_PRESERVED)
        with open(self.partial, encoding="ascii") as partial:
            results = FILE_FORMATS[PARTIAL].read(partial)
            written = FILE_FORMATS[self.format_name].write(results, text)
            self.unreadable = sum(bool(result.error) for result in written)
        text.detach()  # writes what is buffered

    def _cannot_write(self, error: OSError) -> UserError:
        return UserError(f"--output {self.path}: cannot write it: {error.strerror}")


def _check_beginning(path: Path, name: str) -> None:
    """Raise UserError if a file does not begin as its format does; it may be cut off there."""
    with open(path, **BYTES_PRESERVED) as file:
        beginning = file.read(100)
    for expected in FILE_FORMATS[name].beginnings:
        if expected.startswith(beginning[: len(expected)]):
            return
    raise _foreign(path, name)


def _foreign(path: Path, name: str) -> UserError:
    return UserError(
        f"--output {path}: exists and is no .{name} file of this program; name another file, or "
        "delete it"
    )

"""The file of many predictions: it grows with each of them, and an interrupted one is resumed."""

from __future__ import annotations

import collections
import contextlib
import csv
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from inference.results import BYTES_PRESERVED, FOOTERS, HEADERS, Result, format_of, format_result
from system.files import write_atomically
from system.messages import UserError
from system.outputs import lock

OLD_HEADER = "path,rank,category,name,probability,error\n"  # of CSV, before there was novelty


class OutputFile:
    """A file of results, which is renamed to its final name when it is complete.

    Until then it is `FILE.partial`, which `resume` continues after an interruption; without such a
    file, it continues FILE itself. `FILE.settings` records how the results were made. Use it in a
    `with` statement, which locks the file.

    Args:
        settings: flag -> value of what the results depend on, for JSON.

    Attributes:
        done: how often each path is in it already.

    Raises:
        UserError: it cannot be written, another process writes it, or it exists and is no output;
            or, with `resume`, it was made with other settings.
    """

    def __init__(self, path: str, resume: bool, settings: Mapping[str, Any]):
        self.path, self.kind = Path(os.path.realpath(path)), format_of(path)
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self.record = self.path.with_name(f"{self.path.name}.settings")
        self.settings, self.resume = json.dumps(settings, indent=1), resume
        self.done: collections.Counter[str] = collections.Counter()

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
        self._stack.close()

    def _open(self) -> TextIO:
        """Open `FILE.partial` behind its last complete result."""
        is_complete, end = not self.partial.exists() and self.path.exists(), 0
        if self.path.is_dir():
            raise IsADirectoryError(0, "is a folder")
        if self.path.exists():
            _check_header(self.path, self.kind)
        if self.resume and (is_complete or self.partial.exists()):
            self._check_settings()
            source = self.path if is_complete else self.partial
            self.done, end = read_output(source, self.kind, is_complete)
            if is_complete:
                with open(self.path, "rb") as old:
                    write_atomically(self.partial, lambda file: shutil.copyfileobj(old, file))
        else:
            write_atomically(self.record, lambda file: file.write(self.settings.encode()))
        file = open(self.partial, "r+" if end else "w", **BYTES_PRESERVED)
        file.seek(end)
        file.truncate()
        return file

    def _check_settings(self) -> None:
        """Raise UserError, which names a difference, if the results were made with others."""
        try:
            previous = json.loads(self.record.read_bytes())
            differences = [
                f"{flag} ({previous.get(flag)}, not {value})"
                for flag, value in json.loads(self.settings).items()
                if previous.get(flag) != value
            ]
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                f"--resume: {self.record}, which says how {self.path.name} was made, is missing or "
                "damaged; leave out --resume to start from the beginning"
            ) from error
        if differences:
            raise UserError(
                f"--resume: {self.path} was made with another {', another '.join(differences)}; "
                "type that, or leave out --resume to start from the beginning"
            )

    def missing(self, paths: Iterable[str]) -> Iterator[str]:
        """Yield those of the paths that are not in it yet."""
        for path in paths:
            if self.done[path]:
                self.done[path] -= 1  # a path that is given twice is there twice
            else:
                yield path

    def write(self, results: Iterable[Result]) -> None:
        """Write results as they come, then rename the file.

        Raises:
            UserError: the disk is full, or the like.
        """
        try:
            is_first = self.file.tell() == 0
            self.file.write(HEADERS.get(self.kind, "") if is_first else "")
            for result in results:
                self.file.write(format_result(result, self.kind, is_first))
                self.file.flush()
                is_first = False
            self.file.write(FOOTERS.get(self.kind, ""))
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            os.replace(self.partial, self.path)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> UserError:
        return UserError(f"--output {self.path}: cannot write it: {error.strerror}")


def _check_header(path: Path, kind: str) -> None:
    """Raise UserError if a file does not begin as an output does; an empty one may."""
    headers = {
        "csv": [HEADERS["csv"], OLD_HEADER],
        "json": ['[\n{"path": ', "[\n]"],
        "jsonl": ['{"path": '],
    }
    with open(path, **BYTES_PRESERVED) as file:
        beginning = file.read(100)
        if not any(h.startswith(beginning[: len(h)]) for h in headers[kind]):
            raise UserError(
                f"--output {path}: exists and is no .{kind} file of this program; name another "
                "file, or delete it"
            )


def read_output(path: Path, kind: str, is_complete: bool) -> tuple[collections.Counter[str], int]:
    """Return how often each path is in an output file, and the byte where its last result ends.

    Args:
        is_complete: the file is not cut off. Else the last result of a CSV may lack rows, and does
            not count.

    Raises:
        UserError: this program did not write the file.
    """
    _check_header(path, kind)
    with open(path, **BYTES_PRESERVED) as file:
        return _scan_csv(file, is_complete) if kind == "csv" else _scan_json(file, kind)


def _scan_csv(lines: Iterable[str], is_complete: bool) -> tuple[collections.Counter[str], int]:
    """Do the work of `read_output` for CSV."""
    done: collections.Counter[str] = collections.Counter()
    end, position, row, last = 0, 0, "", None
    for line in lines:
        row += line
        if row.count('"') % 2:
            continue  # within a path that has a line end
        start, position = position, position + _byte_length(row)
        try:
            path, rank = next(csv.reader([row]))[:2]
        except ValueError:
            break  # cut off here
        if not row.endswith("\n"):
            break
        if rank in ("", "1"):  # a result starts: the one before it is complete
            done.update([last] if last else [])
            end, last = start, path
        row = ""
    if is_complete and last:
        done[last], end = done[last] + 1, position
    return done, end


def _scan_json(lines: Iterable[str], kind: str) -> tuple[collections.Counter[str], int]:
    """Do the work of `read_output` for JSON and JSON lines: one result a line."""
    done: collections.Counter[str] = collections.Counter()
    end = position = 0
    for line in lines:
        start, position = position, position + _byte_length(line)
        if kind == "jsonl" and not line.endswith("\n"):
            break  # cut off here
        if line.strip() in ("[", "]"):
            continue
        record = line.rstrip("\n" if kind == "jsonl" else ",\n")
        try:
            done[json.loads(record)["path"]] += 1
        except (ValueError, KeyError, TypeError):
            break
        end = start + len(record.encode()) + (kind == "jsonl")
    return done, end


def _byte_length(text: str) -> int:
    return len(text.encode(errors="surrogateescape"))

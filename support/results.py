"""Predictions as text: a table to read, or the CSV, JSON and JSON-lines files of many images.

An output file grows as `FILE.partial` and is renamed when it is complete; an interrupted one can
be resumed.
"""

from __future__ import annotations

import collections
import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from support.arguments import UserError, one_line
from support.files import write_atomically

BAR_LENGTH = 20  # characters, of a probability of 1
COLUMNS = ("path", "rank", "category", "name", "probability", "error")  # of CSV
UNKNOWN = "unknown"  # the name of a prediction below the minimum probability
FORMATS = ("csv", "jsonl", "json", "table")
FILE_FORMATS = FORMATS[:3]
HEADERS = {"csv": ",".join(COLUMNS) + "\n", "json": "["}
FOOTERS = {"json": "\n]\n"}
# File names may be bytes that are not text: they are written, and read, as the same bytes.
BYTES_PRESERVED: dict[str, Any] = {
    "encoding": "utf-8",
    "errors": "surrogateescape",
    "newline": "",
}


class Prediction(NamedTuple):
    """One of the most likely categories of an image."""

    category: str  # the folder's name in the training data
    name: str  # the category's name for people
    probability: float  # 0-1


class Result(NamedTuple):
    """Predictions for one image, the most likely first, or the error that prevented them."""

    path: str
    predictions: list[Prediction]  # none if there is an error
    error: str = ""


def most_likely(
    probs: Any,
    categories: Sequence[str],
    names: Mapping[str, str],
    top_k: int,
    min_probability: float = 0.0,
) -> list[Prediction]:
    """Return the most likely categories of an image, the most likely first.

    If the first is below `min_probability`, it returns one prediction, "unknown", of no category.

    Args:
        probs: tensor (num_classes,) of probabilities.
        categories: (num_classes,) folders.
        names: category -> name; a category without one has its folder's name.
        top_k: a number above the number of categories returns all of them.
    """
    best, indices = (column.tolist() for column in probs.topk(min(top_k, len(probs))))
    if best[0] < min_probability:
        return [Prediction("", UNKNOWN, best[0])]
    ranked = [categories[index] for index in indices]
    return [Prediction(c, names.get(c, c), p) for c, p in zip(ranked, best, strict=True)]


def format_table(predictions: Sequence[Prediction]) -> str:
    """Format rank, probability, name, category and a bar of one image's predictions."""
    rows = [("rank", "probability", "name", "category", "")]
    block = "#" if "\u2588".encode(sys.stdout.encoding or "ascii", "ignore") == b"" else "\u2588"
    for rank, p in enumerate(predictions, 1):
        bar = block * round(BAR_LENGTH * p.probability)
        rows.append(
            (str(rank), f"{p.probability:.1%}", one_line(p.name), one_line(p.category), bar)
        )
    name, category = (max(len(row[column]) for row in rows) for column in (2, 3))
    lines = [f"{r[0]:>4}  {r[1]:>11}  {r[2]:{name}}  {r[3]:{category}}  {r[4]}" for r in rows]
    return "\n".join(line.rstrip() for line in lines)


def format_of(path: str) -> str:
    """Return the format that a file's name asks for: the text after its last dot."""
    return os.path.splitext(path)[1][1:].lower()


def format_result(result: Result, kind: str, is_first: bool) -> str:
    """Format a result as one of FORMATS.

    HEADERS precede the first result, FOOTERS follow the last.
    """
    if kind == "csv":
        return _csv_rows(result)
    if kind == "jsonl":
        return _json_object(result) + "\n"
    if kind == "json":
        return ("\n" if is_first else ",\n") + _json_object(result)
    if result.error:
        return ""  # printed to standard error
    return f"{one_line(result.path)}\n{format_table(result.predictions)}\n\n"


def _json_object(result: Result) -> str:
    if result.error:
        return json.dumps({"path": result.path, "error": result.error})
    predictions = [
        {"rank": rank, **p._asdict(), "probability": round(p.probability, 6)}
        for rank, p in enumerate(result.predictions, 1)
    ]
    return json.dumps({"path": result.path, "predictions": predictions})


def _csv_rows(result: Result) -> str:
    rows = [
        (result.path, rank, p.category, p.name, f"{p.probability:.6f}", "")
        for rank, p in enumerate(result.predictions, 1)
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(rows or [(result.path, "", "", "", "", result.error)])
    return text.getvalue()


def print_results(results: Iterable[Result], kind: str) -> Iterator[Result]:
    """Print each result to standard output as soon as it comes, and yield it.

    All but a table is written with the bytes that an output file would have.
    """
    is_first = True
    if kind != "table" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(**BYTES_PRESERVED)
    sys.stdout.write(HEADERS.get(kind, ""))
    for result in results:
        sys.stdout.write(format_result(result, kind, is_first))
        sys.stdout.flush()
        is_first = False
        yield result
    sys.stdout.write(FOOTERS.get(kind, ""))


class OutputFile:
    """A file of results, which is renamed to its final name when it is complete.

    Until then it is `FILE.partial`, which `resume` continues after an interruption; without such a
    file, it continues FILE itself.

    Attributes:
        done: how often each path is in it already.

    Raises:
        UserError: it cannot be written; or, with `resume`, the existing file is no output.
    """

    def __init__(self, path: str, resume: bool):
        self.path, self.kind = Path(path), format_of(path)
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self.done: collections.Counter[str] = collections.Counter()
        end = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_dir():
                raise IsADirectoryError(0, "is a folder")
            is_complete = not self.partial.exists() and self.path.exists()
            if resume and is_complete:
                with open(self.path, "rb") as old:
                    write_atomically(self.partial, lambda file: shutil.copyfileobj(old, file))
            if resume and self.partial.exists():
                self.done, end = read_output(self.partial, self.kind, is_complete)
            self.file = open(self.partial, "r+" if end else "w", **BYTES_PRESERVED)
            self.file.seek(end)
            self.file.truncate()
        except OSError as error:
            raise self._cannot_write(error) from error

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
            with self.file:
                is_first = self.file.tell() == 0
                self.file.write(HEADERS.get(self.kind, "") if is_first else "")
                for result in results:
                    self.file.write(format_result(result, self.kind, is_first))
                    self.file.flush()
                    is_first = False
                self.file.write(FOOTERS.get(self.kind, ""))
                self.file.flush()
                os.fsync(self.file.fileno())
            os.replace(self.partial, self.path)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> UserError:
        return UserError(f"--output {self.path}: cannot write it: {error.strerror}")


def read_output(path: Path, kind: str, is_complete: bool) -> tuple[collections.Counter[str], int]:
    """Return how often each path is in an output file, and the byte where its last result ends.

    Args:
        is_complete: the file is not cut off. Else the last result of a CSV may lack rows, and does
            not count.

    Raises:
        UserError: this program did not write the file.
    """
    header = HEADERS.get(kind, '{"path": ')
    with open(path, **BYTES_PRESERVED) as file:
        if not header.startswith(file.read(len(header))):
            raise UserError(f"--resume: {path} is no .{kind} file of this program")
        file.seek(0)
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

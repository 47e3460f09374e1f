"""Formats of many predictions: CSV, JSON and JSON lines, and the table that people read.

To add a format of files, write one more `Format` and add it to FILE_FORMATS.
"""

import csv
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from inference.results import Prediction, Result, format_table
from system.messages import one_line

COLUMNS = ("path", "rank", "category", "name", "probability", "error", "novelty")  # of CSV
# File names may be bytes that are not text: they are written, and read, as the same bytes.
BYTES_PRESERVED: dict[str, Any] = {
    "encoding": "utf-8",
    "errors": "surrogateescape",
    "newline": "",
}


class Format:
    """How results become text, and text becomes results.

    Attributes:
        header, separator, footer: text before the first result, between two, and after the last.
        beginnings: with one of which each file of this program begins.
    """

    header = ""
    separator = ""
    footer = ""
    beginnings: tuple[str, ...] = ()

    def row(self, result: Result) -> str:
        """Return the text of a result."""
        raise NotImplementedError

    def read(self, file: TextIO) -> Iterable[Result]:
        """Return the results in a complete file, up to rounding.

        Raises:
            ValueError, LookupError, TypeError, csv.Error: this program did not write the file.
        """
        raise NotImplementedError

    def write(self, results: Iterable[Result], file: TextIO) -> Iterator[Result]:
        """Write each result as soon as it comes, and yield it."""
        file.write(self.header)
        separator = ""
        for result in results:
            file.write(separator + self.row(result))
            separator = self.separator
            yield result
        file.write(self.footer)


class Csv(Format):
    """A line for each prediction, or for an error."""

    header = ",".join(COLUMNS) + "\n"
    beginnings = (header,)

    def row(self, result: Result) -> str:
        if result.error:
            return _csv_line((result.path, "", "", "", "", result.error, ""))
        lines = []
        for rank, p in enumerate(result.predictions, 1):
            novelty = "" if math.isnan(p.novelty) else f"{p.novelty:.6f}"
            fields = (result.path, rank, p.category, p.name, f"{p.probability:.6f}", "", novelty)
            lines.append(_csv_line(fields))
        return "".join(lines)

    def read(self, file: TextIO) -> list[Result]:
        results: list[Result] = []
        for row in csv.DictReader(file):
            if row["rank"] in ("", "1"):  # a result begins
                results.append(Result(row["path"], [], row["error"]))
            if row["rank"]:
                novelty = float(row["novelty"] or "nan")
                prediction = Prediction(
                    row["category"], row["name"], float(row["probability"]), novelty
                )
                results[-1].predictions.append(prediction)
        return results


def _csv_line(fields: Sequence[str | int]) -> str:
    """Return a line of CSV; a field with a comma, a quote or a line end of any kind is quoted."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(fields)  # with "\n", "\r" is not quoted
    return line.getvalue().removesuffix("\r\n") + "\n"


class JsonLines(Format):
    """A JSON object a line; text is ASCII, with escapes."""

    beginnings = ('{"path": ',)

    def row(self, result: Result) -> str:
        return json.dumps(to_json(result)) + "\n"

    def read(self, file: TextIO) -> Iterator[Result]:
        for line in file:
            yield _from_json(json.loads(line))


class Json(Format):
    """An array of the objects of JSON lines."""

    header = "["
    separator = ","
    footer = "\n]\n"
    beginnings = ('[\n{"path": ', "[\n]")

    def row(self, result: Result) -> str:
        return "\n" + json.dumps(to_json(result))

    def read(self, file: TextIO) -> list[Result]:
        return [_from_json(record) for record in json.load(file)]


def to_json(result: Result) -> dict[str, Any]:
    """Return a result as an object of JSON."""
    if result.error:
        return {"path": result.path, "error": result.error}
    predictions = []
    for rank, p in enumerate(result.predictions, 1):
        probability = round(p.probability, 6)
        predictions.append(
            {"rank": rank, "category": p.category, "name": p.name, "probability": probability}
        )
    novelty = result.predictions[0].novelty
    rounded = None if math.isnan(novelty) else round(novelty, 6)
    return {"path": result.path, "predictions": predictions, "novelty": rounded}


def _from_json(record: dict[str, Any]) -> Result:
    if "error" in record:
        return Result(record["path"], [], record["error"])
    novelty = math.nan if record["novelty"] is None else record["novelty"]
    predictions = []
    for p in record["predictions"]:
        predictions.append(Prediction(p["category"], p["name"], p["probability"], novelty))
    return Result(record["path"], predictions)


class Table(Format):
    """A table for each image, under its path; errors are printed to standard error instead."""

    def row(self, result: Result) -> str:
        if result.error:
            return ""
        return f"{one_line(result.path)}\n{format_table(result.predictions)}\n\n"


FILE_FORMATS: dict[str, Format] = {"csv": Csv(), "jsonl": JsonLines(), "json": Json()}
FORMATS: dict[str, Format] = {**FILE_FORMATS, "table": Table()}


def format_of(path: str) -> str:
    """Return the name of the format that a file's name asks for: the text after its last dot."""
    return os.path.splitext(path)[1][1:].lower()


def print_results(results: Iterable[Result], name: str) -> Iterator[Result]:
    """Print each result to standard output as soon as it comes, and yield it.

    All but a table is written with the bytes that an output file would have.

    Args:
        name: one of FORMATS.
    """
    if name != "table" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(**BYTES_PRESERVED)
    for result in FORMATS[name].write(results, sys.stdout):
        sys.stdout.flush()
        yield result

"""Predictions as text: a table to read, or the CSV, JSON and JSON lines of many images.

See `support.result_file` for the files.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from support.arguments import one_line

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


class Probabilities(NamedTuple):
    """Probabilities for one image, or the error that prevented them."""

    path: str
    probs: Any  # tensor (num_classes,) float32, or None
    error: str = ""


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

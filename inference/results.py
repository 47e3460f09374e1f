"""Predictions as text: a table to read, or the CSV, JSON and JSON lines of many images.

See `inference.output_file` for the files.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from inference.predictor import Probabilities
from system.messages import UserError, one_line

BAR_LENGTH = 20  # characters, of a probability of 1
COLUMNS = ("path", "rank", "category", "name", "probability", "error", "novelty")  # of CSV
UNKNOWN = "unknown"  # the name of a prediction that is not made; see `most_likely`
UNUSUAL = 0.003  # novelty below which an image is reported; see benchmarks/README.md
UNLIKE = "resembles none of the categories"  # how it is reported
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
    novelty: float  # of the image: the share of known images that are as unusual; NaN: not computed

    def is_unknown(self) -> bool:
        """Return whether it is "unknown"; a category may have this name as well."""
        return not self.category

    def is_unusual(self) -> bool:
        """Return whether the image is reported to resemble no category."""
        return self.novelty < UNUSUAL


class Result(NamedTuple):
    """Predictions for one image, the most likely first, or the error that prevented them."""

    path: str
    predictions: list[Prediction]  # none if there is an error
    error: str = ""


def most_likely(
    probs: np.ndarray,
    novelty: float,
    categories: Sequence[str],
    names: Mapping[str, str],
    top_k: int,
    min_probability: float = 0.0,
    min_novelty: float = 0.0,
) -> list[Prediction]:
    """Return the most likely categories of an image, the most likely first.

    If the first is below `min_probability`, or the novelty below `min_novelty`, it returns one
    prediction, "unknown", of no category. A novelty of NaN is not below.

    Args:
        probs: (num_classes,) probabilities.
        novelty: see `Prediction`.
        categories: (num_classes,) folders.
        names: category -> name; a category without one has its folder's name.
        top_k: a number above the number of categories returns all of them.
    """
    indices = (-probs).argsort(kind="stable")[:top_k]
    best = probs[indices].tolist()
    if best[0] < min_probability or novelty < min_novelty:
        return [Prediction("", UNKNOWN, best[0], novelty)]
    ranked = [categories[index] for index in indices]
    return [Prediction(c, names.get(c, c), p, novelty) for c, p in zip(ranked, best, strict=True)]


def format_table(predictions: Sequence[Prediction]) -> str:
    """Format rank, probability, name, category and a bar of one image's predictions.

    A last line says if the image is unusual.
    """
    rows = [("rank", "probability", "name", "category", "")]
    block = "#" if "\u2588".encode(sys.stdout.encoding or "ascii", "ignore") == b"" else "\u2588"
    for rank, p in enumerate(predictions, 1):
        bar = block * round(BAR_LENGTH * p.probability)
        rows.append(
            (str(rank), f"{p.probability:.1%}", one_line(p.name), one_line(p.category), bar)
        )
    name, category = (max(len(row[column]) for row in rows) for column in (2, 3))
    lines = [f"{r[0]:>4}  {r[1]:>11}  {r[2]:{name}}  {r[3]:{category}}  {r[4]}" for r in rows]
    best = predictions[0]
    if best.is_unusual():
        guess = "" if best.is_unknown() else ": the names are guesses"
        lines.append(f"This image {UNLIKE} (novelty {best.novelty:.4f}){guess}.")
    return "\n".join(line.rstrip() for line in lines)


def stack(items: Sequence[Probabilities], source: str) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (N, num_classes) and novelty (N,) of the images that could be read.

    Raises:
        UserError: none could be, of `source`.
    """
    probs = [item.probs for item in items if item.probs is not None]
    if not probs:
        raise UserError(f"{source}: none of its images can be read")
    return np.stack(probs), np.array([x.novelty for x in items if x.probs is not None])


class Summary:
    """Counts results, for the line that follows them."""

    def __init__(self) -> None:
        self.predicted = self.unreadable = self.unusual = self.unknown = 0

    def add(self, result: Result) -> None:
        """Count a result."""
        if result.error:
            self.unreadable += 1
            return
        self.predicted += 1
        self.unusual += result.predictions[0].is_unusual()
        self.unknown += result.predictions[0].is_unknown()

    def __str__(self) -> str:
        counts = [f"{self.predicted} images predicted"]
        if self.unusual:
            counts.append(f"{self.unusual} resemble no category (novelty below {UNUSUAL})")
        if self.unknown:
            counts.append(f"{self.unknown} are {UNKNOWN}")
        return ", ".join([*counts, f"{self.unreadable} could not be read"])


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
        {
            "rank": rank,
            "category": p.category,
            "name": p.name,
            "probability": round(p.probability, 6),
        }
        for rank, p in enumerate(result.predictions, 1)
    ]
    novelty = result.predictions[0].novelty
    value = None if math.isnan(novelty) else round(novelty, 6)
    return json.dumps({"path": result.path, "predictions": predictions, "novelty": value})


def _novelty(prediction: Prediction) -> str:
    return "" if math.isnan(prediction.novelty) else f"{prediction.novelty:.6f}"


def _csv_rows(result: Result) -> str:
    rows = [
        (result.path, rank, p.category, p.name, f"{p.probability:.6f}", "", _novelty(p))
        for rank, p in enumerate(result.predictions, 1)
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(rows or [(result.path, "", "", "", "", result.error, "")])
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

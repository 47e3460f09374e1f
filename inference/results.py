"""Predictions of single images: the most likely categories, a table to read, and their counts."""

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from inference.predictor import Predictor, Probabilities
from system.messages import UserError, counted, one_line

BAR_LENGTH = 20  # characters, of a probability of 1
UNKNOWN = "unknown"  # the name of a prediction that is not made
UNLIKE = "resembles none of the categories"  # how an unusual image is reported


class Prediction(NamedTuple):
    """One of the most likely categories of an image."""

    category: str  # the folder's name in the training data; empty if the image is "unknown"
    name: str  # the category's name for people
    probability: float  # 0-1
    novelty: float  # of the image: the share of known images that are as unusual; NaN: not computed
    is_unusual: bool = False  # whether the image is reported to resemble no category

    @property
    def is_unknown(self) -> bool:
        """Whether it is "unknown"; a category may have this name as well."""
        return not self.category


class Result(NamedTuple):
    """Predictions for one image, the most likely first, or the error that prevented them."""

    path: str
    predictions: list[Prediction]  # none if there is an error
    error: str = ""


def most_likely(
    model: Predictor,
    probs: np.ndarray,
    novelty: float,
    *,
    top_k: int,
    names: Mapping[str, str] | None = None,
    min_probability: float = 0.0,
    min_novelty: float = 0.0,
) -> list[Prediction]:
    """Return the most likely categories of an image, the most likely first.

    If the first is below `min_probability`, or the novelty below `min_novelty`, it returns one
    prediction, "unknown", of no category. A novelty of NaN is not below.

    Args:
        probs: (num_classes,) probabilities, from `model`.
        novelty: of the image, from `model`.
        top_k: a number above the number of categories returns all of them.
        names: category -> name, instead of the model's; a category without one has its folder's.
    """
    names = model.names if names is None else names
    is_unusual = novelty < model.novelty_limit
    indices = (-probs).argsort(kind="stable")[:top_k]
    highest = float(probs[indices[0]])
    if highest < min_probability or novelty < min_novelty:
        return [Prediction("", UNKNOWN, highest, novelty, is_unusual)]
    predictions = []
    for index in indices:
        category = model.categories[index]
        name = names.get(category, category)
        predictions.append(Prediction(category, name, float(probs[index]), novelty, is_unusual))
    return predictions


def format_table(predictions: Sequence[Prediction]) -> str:
    """Format rank, probability, name, category and a bar of one image's predictions.

    A last line says if the image is unusual.
    """
    has_blocks = "\u2588".encode(sys.stdout.encoding or "ascii", "ignore") != b""
    block = "\u2588" if has_blocks else "#"
    names = [one_line(p.name) for p in predictions]
    categories = [one_line(p.category) for p in predictions]
    width = max(map(len, ["name", *names]))
    category_width = max(map(len, ["category", *categories]))
    lines = [f"rank  probability  {'name':{width}}  category"]
    for index, p in enumerate(predictions):
        columns = f"{index + 1:>4}  {p.probability:>11.1%}  {names[index]:{width}}"
        bar = block * round(BAR_LENGTH * p.probability)
        lines.append(f"{columns}  {categories[index]:{category_width}}  {bar}".rstrip())
    best = predictions[0]
    if best.is_unusual:
        guess = "" if best.is_unknown else ": the names are guesses"
        lines.append(f"This image {UNLIKE} (novelty {best.novelty:.4f}){guess}.")
    return "\n".join(lines)


def stack(items: Sequence[Probabilities], source: str) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (N, num_classes) and novelty (N,) of the images that could be read.

    Raises:
        UserError: none could be, of `source`.
    """
    probs = [item.probs for item in items if item.probs is not None]
    if not probs:
        raise UserError(f"{source}: none of its images can be read")
    novelty = [item.novelty for item in items if item.probs is not None]
    return np.stack(probs), np.array(novelty)


class Summary:
    """Counts results, for the line that follows them.

    Args:
        novelty_limit: of the model; an image with less novelty is unusual.
    """

    def __init__(self, novelty_limit: float) -> None:
        self.novelty_limit = novelty_limit
        self.predicted = 0
        self.unreadable = 0
        self.unusual = 0
        self.unknown = 0

    def add(self, result: Result) -> None:
        """Count a result."""
        if result.error:
            self.unreadable += 1
            return
        best = result.predictions[0]
        self.predicted += 1
        self.unusual += best.is_unusual
        self.unknown += best.is_unknown

    def __str__(self) -> str:
        counts = [f"{counted(self.predicted, 'image', 'images')} predicted"]
        if self.unusual:
            limit = f"novelty below {self.novelty_limit:g}"
            counts.append(f"{counted(self.unusual, 'resembles', 'resemble')} no category ({limit})")
        if self.unknown:
            counts.append(f"{counted(self.unknown, 'is', 'are')} {UNKNOWN}")
        counts.append(f"{self.unreadable} could not be read")
        return ", ".join(counts)

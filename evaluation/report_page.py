"""The page that says how good predictions for labeled images are: report.html."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from evaluation.calibration import calibration_bins
from evaluation.metrics import (
    category_metrics,
    confident_mistakes,
    confusion_counts,
    metrics,
    wilson_interval,
)
from system.files import escape
from system.pages import percent, write_page

TEMPLATE = Path(__file__).with_name("report.html")
MAX_IMAGES = 1000  # of incorrect predictions, and of correct ones as far as there is space
SIDE = 160  # pixels of an image's longer side


def choose_images(labels: ArrayLike, probs: ArrayLike) -> tuple[list[int], int]:
    """Choose the images that the page has.

    Args:
        labels, probs: (N,) and (N, num_classes).

    Returns:
        Their indices: first those of incorrect predictions, the most confident first; then those of
        correct ones, one of each category in turn. And the number of the former.
    """
    labels = np.asarray(labels)
    mistakes = confident_mistakes(labels, probs)[:MAX_IMAGES].tolist()
    correct = np.flatnonzero(np.asarray(probs).argmax(1) == labels)
    rank = np.zeros(len(labels), np.int64)  # of an image in its category
    for label in np.unique(labels[correct]):
        of_category = correct[labels[correct] == label]
        rank[of_category] = np.arange(len(of_category))
    in_turn = correct[np.argsort(rank[correct], kind="stable")]
    return mistakes + in_turn[:MAX_IMAGES].tolist(), len(mistakes)


def write_report_page(
    path: str | os.PathLike,
    *,
    title: str,
    figures: Sequence[tuple[str, str, str]],
    settings: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    categories: Sequence[str],
    labels: ArrayLike,
    probs: ArrayLike,
    files: Sequence[str],
    images: Mapping[int, str],
) -> None:
    """Write the page.

    Args:
        figures: label, value and a note of each figure at the top, behind those of the predictions.
        settings: flag -> value; those that are None or False are left out.
        history: of each epoch, see `plots.learning_curves`; of no training, it is empty.
        categories: (num_classes,) names.
        labels, probs: (N,) and (N, num_classes).
        files: (N,) paths.
        images: index -> URL of an image, see `choose_images`.

    Raises:
        UserError: the page cannot be written.
    """
    labels = np.asarray(labels)
    probs = np.asarray(probs, np.float64)
    predictions = probs.argmax(1)
    is_correct = predictions == labels
    counts = confusion_counts(labels, predictions, len(categories))
    of_categories = category_metrics(labels, predictions, len(categories))
    page = {
        "title": escape(title),
        "figures": [*_figures(labels, probs), *figures],
        "settings": [
            _format_flag(flag, value)
            for flag, value in settings.items()
            if value is not None and value is not False
        ],
        "history": list(history),
        "categories": [
            {"name": escape(name), **row}
            for name, row in zip(categories, of_categories, strict=True)
        ],
        "confusion": [
            (row, column, int(counts[row, column])) for row, column in np.argwhere(counts).tolist()
        ],
        "bins": _bins(probs.max(1), is_correct),
        "mistakes": int((~is_correct).sum()),
        "images": [
            _describe(escape(files[index]), int(labels[index]), probs[index], url)
            for index, url in images.items()
        ],
    }
    write_page(path, TEMPLATE, page)


def _format_flag(flag: str, value: Any) -> str:
    """Return a flag as it is typed: "--corrections a.csv b.csv"."""
    values = value if isinstance(value, list) else [value]
    return escape(" ".join([f"--{flag}", *map(str, values)]))


def _describe(file: str, label: int, probs: np.ndarray, url: str) -> dict[str, Any]:
    """Return what the page shows of an image; probs: (num_classes,)."""
    return {
        "path": file,
        "label": label,
        "prediction": int(probs.argmax()),
        "probability": float(probs.max()),
        "source": url,
    }


def _bins(probs: np.ndarray, is_correct: np.ndarray) -> list[dict[str, float]]:
    """Return the number of predictions (N,) in each bin, and two means of them."""
    bins = calibration_bins(probs, is_correct)
    return [
        {"probability": total / count, "correct": correct / count, "count": int(count)}
        for count, total, correct in zip(bins.counts, bins.probs, bins.correct, strict=True)
        if count
    ]


def _figures(labels: np.ndarray, probs: np.ndarray) -> list[tuple[str, str, str]]:
    """Return label, value and a note of each figure about the predictions."""
    values = metrics(np.log(probs.clip(1e-30)), labels)
    low, high = wilson_interval(values["accuracy"], len(labels))
    return [
        (
            "accuracy",
            percent(values["accuracy"]),
            f"of {len(labels)} images; 95\u00a0% interval {percent(low)} to {percent(high)}",
        ),
        (
            "top-5 accuracy",
            percent(values["top5_accuracy"]),
            "the label is among the five most likely categories",
        ),
        (
            "mean accuracy of the categories",
            percent(values["class_accuracy"]),
            "each category counts equally",
        ),
        (
            "calibration error",
            percent(values["ece"]),
            "how far probabilities are from the share of correct predictions",
        ),
    ]

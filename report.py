"""What a training reports: lines in the terminal, and tables and figures beside its checkpoint.

checkpoint_script.history.csv       checkpoint_script.curves.png
checkpoint_script.categories.csv    checkpoint_script.confusion.png
checkpoint_script.unreadable.csv    checkpoint_script.mistakes.png
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fitting import Evaluation
from support.files import save_figure, write_csv
from support.metrics import category_metrics
from support.names import display_names
from support.results import UNUSUAL
from utils import DataFolder, load_image, thumbnail

MAX_MISTAKES = 12  # in the gallery


def write_report(
    checkpoint: Path,
    history: list[dict],
    epoch: int,
    data: DataFolder,
    files: Sequence[str],
    labels: torch.Tensor,
    probs: torch.Tensor,
    names: Mapping[str, str],
) -> list[Path]:
    """Write tables and figures of a training beside its checkpoint.

    Args:
        epoch: the one whose weights are used.
        files, labels, probs: the paths in `data` of the N images of test, the indices (N,) of their
            categories, and their predicted probabilities (N, num_classes).
        names: category folder -> name; a category without one has its folder's name.

    Returns:
        The files' paths.

    Raises:
        UserError: a file cannot be written, or an image is no longer there.
    """
    import plots  # here, because it takes a second

    category_names = display_names(list(data.class_to_idx), names)
    rows = category_table(list(data.class_to_idx), category_names, labels, probs)
    tables = {"history.csv": history, "categories.csv": rows}
    figures = {
        "curves.png": plots.learning_curves(history, epoch),
        "confusion.png": plots.confusion_matrix(labels, probs.argmax(1), category_names),
        "mistakes.png": mistakes_figure(data.root, files, labels, probs, category_names),
    }
    paths = {name: checkpoint.with_suffix(f".{name}") for name in (*tables, *figures)}
    for name, table in tables.items():
        write_csv(paths[name], [list(table[0]), *(list(row.values()) for row in table)])
    for name, figure in figures.items():
        save_figure(figure, paths[name])
    return list(paths.values())


def category_table(
    categories: Sequence[str], names: Sequence[str], labels: torch.Tensor, probs: torch.Tensor
) -> list[dict]:
    """Return one row a category: "category", "name" and its `category_metrics`."""
    measured = category_metrics(labels, probs.argmax(1), len(names))
    columns = zip(categories, names, measured, strict=True)
    return [{"category": category, "name": name, **row} for category, name, row in columns]


def confident_mistakes(labels: torch.Tensor, probs: torch.Tensor) -> list[int]:
    """Return the indices of incorrect predictions, the most confident first, MAX_MISTAKES at most.

    See `write_report` for labels and probs.
    """
    confidence, predictions = probs.max(1)
    mistakes = (predictions != labels).nonzero()[:, 0]
    order = confidence[mistakes].argsort(descending=True, stable=True)
    return mistakes[order][:MAX_MISTAKES].tolist()


def mistakes_figure(
    root: str,
    files: Sequence[str],
    labels: torch.Tensor,
    probs: torch.Tensor,
    names: Sequence[str],
):
    """Draw the most confident incorrect predictions; see `write_report`.

    Args:
        names: (num_classes,) of the categories.
    """
    import plots

    mistakes = confident_mistakes(labels, probs)
    return plots.mistakes_gallery(
        [thumbnail(load_image(os.path.join(root, files[i]))) for i in mistakes],
        [files[i] for i in mistakes],
        [names[int(labels[i])] for i in mistakes],
        [names[int(probs[i].argmax())] for i in mistakes],
        [probs[i].max().item() for i in mistakes],
    )


def write_unreadable(checkpoint: Path, failures: Mapping[str, str]) -> Path:
    """Write a table of the images that were left out, or delete an earlier one; returns its path.

    Args:
        failures: why an image cannot be read, by path.
    """
    path = checkpoint.with_suffix(".unreadable.csv")
    if failures:
        rows = [(image, reason.split(f"{image}: ", 1)[-1]) for image, reason in failures.items()]
        write_csv(path, [("path", "reason"), *rows])
    else:
        with contextlib.suppress(OSError):
            path.unlink()
    return path


def format_epoch(row: dict, epochs: int) -> str:
    """Format a row of the history as a line."""
    return (
        f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}  train loss {row['train_loss']:6.3f}  "
        f"valid loss {row['valid_loss']:6.3f}  valid accuracy {row['valid_accuracy']:6.1%}"
    )


def format_results(path: Path, evaluation: Evaluation) -> str:
    """Format the metrics of test, and the command that uses the checkpoint."""
    test = {name: f"{value:.1%}" for name, value in evaluation.metrics.items()}
    unusual = "no novelty: no category has two different images in train"
    if evaluation.detector is not None:
        count = int((evaluation.novelty < UNUSUAL).sum())
        unusual = f"{count} of these images resemble no category (novelty below {UNUSUAL})"
    return (
        f"test accuracy {test['test_accuracy']} ({len(evaluation.probs)} images), top-5 "
        f"{test['test_top5_accuracy']}, mean of the categories {test['test_class_accuracy']}\n"
        f"calibration error {test['test_ece']} at temperature {evaluation.temperature:.2f} "
        f"({test['test_ece_without_temperature']} without)\n{unusual}\n"
        f"saved {path}; to use it: python predict.py --input IMAGE --checkpoint {path}"
    )

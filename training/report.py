"""What a training reports: lines in the terminal, and tables and figures beside its checkpoint.

checkpoint_script.history.csv       checkpoint_script.curves.png
checkpoint_script.categories.csv    checkpoint_script.confusion.png
checkpoint_script.unreadable.csv    checkpoint_script.mistakes.png
checkpoint_script.metrics.json      checkpoint_script.report.html
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from evaluation.metrics import category_metrics, confident_mistakes
from evaluation.report_page import SIDE, choose_images, write_report_page
from image_files.names import display_names
from networks.checkpoint_files import load_torch
from networks.novelty import NOVELTY_LIMIT
from system.arguments import VERSION
from system.files import save_figure, write_atomically, write_csv
from system.messages import one_line
from system.outputs import Output, lock_path, path_beside
from system.pages import finite, percent
from training.features import Settings
from training.fitting import Evaluation
from utils import SPLITS, DataFolder, embed_images, load_image, thumbnail

MAX_MISTAKES = 12  # in the gallery
TABLES = ("history.csv", "categories.csv")
METRICS = "metrics.json"
PAGE = "report.html"
FIGURES = ("curves.png", "confusion.png", "mistakes.png")
UNREADABLE = "unreadable.csv"  # the images that were left out, if any


def outputs_of(checkpoint: Path, has_report: bool) -> list[Output]:
    """List the files that a training writes: the checkpoint and those beside it."""
    tables = [UNREADABLE, *(TABLES if has_report else ())]
    figures = FIGURES if has_report else ()
    return [
        Output("--save_dir", checkpoint, "checkpoint"),
        Output("--save_dir", lock_path(checkpoint), "lock"),
        *(Output("--save_dir", path_beside(checkpoint, t), "table of a training") for t in tables),
        *(Output("--save_dir", path_beside(checkpoint, name), "figure") for name in figures),
        *(_page_and_metrics(checkpoint) if has_report else ()),
    ]


def _page_and_metrics(checkpoint: Path) -> list[Output]:
    page = Output("--save_dir", path_beside(checkpoint, PAGE), "page")
    return [page, Output("--save_dir", path_beside(checkpoint, METRICS), "metrics")]


@dataclass(frozen=True)
class Training:
    """A training that has ended.

    Attributes:
        arguments: of the command line, by name.
        seconds: that it took.
        history: of each epoch, see `fitting.fit`.
        data: without images that could not be decoded.
        evaluation: of its images of test.
        names: category folder -> name; a category without one has its folder's name.
    """

    arguments: Mapping[str, Any]
    seconds: float
    history: list[dict]
    data: DataFolder
    evaluation: Evaluation
    names: Mapping[str, str]

    def display_names(self) -> list[str]:
        """List the names of the categories, (num_classes,)."""
        return display_names(list(self.data.class_to_idx), self.names)

    def unusual_share(self) -> float:
        """Return the share of images of test that resemble no category; NaN without a detector."""
        if self.evaluation.detector is None:
            return math.nan
        return float((self.evaluation.novelty < NOVELTY_LIMIT).float().mean())


def write_report(checkpoint: Path, training: Training) -> list[Path]:
    """Write tables, figures and a page of a training beside its checkpoint; returns their paths.

    Raises:
        UserError: a file cannot be written, or an image is no longer there.
    """
    from evaluation import plots  # here, because it takes a second

    history = training.history
    data = training.data
    labels = training.evaluation.labels
    probs = training.evaluation.probs
    names = training.display_names()
    tables = (history, category_table(list(data.class_to_idx), names, labels, probs))
    mistakes = mistakes_figure(
        data.root, files=data.paths("test"), labels=labels, probs=probs, names=names
    )
    figures = (
        plots.learning_curves(history, used_epoch=len(history)),
        plots.confusion_matrix(labels, probs.argmax(1), names),
        mistakes,
    )
    paths = [path_beside(checkpoint, name) for name in (*TABLES, *FIGURES, METRICS, PAGE)]
    *first_paths, metrics_path, page_path = paths
    for path, table in zip(first_paths[: len(TABLES)], tables, strict=True):
        write_csv(path, [list(table[0]), *(list(row.values()) for row in table)])
    for path, figure in zip(first_paths[len(TABLES) :], figures, strict=True):
        save_figure(figure, path)
    content = {"checkpoint": checkpoint.name} | describe_training(training)
    text = json.dumps(finite(content), indent=2) + "\n"
    write_atomically(metrics_path, lambda file: file.write(text.encode()))
    write_training_page(page_path, training)
    return paths


def describe_training(training: Training) -> dict[str, Any]:
    """Return the flags and the metrics of a training, for JSON."""
    metrics = training.history[-1] | training.evaluation.metrics
    return {
        "version": VERSION,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(training.seconds, 1),
        "metrics": metrics | {"test_unusual": training.unusual_share()},
        "temperature": training.evaluation.temperature,
        "arguments": training.arguments,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
        },
    }


def write_training_page(path: Path, training: Training) -> None:
    """Write the page of a training, with small copies of images of test."""
    data = training.data
    labels = training.evaluation.labels
    probs = training.evaluation.probs
    files = data.paths("test")
    indices, needed = choose_images(labels, probs)
    urls = embed_images([os.path.join(data.root, files[i]) for i in indices], SIDE, needed)
    unusual = training.unusual_share()
    counts = ", ".join(f"{len(data.of(split))} {split}" for split in SPLITS)
    write_report_page(
        path,
        title=f"Training on {data.root}",
        figures=[
            ("unusual images", "–" if math.isnan(unusual) else percent(unusual), "of test"),
            ("data", f"{len(data.images)} images", counts),
            ("time", f"{training.seconds:.0f} s", f"Image Classifier {VERSION}"),
        ],
        settings=training.arguments,
        history=training.history,
        categories=training.display_names(),
        labels=labels,
        probs=probs,
        files=files,
        images=dict(zip(indices, urls, strict=False)),
    )


def category_table(
    categories: Sequence[str], names: Sequence[str], labels: torch.Tensor, probs: torch.Tensor
) -> list[dict]:
    """Return one row a category: "category", "name" and its `category_metrics`."""
    metrics = category_metrics(labels, probs.argmax(1), len(names))
    rows = []
    for category, name, row in zip(categories, names, metrics, strict=True):
        rows.append({"category": category, "name": name, **row})
    return rows


def mistakes_figure(
    root: str,
    *,
    files: Sequence[str],
    labels: torch.Tensor,
    probs: torch.Tensor,
    names: Sequence[str],
):
    """Draw the most confident incorrect predictions; names: (num_classes,) of the categories."""
    from evaluation import plots

    mistakes = confident_mistakes(labels, probs)[:MAX_MISTAKES].tolist()
    return plots.mistakes_gallery(
        load_thumbnails(root, [files[i] for i in mistakes]),
        [files[i] for i in mistakes],
        [names[int(labels[i])] for i in mistakes],
        [names[int(probs[i].argmax())] for i in mistakes],
        [probs[i].max().item() for i in mistakes],
    )


def load_thumbnails(root: str, paths: Sequence[str]) -> list[Image.Image]:
    """Return small copies of images, whose paths are relative to `root`."""
    return [thumbnail(load_image(os.path.join(root, path))) for path in paths]


def format_plan(
    args: argparse.Namespace, data: DataFolder, path: Path, settings: Settings, views: int
) -> str:
    """Format what was found, what will be done, and the file that will be written."""
    lines = [
        f"{split:5}  {len(data.of(split)):7} images  {len(set(data.labels(split))):5} categories"
        for split in SPLITS
    ]
    precision = str(settings.precision).removeprefix("torch.")
    cache = "not stored (--no_cache)" if args.no_cache else f"stored in {args.cache_dir}"
    lines += [
        f"network   {args.arch}, weights {args.weights}, on {settings.device} in {precision}",
        f"views     {views} of each training image, {args.image_size} pixels",
        f"features  {cache}",
        f"writes    {path}",
    ]
    if path.exists():
        lines.append(f"replaces  {describe_checkpoint(path)}")
    return "\n".join(lines)


def describe_checkpoint(path: Path) -> str:
    """Return when a checkpoint was written, what it was trained on, and its test accuracy."""
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
    try:
        content = load_torch(path, "checkpoint")
        data_dir = content["arguments"]["data_dir"]
        accuracy = content["metrics"]["test_accuracy"]
        return one_line(f"that of {date}, trained on {data_dir}, test accuracy {accuracy:.1%}")
    except Exception:  # another program's
        return f"a file of {date}"


def format_results(path: Path, evaluation: Evaluation) -> str:
    """Format the metrics of test, and the command that uses the checkpoint."""
    test = {name: f"{value:.1%}" for name, value in evaluation.metrics.items()}
    unusual = "no novelty: no category has two different images in train"
    if evaluation.detector is not None:
        count = int((evaluation.novelty < NOVELTY_LIMIT).sum())
        unusual = f"{count} of these images resemble no category (novelty below {NOVELTY_LIMIT})"
    return (
        f"test accuracy {test['test_accuracy']} ({len(evaluation.probs)} images), top-5 "
        f"{test['test_top5_accuracy']}, mean of the categories {test['test_class_accuracy']}\n"
        f"calibration error {test['test_ece']} at temperature {evaluation.temperature:.2f} "
        f"({test['test_ece_without_temperature']} without)\n{unusual}\n"
        f"saved {path}; to use it:\n python predict.py --input IMAGE --checkpoint {path}"
    )

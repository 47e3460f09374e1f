"""Compare variants of the head and of its fitting by cross-validation, without the test images.

    python benchmarks/head_choices.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS

The images of train and valid are divided into 5 folds; each fold is held out in turn, for every
seed. Each row changes one setting of the defaults. Accuracy is that of the last epoch, so that the
held-out images do not choose the epoch. They are equally many of each category, even where the
training images are not: accuracy is also the mean of the categories' accuracies.
"""

from __future__ import annotations

import math
import statistics
from unittest import mock

import torch
from common import (
    data_parser,
    mean_and_deviation,
    run_script,
    show,
    training_features,
)

from model import Head
from system.arguments import whole_number
from training import fitting, optimization
from training.feature_store import default_cache_folder

FOLDS = 5
FEWER = 5  # training images per category, in the second column
UNEVEN = (4, 40)  # of the smallest and the largest category, in the third
COLUMNS = ("all training images", f"{FEWER} per category", f"{UNEVEN[0]} to {UNEVEN[1]}")
ALL = slice(None)
VARIANTS: dict[str, dict] = {  # keyword arguments of `fit`
    "the defaults": {},
    "the whole image alone": {"regions": slice(1)},
    "the whole and the middle": {"regions": slice(0, None, 5)},
    "the whole and the corners": {"regions": slice(5)},
    "two views": {"views": 2},
    "two views, the whole alone": {"views": 2, "regions": slice(1)},
    "features without a root": {"power": 2.0},
    "no label smoothing": {"smoothing": 0.0},
    "neither": {"power": 2.0, "smoothing": 0.0},
    "last stage alone": {"columns": slice(1024, None)},
    "averages alone": {"columns": [*range(512), *range(1024, 1536)]},
    "gradients not clipped": {"max_norm": math.inf},
    "batches of 32": {"batch_size": 32},
    "batches of 8": {"batch_size": 8},
    "learning rate 0.01": {"learning_rate": 0.01},
    "learning rate 0.1": {"learning_rate": 0.1},
    "1024 hidden units": {"hidden_units": 1024},
    "dropout 0.25": {"dropout": 0.25},
    "20 epochs": {"epochs": 20},
    "categories not balanced": {"balanced": False},
}


def folds_of(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the fold (N,) of each image; each category is spread evenly."""
    fold, generator = torch.empty_like(labels), torch.Generator().manual_seed(seed)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        fold[rows[torch.randperm(len(rows), generator=generator)]] = torch.arange(len(rows)) % FOLDS
    return fold


def select_rows(rows: torch.Tensor, labels: torch.Tensor, column: int, seed: int) -> torch.Tensor:
    """Select the training rows of a column of COLUMNS; which categories are large is random."""
    if column == 0:
        return rows
    generator = torch.Generator().manual_seed(seed)
    rows = rows[torch.randperm(len(rows), generator=generator)]  # neighbors may be of one flower
    classes = int(labels.max()) + 1
    sizes = [FEWER] * classes
    if column == 2:
        least, most = UNEVEN
        steps = torch.randperm(classes, generator=generator) / (classes - 1)  # 0-1
        sizes = (least * (most / least) ** steps).round().int().tolist()
    return torch.cat([rows[labels[rows] == label][:size] for label, size in enumerate(sizes)])


def unbalanced_order(labels: torch.Tensor) -> torch.Tensor:
    """Return each sample once, in random order; replaces `balanced_order`."""
    return torch.randperm(len(labels))


def fit(
    stored: torch.Tensor,
    labels: torch.Tensor,
    held_out: torch.Tensor,
    seed: int,
    *,
    column: int = 0,
    balanced: bool = True,
    columns=ALL,
    regions=ALL,
    power: float = 1.0,
    smoothing: float = fitting.LABEL_SMOOTHING,
    views: int = 1,
    max_norm: float = optimization.MAX_NORM,
    batch_size: int = 16,
    learning_rate: float = 0.03,
    hidden_units: int = 512,
    dropout: float = 0.5,
    epochs: int = 7,
) -> dict:
    """Fit a head; returns the last epoch's row of the history, with `held_out` as valid.

    Args:
        stored, labels: of all images, from `training_features`.
        held_out: (N,) bool.
        column: of COLUMNS: which of the other images are used for training.
        columns: which features are used.
    """
    stored = stored[:, :, regions][..., columns].pow(power)
    rows = select_rows((~held_out).nonzero()[:, 0], labels, column, seed)
    samples = fitting.Samples(
        stored.flatten(0, 1),
        labels.repeat_interleave(2),
        {
            "train": torch.cat([2 * rows + view for view in range(views)]),
            "valid": 2 * held_out.nonzero()[:, 0],
        },
    )
    torch.manual_seed(seed)
    classes = int(labels.max()) + 1
    order = fitting.balanced_order if balanced else unbalanced_order
    with (
        mock.patch.object(optimization, "MAX_NORM", max_norm),
        mock.patch.multiple(fitting, balanced_order=order, LABEL_SMOOTHING=smoothing),
    ):
        history = fitting.fit(
            Head(stored.shape[-1], hidden_units, classes, classes, dropout),
            samples,
            fitting.FitSettings(epochs, learning_rate, batch_size),
        )
    return history[-1]


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--cache_dir", default=str(default_cache_folder()))
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--folds", type=whole_number(1, FOLDS), default=FOLDS, help="to hold out, of 5"
    )
    names = list(VARIANTS)
    parser.add_argument("--variants", nargs="+", choices=names, default=names, metavar="NAME")
    args = parser.parse_args()
    stored, labels = training_features(args, (0, 1))
    rows, result = [], {}
    for name in args.variants:
        row = [name]
        for column, title in enumerate(COLUMNS):
            means = []
            for seed in args.seeds:
                fold = folds_of(labels, seed)
                fitted = [
                    fit(stored, labels, fold == number, seed, column=column, **VARIANTS[name])
                    for number in range(args.folds)
                ]
                means.append(100 * statistics.mean(epoch["valid_accuracy"] for epoch in fitted))
            row.append(mean_and_deviation(means, 2))
            result[f"{name}, {title}"] = means
        rows.append(row)
        print(*row, flush=True)
    title = f"{len(labels)} images, {args.folds} folds, seeds {args.seeds}: held-out accuracy"
    show(title, ["", *COLUMNS], rows, result)


if __name__ == "__main__":
    run_script(main)

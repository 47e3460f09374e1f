"""What the head and its fitting were chosen by: cross-validation, never the test pictures.

    python benchmarks/head_choices.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS

Pools train and valid, and holds each of 5 folds out in turn, for every seed. Each row changes one
thing of the defaults. Accuracy is that of the last epoch, so that no epoch is chosen by it. The
categories of the held-out pictures are of one size, also where those of the training pictures are
not, so that it is the mean of the categories' accuracies, too.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics

import torch
from common import show

import features
import train
from model import PARTS, Backbone, Head, load_weights
from train import fit
from utils import MEANS, STDS, read_data_folder, select_device, select_precision

FOLDS = 5
FEWER = 5  # training pictures a category, in the second column
UNEVEN = (4, 40)  # of the smallest and the largest category, in the third
COLUMNS = ("all training pictures", f"{FEWER} a category", f"{UNEVEN[0]} to {UNEVEN[1]}")
ALL = slice(None)
BALANCED_ORDER = train.balanced_order
VARIANTS = {
    "the defaults": {},
    "the whole picture alone": {"parts": slice(1)},
    "the whole and the middle": {"parts": slice(0, None, 5)},
    "the whole and the corners": {"parts": slice(5)},
    "two views": {"views": 2},
    "two views, the whole alone": {"views": 2, "parts": slice(1)},
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
    "categories as they come": {"balanced": False},
}

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--data_dir", default=os.environ.get("FLOWERS_DIR"))
parser.add_argument("--weights", default=os.environ.get("VGG16_WEIGHTS"))
parser.add_argument("--cache_dir", default=str(features.default_cache_folder()))
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--folds", type=int, default=FOLDS, help="to hold out, of 5")
parser.add_argument("--variants", nargs="+", default=list(VARIANTS))


def extract(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, 2, len(PARTS), 2048) of two views, and labels (N,), without the test split."""
    data, device = read_data_folder(args.data_dir), select_device("cpu")
    backbone = Backbone("vgg16")
    load_weights(backbone, "vgg16", args.weights)
    paths = data.paths["train"] + data.paths["valid"]
    kept = features.extract(
        backbone,
        args.data_dir,
        [(path, view) for path in paths for view in (0, 1)],
        means=MEANS,
        stds=STDS,
        cache=args.cache_dir,
        device=device,
        precision=select_precision(device),
        workers=1,
    )
    labels = torch.tensor(data.labels["train"] + data.labels["valid"])
    return kept[torch.arange(len(kept))].unflatten(0, (len(labels), 2)), labels


def folds_of(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """The fold (N,) of each picture; each category is spread evenly."""
    fold, generator = torch.empty_like(labels), torch.Generator().manual_seed(seed)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        fold[rows[torch.randperm(len(rows), generator=generator)]] = torch.arange(len(rows)) % FOLDS
    return fold


def some_of(rows: torch.Tensor, labels: torch.Tensor, column: int, seed: int) -> torch.Tensor:
    """The training rows of a column of the table; which categories are large depends on `seed`."""
    if column == 0:
        return rows
    generator = torch.Generator().manual_seed(seed)
    rows = rows[torch.randperm(len(rows), generator=generator)]  # neighbours may be of one flower
    classes = int(labels.max()) + 1
    sizes = [FEWER] * classes
    if column == 2:
        least, most = UNEVEN
        steps = torch.randperm(classes, generator=generator) / (classes - 1)  # 0-1
        sizes = (least * (most / least) ** steps).round().int().tolist()
    return torch.cat([rows[labels[rows] == label][:size] for label, size in enumerate(sizes)])


def unbalanced_order(labels: torch.Tensor) -> torch.Tensor:
    """In place of `train.balanced_order`: each sample once."""
    return torch.randperm(len(labels))


def accuracy(
    kept: torch.Tensor,
    labels: torch.Tensor,
    held_out: torch.Tensor,
    seed: int,
    *,
    column: int = 0,
    balanced: bool = True,
    columns=ALL,
    parts=ALL,
    power: float = 1.0,
    smoothing: float = train.LABEL_SMOOTHING,
    views: int = 1,
    max_norm: float = train.MAX_NORM,
    batch_size: int = 16,
    learning_rate: float = 0.03,
    hidden_units: int = 512,
    dropout: float = 0.5,
    epochs: int = 7,
) -> float:
    """Accuracy (fraction 0-1) on the pictures that `held_out` (N,) bool leaves to it."""
    kept = kept[:, :, parts][..., columns].pow(power)
    rows = some_of((~held_out).nonzero()[:, 0], labels, column, seed)
    train.balanced_order = BALANCED_ORDER if balanced else unbalanced_order
    train.LABEL_SMOOTHING, train.MAX_NORM, train.PARTS = smoothing, max_norm, PARTS[parts]
    torch.manual_seed(seed)
    classes = int(labels.max()) + 1
    history = fit(
        Head(kept.shape[-1], hidden_units, classes, classes, dropout),
        kept.flatten(0, 1),
        labels.repeat_interleave(2),
        torch.cat([2 * rows + view for view in range(views)]),
        2 * held_out.nonzero()[:, 0],
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
    )
    return history[-1]["valid_accuracy"]


def main() -> None:
    args = parser.parse_args()
    kept, labels = extract(args)
    rows, result = [], {}
    for name in args.variants:
        row = [name]
        for column, title in enumerate(COLUMNS):
            means = []
            for seed in args.seeds:
                fold = folds_of(labels, seed)
                each = [
                    accuracy(kept, labels, fold == number, seed, column=column, **VARIANTS[name])
                    for number in range(args.folds)
                ]
                means.append(100 * statistics.mean(each))
            spread = statistics.stdev(means) if len(means) > 1 else 0.0
            row.append(f"{statistics.mean(means):.2f} ± {spread:.2f} %")
            result[f"{name}, {title}"] = means
        rows.append(row)
        print(*row, flush=True)
    title = f"{len(labels)} pictures, {args.folds} folds, seeds {args.seeds}: held-out accuracy"
    show(title, ["", *COLUMNS], rows, result)


if __name__ == "__main__":
    main()

"""Accuracy with few training images of each category, of both parts of the head and of their sum.

    python benchmarks/few_images.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS

For every seed, some images of each category of train and valid are drawn to be fitted on, and all
others of train and valid are held out; those of test are not used.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import (
    DROPOUT,
    HIDDEN,
    SETTINGS,
    data_parser,
    mean_and_deviation,
    run_script,
    show,
    training_features,
)

from model import Head
from system.arguments import whole_number
from training import fitting
from training.feature_store import default_cache_folder
from training.head_outputs import BATCH_SIZE

VIEWS = (1, 2)
PARTS: dict[str, Callable[[Head, torch.Tensor], torch.Tensor]] = {
    "hidden layer": lambda head, x: head(x).mean(1),
    "linear": lambda head, x: head.linear(head.standardize(x)).mean(1),
    "both": lambda head, x: head.image_outputs(x)[1],
}


def draw(labels: torch.Tensor, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of `count` images of each label, and those of all others."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    others = []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        drawn.append(rows[:count])
        others.append(rows[count:])
    return torch.cat(drawn), torch.cat(others)


def measure(
    stored: torch.Tensor, labels: torch.Tensor, count: int, views: int, seed: int
) -> dict[str, float]:
    """Return the accuracy of each of PARTS on the images held out, per cent.

    Args:
        stored: (N, 2, num_regions, num_features), the plain view and its mirror image.
    """
    drawn, others = draw(labels, count, seed)
    samples = fitting.Samples(
        stored[drawn, :views].flatten(0, 1),
        labels[drawn].repeat_interleave(views),
        {"train": torch.arange(len(drawn) * views), "valid": torch.arange(0)},
        views,
    )
    torch.manual_seed(seed)
    classes = int(labels.max()) + 1
    head = Head(stored.shape[-1], HIDDEN, classes, classes, DROPOUT)
    fitting.fit(head, samples, SETTINGS)
    correct = dict.fromkeys(PARTS, 0)
    with torch.inference_mode():
        for batch in others.split(BATCH_SIZE):
            for name, logits_of in PARTS.items():
                predicted = logits_of(head, stored[batch, 0].float()).argmax(1)
                correct[name] += int((predicted == labels[batch]).sum())
    return {name: 100 * number / len(others) for name, number in correct.items()}


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--cache_dir", default=str(default_cache_folder()))
    counts = [2, 5, 10, 20, 40]
    parser.add_argument("--counts", type=whole_number(1), nargs="+", default=counts)
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    stored, labels = training_features(args, (0, 1))
    results: dict[tuple[str, int], list[list[float]]] = {}
    for views in VIEWS:
        for count in args.counts:
            measured = [measure(stored, labels, count, views, seed) for seed in args.seeds]
            for name in PARTS:
                values = [result[name] for result in measured]
                results.setdefault((name, views), []).append(values)
            print(views, count, measured, flush=True)
    rows = []
    for (name, views), columns in results.items():
        rows.append([name, views, *(mean_and_deviation(values, 1) for values in columns)])
    title = f"{args.data_dir}, train and valid, accuracy of images held out, seeds {args.seeds}"
    result = {f"{name}, {views}": columns for (name, views), columns in results.items()}
    show(title, ["part of the head", "views", *args.counts], rows, result)


if __name__ == "__main__":
    run_script(main)

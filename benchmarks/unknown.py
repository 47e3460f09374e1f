"""How well images of no category can be distinguished from test images of the categories.

    python benchmarks/unknown.py --data_dir flowers --weights imagenet --held_out 20
    python benchmarks/unknown.py --held_out 0 --unknown photos
    python benchmarks/unknown.py --held_out 0 --unknown photos --per_category 5

For every seed, some categories are held out at random: all of their images are unknown images that
are *near* the others. Images of other things, in a folder, are *far* (by default the project's
drawings, which are of flowers as well). The head is fitted at default flags on train of the
remaining categories, and its novelty calibrated on their valid; known images are those of test.
"""

from __future__ import annotations

import argparse

import torch
from common import (
    DROPOUT,
    HIDDEN,
    ROOT,
    SETTINGS,
    data_parser,
    extract,
    folder_features,
    mean_and_deviation,
    run_script,
    show,
)

from evaluation.calibration import fit_temperature
from evaluation.metrics import auroc, fpr95
from model import Head
from networks.novelty import NOVELTY_LIMIT, fit_detector
from system.arguments import whole_number
from training import fitting
from training.feature_store import default_cache_folder
from training.features import views_of
from utils import SPLITS, read_data_folder

Images = dict[str, torch.Tensor]  # by set: train, valid, test, near, far


def choose(
    labels: torch.Tensor, splits: torch.Tensor, held_out: int, per_category: int | None, seed: int
) -> tuple[Images, torch.Tensor]:
    """Hold categories out at random.

    Args:
        labels, splits: (N,) index of each image's category, and of its split in SPLITS.
        per_category: images of train that are used (None: all).

    Returns:
        The rows of train, valid, test and near, and new labels (N,); those held out have -1.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(int(labels.max()) + 1, generator=generator)
    renumbered = torch.full_like(order, -1)
    renumbered[order[held_out:].sort().values] = torch.arange(len(order) - held_out)
    new = renumbered[labels]
    rows = {name: ((splits == i) & (new >= 0)).nonzero()[:, 0] for i, name in enumerate(SPLITS)}
    if per_category:
        shuffled = rows["train"][torch.randperm(len(rows["train"]), generator=generator)]
        groups = [shuffled[new[shuffled] == label][:per_category] for label in new.unique()]
        rows["train"] = torch.cat(groups)
    return rows | {"near": (new < 0).nonzero()[:, 0]}, new


def hidden_layers(head: Head, values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return ways (N, hidden_units) to reduce the hidden layers of an image's regions to one."""
    before = head.layers[0](head.standardize(values))  # (N, len(REGIONS), hidden_units)
    regions = before.relu()
    return {
        "mean over regions": regions.mean(1),
        "maximum over regions": regions.amax(1),
        "whole image": regions[:, 0],
        "mean before ReLU": before.mean(1),
    }


def scores_of(
    head: Head, values: dict[str, torch.Tensor], train_labels: torch.Tensor, valid: torch.Tensor
) -> dict[str, Images]:
    """Return each score of each image, lower for unknown ones; "novelty" is the program's.

    Args:
        values: features of train, valid, test, near and far.
        valid: labels of valid.
    """
    classes = head.num_classes
    layers = {name: hidden_layers(head, x) for name, x in values.items()}
    logits = {name: head.image_outputs(x)[1] for name, x in values.items()}
    temperature = fit_temperature(logits["valid"], valid)
    probs = {name: (x / temperature).softmax(1).amax(1) for name, x in logits.items()}
    scores = {"probability": probs}
    for layer in layers["train"]:
        detector = fit_detector([(layers["train"][layer], train_labels)], HIDDEN, classes)
        assert detector is not None
        measured = {name: detector.scores(x[layer], logits[name]) for name, x in layers.items()}
        scores[f"distance, {layer}"] = {name: -x[:, 0] for name, x in measured.items()}
        if layer != "mean over regions":
            continue
        scores["uncertainty"] = {name: -x[:, 1] for name, x in measured.items()}
        detector.calibrate(*measured["valid"].unbind(1))
        scores["novelty"] = {name: detector.novelty_of(x) for name, x in measured.items()}
    return scores


@torch.no_grad()
def measure(
    args: argparse.Namespace,
    stored: torch.Tensor,
    labels: torch.Tensor,
    splits: torch.Tensor,
    far: torch.Tensor,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Fit a head; return for each score the AUROC and so on, in per cent."""
    rows, new = choose(labels, splits, args.held_out, args.per_category, seed)
    classes = int(new.max()) + 1
    torch.manual_seed(seed)
    head = Head(stored.shape[-1], HIDDEN, classes, classes, DROPOUT)
    with torch.enable_grad():
        samples = fitting.Samples(stored, new, rows)
        fitting.fit(head, samples, SETTINGS)
    values = {name: stored[index] for name, index in rows.items()} | {"far": far}
    table = {}
    for score, x in scores_of(head, values, new[rows["train"]], new[rows["valid"]]).items():
        table[score] = {}
        for kind in ("far", "near")[: 1 + (args.held_out > 0)]:
            table[score][f"{kind} AUROC"] = 100 * auroc(x["test"], x[kind])
            table[score][f"{kind} FPR95"] = 100 * fpr95(x["test"], x[kind])
        if score == "novelty":
            for kind in ("test", "far"):
                table[score][f"{kind} below {NOVELTY_LIMIT}"] = (
                    100 * (x[kind] < NOVELTY_LIMIT).float().mean().item()
                )
            table[score]["test below 0.05"] = 100 * (x["test"] < 0.05).float().mean().item()
    return table


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--unknown", default=str(ROOT / "assets" / "sample_flowers"))
    parser.add_argument("--held_out", type=whole_number(0), required=True, help="categories")
    parser.add_argument("--per_category", type=whole_number(1), help="images of train (all)")
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache_dir", default=str(default_cache_folder()))
    args = parser.parse_args()
    data = read_data_folder(args.data_dir)
    features_of_data = extract(args, args.data_dir, views_of(data.images, [0]), strict=True)
    stored = features_of_data[torch.arange(len(data.images))]
    labels = torch.tensor([label for split in SPLITS for label in data.labels(split)])
    sizes = torch.tensor([len(data.of(split)) for split in SPLITS])
    splits = torch.arange(len(SPLITS)).repeat_interleave(sizes)
    far = folder_features(args, args.unknown)
    results = [measure(args, stored, labels, splits, far, seed) for seed in args.seeds]
    columns = list(results[0]["novelty"])
    rows = []
    for score in results[0]:
        cells = [[r[score][c] for r in results] if c in results[0][score] else [] for c in columns]
        rows.append([score, *(mean_and_deviation(c, 2) if c else "" for c in cells)])
    title = (
        f"{args.data_dir} with {args.held_out} categories held out, far: {len(far)} images of "
        f"{args.unknown}, {args.per_category or 'all'} training images of each category, mean ± "
        f"standard deviation over seeds {args.seeds}"
    )
    show(title, ["score", *columns], rows, {"results": results})


if __name__ == "__main__":
    run_script(main)

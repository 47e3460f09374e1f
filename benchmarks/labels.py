"""How many planted label errors and near-duplicates the label check finds.

    python benchmarks/labels.py --data_dir flowers17 --weights imagenet

Labels of some images are changed: at random ("random"), to the category that is most similar to
the image's own ("similar"), or only between the two categories that are most similar ("pair").
The images are then ranked by `label_quality` after cross-validation, as the program does, and by
two baselines: the loss of one network that was trained on all images, as it is in training (fastai
shows the images with the highest loss), and the calibrated probability that it gives to the label.
k is the number of changed labels.

Copies of some images are planted: re-encoded, resized, cropped, mirrored. A pair that is found
between images that are no copies of each other is only false if it is none without the copies.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import (
    DROPOUT,
    HIDDEN,
    SETTINGS,
    data_parser,
    extract,
    mean_and_deviation,
    run_script,
    show,
)
from PIL import Image, ImageOps

from checks.labels import find_suspects, label_quality
from checks.near_duplicates import LIMIT, connect, embed, find_pairs
from evaluation.calibration import fit_temperature
from image_files.digests import digest_of_file
from model import Head
from system.arguments import whole_number
from training import fitting
from training.feature_store import default_cache_folder
from training.features import View, views_of
from training.sampling import divide_into_folds
from utils import SPLITS, load_image, read_data_folder

SHARES = (0.02, 0.05, 0.1)  # of labels that are changed
KINDS = ("random", "similar", "pair")
COLUMNS = ("precision at k", "average precision", "precision", "recall")


# ---------------------------------------------------------------- labels


def most_similar(values: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, tuple]:
    """Return the category most similar to each (num_classes,), and the two most similar ones.

    Args:
        values: (N, D) features; categories are compared by their means.
    """
    values = (values - values.mean(0)) / values.std(0).clamp(min=1e-3)
    means = torch.stack([values[labels == label].mean(0) for label in labels.unique()])
    distances = torch.cdist(means, means).fill_diagonal_(torch.inf)
    nearest = int(distances.argmin())
    return distances.argmin(1), divmod(nearest, len(means))


def change_labels(
    labels: torch.Tensor, share: float, kind: str, similar: tuple, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Change some labels; see above.

    Returns:
        New labels (N,), and which were changed (N,) bool.
    """
    generator = torch.Generator().manual_seed(seed)
    neighbors, pair = similar
    rows = torch.arange(len(labels))
    if kind == "pair":
        rows = rows[(labels == pair[0]) | (labels == pair[1])]
    rows = rows[torch.randperm(len(rows), generator=generator)[: round(share * len(rows))]]
    changed, new = torch.zeros(len(labels), dtype=torch.bool), labels.clone()
    changed[rows] = True
    if kind == "random":
        count = len(neighbors)
        new[rows] = (
            labels[rows] + torch.randint(1, count, rows.shape, generator=generator)
        ) % count
    elif kind == "similar":
        new[rows] = neighbors[labels[rows]]
    else:
        new[rows] = sum(pair) - labels[rows]
    return new, changed


def ranking(scores: torch.Tensor, changed: torch.Tensor) -> dict[str, float]:
    """Return precision at k and average precision, in per cent; low scores come first."""
    hits = changed[scores.argsort(stable=True)].double()
    count = int(changed.sum())
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    average = float((precision * hits).sum() / count)
    return {"precision at k": 100 * float(hits[:count].mean()), "average precision": 100 * average}


def selection(rows: torch.Tensor, changed: torch.Tensor) -> dict[str, float]:
    """Return precision and recall of images that are selected, in per cent."""
    hits = float(changed[rows].sum())
    precision, recall = hits / max(1, len(rows)), hits / float(changed.sum())
    return {"precision": 100 * precision, "recall": 100 * recall}


def confident_learning(probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the rows that confident learning selects (Northcutt et al. 2021, section 3.1).

    A category is confident if its probability is at least the mean of that over the images that
    are labeled with it; the most likely confident category is not the label.
    """
    own = probs.gather(1, labels[:, None])[:, 0]
    means = torch.stack([own[labels == label].mean() for label in range(probs.shape[1])])
    confident = torch.where(probs >= means, probs, -1)
    return ((confident.amax(1) >= 0) & (confident.argmax(1) != labels)).nonzero()[:, 0]


def new_head(values: torch.Tensor, classes: int, seed: int) -> Head:
    """Return a head with random weights, for features (N, len(REGIONS), num_features)."""
    torch.manual_seed(seed)
    return Head(values.shape[-1], HIDDEN, classes, classes, DROPOUT)


def measure_labels(
    values: torch.Tensor,
    labels: torch.Tensor,
    groups: torch.Tensor,
    changed: torch.Tensor,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Rank and select images whose labels may be incorrect, in each way."""
    classes, rows = int(labels.max()) + 1, torch.arange(len(labels))
    head = new_head(values, classes, seed)
    all_rows = fitting.Samples(values, labels, {"train": rows, "valid": rows[:1]})
    start = time.perf_counter()
    fitting.fit(head, all_rows, SETTINGS)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(
                head(values[:, region]),
                labels,
                label_smoothing=fitting.LABEL_SMOOTHING,
                reduction="none",
            )
            for region in range(values.shape[1])
        ]
        _, logits = head.image_outputs(values)
    own = (logits / fit_temperature(logits, labels)).softmax(1).gather(1, labels[:, None])[:, 0]
    empty = rows[:0]
    samples = fitting.Samples(values, labels, {"train": rows, "valid": empty, "test": empty})
    folds = divide_into_folds(labels, groups, fitting.FOLDS, seed)
    start = time.perf_counter()
    head = new_head(values, classes, seed)
    result = fitting.cross_validate(head, samples, folds, SETTINGS)
    return {
        "loss in training": ranking(-torch.stack(losses).mean(0), changed),
        "probability without cross-validation": ranking(own, changed),
        "the program": ranking(label_quality(result.probs, labels), changed)
        | selection(find_suspects(result.probs, labels).rows, changed)
        | {"fits": (time.perf_counter() - start) / seconds},
        "confident learning": selection(confident_learning(result.probs, labels), changed),
    }


# ---------------------------------------------------------------- near-duplicates


def changes() -> dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]]:
    """Return ways to change an image, by name."""

    def encode(quality: int, image: Image.Image, _) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    def resize(factor: float, image: Image.Image, _) -> Image.Image:
        size = [round(factor * side) for side in image.size]
        return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)

    def crop(share: float, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = (round((1 - share) * side) for side in image.size)
        x, y = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
        return image.crop((int(x), int(y), int(x) + width, int(y) + height))

    return (
        {f"JPEG quality {quality}": partial(encode, quality) for quality in (40, 60, 80, 95)}
        | {f"resized to {factor:.0%}": partial(resize, factor) for factor in (0.5, 0.75, 1.5, 2)}
        | {f"cropped by {share:.0%}": partial(crop, share) for share in (0.05, 0.1, 0.15)}
        | {"mirrored": lambda image, _: ImageOps.mirror(image)}
    )


def measure_copies(
    args: argparse.Namespace, paths: list[str], originals: torch.Tensor
) -> dict[str, dict[str, float]]:
    """Plant changed copies of some images, each kind by itself, and look for near-duplicates.

    Args:
        originals: (N, num_features / 2), averages of the images with these paths.
    """
    rng, results = np.random.default_rng(0), {}
    chosen = sorted(rng.choice(len(paths), min(args.copies, len(paths)), replace=False).tolist())
    before = _pairs_below(originals, LIMIT)
    for name, change in changes().items():
        with tempfile.TemporaryDirectory() as folder:
            for row in chosen:
                copy = change(load_image(os.path.join(args.data_dir, paths[row])), rng)
                quality = 90 if copy.format is None else "keep"
                copy.save(Path(folder, f"{row}.jpg"), "JPEG", quality=quality)
            files = [f"{row}.jpg" for row in chosen]
            views = [View(file, 0, digest_of_file(os.path.join(folder, file))) for file in files]
            stored = extract(args, folder, views, strict=True)
            copies = stored.averages(torch.arange(len(views)))
        source = dict(enumerate(chosen, len(originals)))  # of each copy
        distances = _pairs_below(torch.cat([originals, copies]), 1.2)
        true = {(min(a, b), max(a, b)) for b, a in source.items()}
        found = {pair: d for pair, d in distances.items() if d < LIMIT}
        of_originals = {
            (min(pair), max(pair))
            for pair in ((source.get(a, a), source.get(b, b)) for a, b in found)
            if pair[0] != pair[1]
        }
        nearest = sorted(distances.get(pair, 1.2) for pair in true)
        results[name] = {
            "found": 100 * len(true & found.keys()) / len(true),
            "median distance": nearest[len(nearest) // 2],
            "new pairs": len(of_originals - before.keys()),
        }
    return results


def measure_time(count: int) -> list[str]:
    """Look for near-duplicates among random features; returns seconds and GB of memory."""
    values = torch.rand(count, 1024, generator=torch.Generator().manual_seed(0)).half()
    before, start = most_memory(), time.perf_counter()
    find_pairs(embed(lambda: (batch.float() for batch in values.split(256))))
    return [f"{time.perf_counter() - start:.1f}", f"{most_memory() - before:.1f}"]


def most_memory() -> float:
    """Return the most memory that this process has used, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _pairs_below(values: torch.Tensor, limit: float) -> dict[tuple[int, int], float]:
    """Return the distance of each pair of images (N, D) below a limit."""
    pairs = find_pairs(embed(lambda: values.split(256)), limit=limit)
    keys = zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
    return dict(zip(keys, pairs.distance.tolist(), strict=True))


# ---------------------------------------------------------------- output


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", default=[0, 1, 2])
    parser.add_argument("--copies", type=whole_number(1), default=170, help="of each kind")
    parser.add_argument("--cache_dir", default=str(default_cache_folder()))
    args = parser.parse_args()
    data = read_data_folder(args.data_dir)
    paths = data.all_paths()
    labels = torch.tensor([label for split in SPLITS for label in data.labels(split)])
    stored = extract(args, args.data_dir, views_of(data.images, [0]), strict=True)
    rows = torch.arange(len(paths))
    values, averages = stored[rows], stored.averages(rows)
    copies = measure_copies(args, paths, averages)
    pairs = find_pairs(embed(lambda: averages.split(256)))
    print(f"{len(pairs.first)} pairs of near-duplicates in {args.data_dir} itself")
    groups = connect(pairs, len(paths))
    similar = most_similar(averages, labels)
    table, results = [], {}
    for kind in KINDS:
        for share in SHARES:
            runs = []
            for seed in args.seeds:
                new, changed = change_labels(labels, share, kind, similar, seed)
                runs.append(measure_labels(values, new, groups, changed, seed))
            results[f"{kind} {share}"] = runs
            for way in runs[0]:
                numbers = [[run[way][c] for run in runs if c in run[way]] for c in COLUMNS]
                cells = [mean_and_deviation(v, 1) if v else "" for v in numbers]
                table.append([kind, f"{share:.0%}", way, *cells])
    fits = [run["the program"]["fits"] for runs in results.values() for run in runs]
    title = (
        f"{args.data_dir}, {len(paths)} images, mean ± standard deviation over seeds {args.seeds}; "
        f"cross-validation took as long as {np.median(fits):.1f} fits (median)"
    )
    show(title, ["changed", "share", "by", *COLUMNS], table, {"results": results})
    rows_of_copies: list[list] = [
        [name, f"{r['found']:.1f} %", f"{r['median distance']:.2f}", r["new pairs"]]
        for name, r in copies.items()
    ]
    header = ["copies", "found", "median distance", "new pairs of originals"]
    show(f"{args.copies} planted copies of each kind", header, rows_of_copies, {"results": copies})
    times = [[count, *measure_time(count)] for count in (8_000, 100_000)]
    show("near-duplicates among random features", ["images", "seconds", "GB"], times, {})


if __name__ == "__main__":
    run_script(main)

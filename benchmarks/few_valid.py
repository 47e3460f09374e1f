"""What is known of new images if valid has few: calibrated on it alone, and with those of train.

    python benchmarks/few_valid.py --unknown photos

For every seed, some categories and some of their images of train and valid are chosen at random,
and divided as train.py divides a folder without splits. All other images of train and valid of
these categories are new ones, with those of the test that is divided off. Images of other things
are in a folder.
"""

from __future__ import annotations

import copy

import torch
from common import (
    DROPOUT,
    HIDDEN,
    SETTINGS,
    data_parser,
    folder_features,
    mean_and_deviation,
    run_script,
    show,
    training_features,
)

from checks.labels import group_near_duplicates
from image_files.splits import divide
from model import Head
from networks.novelty import NOVELTY_LIMIT
from system.arguments import whole_number
from training import fitting
from training.feature_store import default_cache_folder
from training.features import averages_of
from utils import SPLITS

SIZES = ((3, 8), (5, 5), (5, 8), (10, 8), (17, 8), (5, 12), (5, 20))  # categories, images of each
RULES = ("valid", "valid and train")


def draw(labels: torch.Tensor, classes: int, count: int, seed: int) -> tuple[dict, torch.Tensor]:
    """Choose categories and images.

    Returns:
        The rows of each split, those of test with all others of the chosen categories; and labels
        (N,) from 0 of the chosen categories, -1 of others.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(int(labels.max()) + 1, generator=generator)[:classes]
    renumbered = torch.full_like(labels, -1)
    rows: dict[str, list[int]] = {split: [] for split in SPLITS}
    for index, label in enumerate(chosen.tolist()):
        group = (labels == label).nonzero()[:, 0]
        group = group[torch.randperm(len(group), generator=generator)]
        renumbered[group] = index
        digests = {str(row): f"{number:04x}" for number, row in enumerate(group[:count].tolist())}
        for row, split in divide(digests, ("valid", "test")).items():
            rows[split].append(int(row))
        rows["test"] += group[count:].tolist()
    return {split: torch.tensor(rows[split]) for split in SPLITS}, renumbered


def measure(
    stored: torch.Tensor,
    labels: torch.Tensor,
    far: torch.Tensor,
    classes: int,
    count: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Fit a head; return for each of RULES the shares that are reported and so on, in per cent.

    Args:
        stored: (N, 2, num_regions, num_features), the plain view and its mirror image.
        far: (M, num_regions, num_features), of images of no category.
    """
    drawn, new = draw(labels, classes, count, seed)
    features = torch.cat(
        [stored[drawn["train"]].flatten(0, 1), stored[drawn["valid"], 0], stored[drawn["test"], 0]]
    )
    sizes = [2 * len(drawn["train"]), len(drawn["valid"]), len(drawn["test"])]
    rows = dict(zip(drawn, torch.arange(sum(sizes)).split(sizes), strict=True))
    of_train = new[drawn["train"]].repeat_interleave(2)
    samples = fitting.Samples(
        features, torch.cat([of_train, new[drawn["valid"]], new[drawn["test"]]]), rows, views=2
    )
    torch.manual_seed(seed)
    head = Head(stored.shape[-1], HIDDEN, classes, classes, DROPOUT)
    untrained = copy.deepcopy(head)
    fitting.fit(head, samples, SETTINGS)
    averages = averages_of(stored[drawn["train"], 0, 0].float())
    groups = group_near_duplicates(lambda: [averages], len(averages))
    others = fitting.predict_train(untrained, samples, groups, SETTINGS)
    results = {}
    for rule, known in zip(RULES, (None, others), strict=True):
        evaluation = fitting.evaluate(head, samples, others=known)
        with torch.inference_mode():
            novelty = evaluation.detector(*head.image_outputs(far.float()))
        results[rule] = {
            "new images reported": 100 * (evaluation.novelty < NOVELTY_LIMIT).float().mean().item(),
            "of no category reported": 100 * (novelty < NOVELTY_LIMIT).float().mean().item(),
            "calibration error": 100 * evaluation.metrics["test_ece"],
        }
    return results


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--unknown", required=True, help="folder of images of no category")
    parser.add_argument("--seeds", type=whole_number(1), default=10, help="number of them")
    parser.add_argument("--cache_dir", default=str(default_cache_folder()))
    args = parser.parse_args()
    stored, labels = training_features(args, (0, 1))
    far = folder_features(args, args.unknown)
    rows, results = [], {}
    for classes, count in SIZES:
        if classes > int(labels.max()) + 1:
            continue
        of_size = [measure(stored, labels, far, classes, count, seed) for seed in range(args.seeds)]
        results[f"{classes}, {count}"] = of_size
        for rule in RULES:
            cells = [[one[rule][column] for one in of_size] for column in of_size[0][rule]]
            highest = f"{max(cells[0]):.1f} %"
            rows.append(
                [f"{classes}, {count}", rule, *(mean_and_deviation(c, 1) for c in cells), highest]
            )
    title = (
        f"{args.data_dir}, {len(far)} images of {args.unknown}, mean ± standard deviation over "
        f"{args.seeds} seeds"
    )
    columns = [*of_size[0][RULES[0]], "new images reported, highest"]
    show(title, ["categories, images of each", "calibrated on", *columns], rows, results)


if __name__ == "__main__":
    run_script(main)

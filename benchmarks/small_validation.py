"""Compare rules that choose the epoch and the temperature from few validation images.

    python benchmarks/small_validation.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS

For every seed, categories are chosen at random and their images of train and valid divided anew:
some for training, up to 10 for validation, and the others are held out. The images of test are not
used. The head is fitted at default flags. Each rule then chooses an epoch, or a temperature for the
last epoch, from the first few validation images of each category, or by cross-validation of the
training images. What counts is the accuracy, or the loss, of the images held out.
"""

from __future__ import annotations

import collections
import statistics
from collections.abc import Sequence
from unittest import mock

import torch
from common import (
    DROPOUT,
    HIDDEN,
    SETTINGS,
    data_parser,
    run_script,
    show,
    training_features,
)

from evaluation import calibration, metrics
from model import Head
from system.arguments import whole_number
from training import fitting
from training.feature_store import default_cache_folder

VALID = (1, 2, 3, 5, 10)  # validation images of each category
FOLDS = 5


def divide(
    labels: torch.Tensor, train: int, classes: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose categories at random, and divide their images.

    Returns:
        Rows of train, of valid (the first of each category, then the second, ...), and of those
        held out; and the labels (N,) of the chosen categories, from 0.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(int(labels.max()) + 1, generator=generator)[:classes]
    groups, renumbered = [], torch.full_like(labels, -1)
    for index, label in enumerate(chosen.tolist()):
        group = (labels == label).nonzero()[:, 0]
        renumbered[group] = index
        groups.append(group[torch.randperm(len(group), generator=generator)])
    end = train + max(VALID)
    valid = torch.stack([group[train:end] for group in groups], 1).flatten()
    held_out = torch.cat([group[end:] for group in groups])
    return torch.cat([group[:train] for group in groups]), valid, held_out, renumbered


def fit(
    stored: torch.Tensor, labels: torch.Tensor, train: torch.Tensor, valid: torch.Tensor, seed: int
) -> list[torch.Tensor]:
    """Fit a head; returns the logits (len(valid), classes) after each epoch."""
    classes, logits = int(labels.max()) + 1, []
    validate = fitting.validate

    def validate_and_record(head: Head, samples: fitting.Samples) -> dict[str, float]:
        logits.append(fitting.compute_logits(head, stored, valid))
        return validate(head, samples)

    torch.manual_seed(seed)
    with mock.patch.object(fitting, "validate", validate_and_record):
        fitting.fit(
            Head(stored.shape[-1], HIDDEN, classes, classes, DROPOUT),
            fitting.Samples(stored, labels, {"train": train, "valid": valid}),
            SETTINGS,
        )
    return logits


def cross_validate(
    stored: torch.Tensor, labels: torch.Tensor, train: torch.Tensor, seed: int
) -> list[torch.Tensor]:
    """Return logits (len(train), classes) after each epoch, of heads that did not see the image."""
    fold = torch.empty_like(train)
    for label in labels[train].unique():
        rows = (labels[train] == label).nonzero()[:, 0]
        fold[rows] = torch.arange(len(rows)) % FOLDS
    logits = [torch.empty(len(train), int(labels.max()) + 1) for _ in range(SETTINGS.epochs)]
    for number in fold.unique():
        held_out = fold == number
        fitted = fit(stored, labels, train[~held_out], train[held_out], seed)
        for epoch, values in enumerate(fitted):
            logits[epoch][held_out] = values
    return logits


def temperature_of(logits: torch.Tensor, labels: torch.Tensor, weight: float) -> float:
    """Call `fit_temperature` with another weight of the prior temperature."""
    with mock.patch.object(calibration, "PRIOR_WEIGHT", weight):
        return calibration.fit_temperature(logits, labels)


def choose_epochs(
    valid: Sequence[torch.Tensor], labels: torch.Tensor, crossed: Sequence[torch.Tensor], own
) -> dict[str, int]:
    """Return the epoch that each rule chooses.

    Args:
        valid, labels: logits of the validation images after each epoch, and their labels.
        crossed, own: the same of the training images, cross-validated.
    """

    def best(all_logits: Sequence[torch.Tensor], labels: torch.Tensor) -> int:
        rows = [metrics.metrics(logits, labels) for logits in all_logits]
        return max(range(SETTINGS.epochs), key=lambda e: (rows[e]["accuracy"], -rows[e]["loss"]))

    def calibrated_loss(epoch: int) -> float:
        temperature = temperature_of(valid[epoch], labels, 0.0)
        return metrics.metrics(valid[epoch] / temperature, labels)["loss"]

    return {
        "accuracy on valid, then loss": best(valid, labels),
        "loss on valid, calibrated": min(range(SETTINGS.epochs), key=calibrated_loss),
        "cross-validation": best(crossed, own),
        "the last": SETTINGS.epochs - 1,
    }


def choose_temperatures(
    valid: torch.Tensor, labels: torch.Tensor, crossed: torch.Tensor, own: torch.Tensor
) -> dict[str, float]:
    """Return the temperature that each rule chooses; see `choose_epochs`."""
    return {
        "none": 1.0,
        "valid": temperature_of(valid, labels, 0.0),
        "cross-validation": temperature_of(crossed, own, 0.0),
        f"valid, usually {calibration.PRIOR_TEMPERATURE}": calibration.fit_temperature(
            valid, labels
        ),
    }


def measure(
    stored: torch.Tensor, labels: torch.Tensor, train: int, classes: int, seeds: int
) -> dict[str, dict[str, dict[int, list[float]]]]:
    """Return a value for each table, rule, number of validation images, and seed."""
    tables: dict = {name: collections.defaultdict(dict) for name in ("accuracy", "loss", "ece")}
    for seed in range(seeds):
        rows, valid, held_out, own = divide(labels, train, classes, seed)
        logits = fit(stored, own, rows, torch.cat([valid, held_out]), seed)
        crossed = cross_validate(stored, own, rows, seed)
        last, truth = logits[-1][len(valid) :], own[held_out]
        for count in VALID:
            few = own[valid[: count * classes]]
            of_few = [values[: len(few)] for values in logits]
            for rule, epoch in choose_epochs(of_few, few, crossed, own[rows]).items():
                measured = metrics.metrics(logits[epoch][len(valid) :], truth)
                tables["accuracy"][rule].setdefault(count, []).append(measured["accuracy"])
            chosen = choose_temperatures(of_few[-1], few, crossed[-1], own[rows])
            for rule, temperature in chosen.items():
                measured = metrics.metrics(last / temperature, truth)
                for name in ("loss", "ece"):
                    tables[name][rule].setdefault(count, []).append(measured[name])
    return tables


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--cache_dir", default=str(default_cache_folder()))
    parser.add_argument("--seeds", type=whole_number(1), default=5)
    parser.add_argument("--train", type=whole_number(2), nargs="+", default=[5, 10, 30])
    parser.add_argument("--classes", type=whole_number(2), nargs="+", default=[3, 17])
    args = parser.parse_args()
    stored, labels = training_features(args)
    stored = stored[:, 0]  # (N, len(REGIONS), 2048)
    for classes in args.classes:
        for train in args.train:
            tables = measure(stored, labels, train, classes, args.seeds)
            for name, rules in tables.items():
                digits = 3 if name == "loss" else 2
                title = f"{name}, {classes} categories, {train} training images each"
                rows = []
                for rule, by_count in rules.items():
                    means = [statistics.mean(by_count[c]) for c in VALID]
                    scale = 1 if name == "loss" else 100
                    rows.append([rule, *(f"{scale * mean:.{digits}f}" for mean in means)])
                show(title, [name, *map(str, VALID)], rows, {name: rules})


if __name__ == "__main__":
    run_script(main)

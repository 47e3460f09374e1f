"""A random order that is balanced over labels, and folds for cross-validation."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import torch


def balanced_order(labels: torch.Tensor) -> torch.Tensor:
    """Return indices of samples (`balanced_size(labels)`,), in random order, equally many a label.

    A frequent label's samples are then not all used, and a rare one's several times. Random numbers
    come from torch's global generator.

    Args:
        labels: (samples,) int64, not negative.
    """
    counts = torch.bincount(labels)
    counts = counts[counts > 0]
    if (counts == counts[0]).all():
        return torch.randperm(len(labels))
    each, chosen = balanced_size(labels) // len(counts), []
    for indices in labels.argsort(stable=True).split(counts.tolist()):
        repeats = range(math.ceil(each / len(indices)))
        shuffled = torch.cat([indices[torch.randperm(len(indices))] for _ in repeats])
        chosen.append(shuffled[:each])
    order = torch.cat(chosen)
    return order[torch.randperm(len(order))]


def balanced_size(labels: torch.Tensor) -> int:
    """Return len(labels), rounded up so that it can be divided by the number of labels."""
    distinct = len(labels.unique())
    return distinct * math.ceil(len(labels) / distinct)


def in_several_folds(labels: torch.Tensor, folds: torch.Tensor) -> torch.Tensor:
    """Return whether another fold has the label of each sample as well, (N,) bool.

    Args:
        labels, folds: (N,) int64.
    """
    pairs = torch.stack([labels, folds], 1).unique(dim=0)
    return pairs[:, 0].bincount(minlength=int(labels.max()) + 1)[labels] > 1


def divide_into_folds(
    labels: torch.Tensor, groups: torch.Tensor, count: int, seed: int
) -> torch.Tensor:
    """Return the fold of each sample (N,) int64, for cross-validation.

    Each label is spread evenly over the folds, and the samples of a group are in one fold.

    Args:
        labels, groups: (N,) int64; a group's first sample decides for its label.
        count: of folds.
        seed: of the random order.
    """
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(index)
    shuffled = list(members.values())
    random.Random(seed).shuffle(shuffled)
    folds, sizes = torch.empty_like(labels), [0] * count
    of_label: dict[int, list[int]] = {}
    for group in shuffled:
        counts = of_label.setdefault(int(labels[group[0]]), [0] * count)
        fold = min(range(count), key=lambda fold: (counts[fold], sizes[fold]))
        counts[fold] += len(group)
        sizes[fold] += len(group)
        folds[group] = fold
    return folds


def mean_and_std(batches: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation (D,) float32 of each column of batches (B, D)."""
    total, squares, count = torch.zeros(()), torch.zeros(()), 0
    for batch in batches:
        values = batch.double()
        total, squares = total + values.sum(0), squares + values.square().sum(0)
        count += len(values)
    mean, squares = total / count, squares / count
    return mean.float(), (squares - mean.square()).clamp(min=0).sqrt().float()

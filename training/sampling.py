"""A random order that is balanced over labels, and folds for cross-validation."""

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
    each = balanced_size(labels) // len(counts)  # samples of a label
    chosen = []
    for indices in labels.argsort(stable=True).split(counts.tolist()):
        repeats = range(math.ceil(each / len(indices)))
        shuffled = torch.cat([indices[torch.randperm(len(indices))] for _ in repeats])
        chosen.append(shuffled[:each])
    order = torch.cat(chosen)
    return order[torch.randperm(len(order))]


def balanced_size(labels: torch.Tensor) -> int:
    """Return len(labels), rounded up so that it can be divided by the number of labels."""
    num_labels = len(labels.unique())
    return num_labels * math.ceil(len(labels) / num_labels)


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
    members: dict[int, list[int]] = {}  # samples by group
    for index, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(index)
    shuffled = list(members.values())
    random.Random(seed).shuffle(shuffled)
    folds = torch.empty_like(labels)
    sizes = [0] * count
    sizes_by_label: dict[int, list[int]] = {}
    for indices in shuffled:
        label_sizes = sizes_by_label.setdefault(int(labels[indices[0]]), [0] * count)
        fold = min(range(count), key=lambda fold: (label_sizes[fold], sizes[fold]))
        label_sizes[fold] += len(indices)
        sizes[fold] += len(indices)
        folds[indices] = fold
    return folds


def mean_and_std(batches: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation (D,) float32 of each column of batches (B, D)."""
    total = torch.zeros(())
    total_of_squares = torch.zeros(())
    count = 0
    for batch in batches:
        values = batch.double()
        total = total + values.sum(0)
        total_of_squares = total_of_squares + values.square().sum(0)
        count += len(values)
    mean = total / count
    variance = (total_of_squares / count - mean.square()).clamp(min=0)
    return mean.float(), variance.sqrt().float()

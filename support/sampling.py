"""A random order that is balanced over labels, folds, and a stable division by content."""

from __future__ import annotations

import collections
import itertools
import math
import random
from collections.abc import Mapping, Sequence

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


def divide(
    paths: Sequence[str],
    digests: Mapping[str, str],
    shares: Mapping[str, float],
    groups: Sequence[str],
) -> dict[str, list[str]]:
    """Divide files among groups, such as train, valid and test, by their content.

    A digest is a position from 0 to 1, and a group an interval of that. The position of a file
    alone decides: copies of a file are in one group, and files that are added or removed do not
    move others. There is one exception: a group that would be empty gets the nearest file of the
    first group, or of another one, that has more than one; the first group gets the only file.
    While there is such a group, a file that is added may move up to two others.

    Args:
        paths: of one category.
        digests: in hexadecimal, by path; files without one are at position 0.
        shares: of all groups, which add up to 1; their order is that of the intervals.
        groups: those that are filled. The intervals of all others belong to the first.

    Returns:
        The paths of each of `groups`, in their order.
    """
    ends = dict(zip(shares, itertools.accumulate(shares.values()), strict=True))
    positions = {
        digest: int(digest[:16] or "0", 16) / 16**16
        for digest in (digests.get(path, "") for path in paths)
    }

    def group_at(position: float) -> str:
        group = next((name for name, end in ends.items() if position < end), groups[-1])
        return group if group in groups else groups[0]

    assigned = {digest: group_at(position) for digest, position in positions.items()}
    for group in (groups[0], *reversed(groups[1:])):
        counts = collections.Counter(assigned.values())
        movable = [digest for digest in sorted(assigned) if counts[assigned[digest]] > 1]
        movable = [d for d in movable if assigned[d] == groups[0]] or movable
        if group == groups[0]:
            movable = movable or sorted(assigned)
        if movable and not counts[group]:
            center = ends[group] - shares[group] / 2
            nearest = min(movable, key=lambda digest: abs(positions[digest] - center))
            assigned[nearest] = group
    divided: dict[str, list[str]] = {group: [] for group in groups}
    for path in paths:
        divided[assigned[digests.get(path, "")]].append(path)
    return divided


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

"""A random order of samples that is balanced over their labels."""

from __future__ import annotations

import math

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

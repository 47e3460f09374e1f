"""Mean and standard deviation of values that come in batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def mean_and_std(batches: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation (D,) float32 of each column of batches (B, D)."""
    total, squares, count = torch.zeros(()), torch.zeros(()), 0
    for batch in batches:
        values = batch.double()
        total, squares = total + values.sum(0), squares + values.square().sum(0)
        count += len(values)
    mean, squares = total / count, squares / count
    return mean.float(), (squares - mean.square()).clamp(min=0).sqrt().float()

"""The head's linear classifier, fitted in closed form by ridge regression."""

from collections.abc import Iterable

import torch
from torch import nn


@torch.no_grad()
def fit_linear(
    linear: nn.Linear,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    counts: torch.Tensor,
    penalties: torch.Tensor,
    scale: float,
) -> None:
    """Fit a linear layer to output `scale` for the category of a sample, and 0 for all others.

    It minimizes the squared error, in which each category has the same weight, plus the squared
    weights times `penalties` (Hoerl & Kennard 1970). The outputs of categories without samples are
    0.

    Args:
        batches: standardized features (B, num_features) float32, and labels (B,) int64.
        counts: (num_outputs,) int64, the number of samples of each category.
        penalties: (num_features,), what is added to the variance of each feature, above 0.
    """
    size = linear.in_features
    is_present = (counts > 0).double()
    weights = is_present / counts.clamp(min=1) / is_present.sum()  # of a sample, by its label
    sums = torch.zeros(len(counts), size, dtype=torch.float64)
    products = torch.zeros(size, size, dtype=torch.float64)
    for features, labels in batches:
        features = features.cpu()
        sums.index_add_(0, labels, features.double())
        weighted = features * weights[labels].float()[:, None]
        products += weighted.T @ features
    sums *= weights[:, None]
    mean = sums.sum(0)  # (num_features,)
    covariance = products - torch.outer(mean, mean)
    covariance.diagonal().add_(penalties.double())
    shares = is_present / is_present.sum()  # the mean of the targets
    targets = sums - torch.outer(shares, mean)  # (num_outputs, num_features)
    solution = torch.linalg.solve(covariance, targets.T).T
    linear.weight.copy_(scale * solution)
    linear.bias.copy_(scale * (shares - solution @ mean))

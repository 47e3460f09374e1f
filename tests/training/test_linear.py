"""training.linear: ridge regression in closed form, by an independent least squares."""

import numpy as np
import torch
from torch import nn

from training.linear import fit_linear


def test_a_linear_layer_is_the_ridge_regression_with_equal_weight_for_each_category():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 3], [40, 7, 3])  # category 2 has no samples
    features = rng.standard_normal((50, 6)) + labels[:, None] * rng.standard_normal(6)
    linear = nn.Linear(6, 4)
    order = torch.from_numpy(rng.permutation(50))
    x = torch.from_numpy(features).float()
    y = torch.from_numpy(labels)
    batches = [(x[rows], y[rows]) for rows in order.split(16)]
    penalties = rng.random(6) + 0.1
    counts = torch.tensor([40, 7, 0, 3])
    fit_linear(linear, batches, counts, torch.from_numpy(penalties), scale=5.0)
    # The same as ordinary least squares with one more row for each weight, and none for the bias.
    weights = np.sqrt(1 / np.bincount(labels)[labels] / 3)
    rows = np.hstack([features, np.ones((50, 1))]) * weights[:, None]
    targets = 5.0 * np.eye(4)[labels] * weights[:, None]
    rows = np.vstack([rows, np.sqrt(penalties)[:, None] * np.eye(6, 7)])
    targets = np.vstack([targets, np.zeros((6, 4))])
    expected, *_ = np.linalg.lstsq(rows, targets, rcond=None)
    np.testing.assert_allclose(linear.weight.detach(), expected[:6].T, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(linear.bias.detach(), expected[6], rtol=1e-3, atol=1e-5)

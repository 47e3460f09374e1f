"""Predictions for each image by a head that was not fitted on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from support.arguments import progress
from support.head_outputs import compute_outputs, fit_detector_on
from support.metrics import fit_temperature
from support.novelty import calibrated_novelty
from support.sampling import in_several_folds


class CrossValidation(NamedTuple):
    """Predictions for N images, each by a network that was not fitted on it.

    Attributes:
        probs: (N, num_classes), calibrated.
        novelty: (N,); NaN: there is no detector.
        is_valid: (N,) bool, whether the network was fitted on other images of the category.
    """

    probs: torch.Tensor
    novelty: torch.Tensor
    is_valid: torch.Tensor


def predict_folds(
    fit_on: Callable[[torch.Tensor, torch.Tensor], Any],
    features: Any,
    labels: torch.Tensor,
    folds: torch.Tensor,
    plain: torch.Tensor,
) -> CrossValidation:
    """Predict images, each fold by a head that is fitted on the others.

    Args:
        fit_on: fits a new head on the first rows, and evaluates it on the second.
        features, labels: of all rows; see `fitting.Samples`.
        folds: int64, of each row; -1: it is not used.
        plain: (N,) int64, the rows that are predicted, one an image.
    """
    logits, values = torch.empty(len(plain), int(labels.max()) + 1), torch.empty(len(plain), 2)
    plain_folds = folds[plain]
    detector, is_valid = None, in_several_folds(labels[plain], plain_folds)
    numbers = plain_folds.unique().tolist()
    for fold in progress(numbers, len(numbers), "cross-validation", size=lambda _: 1):
        held_out = plain_folds == fold
        rows = ((folds != fold) & (folds >= 0)).nonzero()[:, 0]
        head = fit_on(rows, plain[held_out])
        fitted = fit_detector_on(head, features, labels, rows)
        logits[held_out], measured = compute_outputs(head, fitted, features, plain[held_out])
        values[held_out] = measured if fitted else torch.nan
        detector = fitted or detector
    novelty = calibrated_novelty(detector, values[~values.isnan().any(1)], values)
    temperature = fit_temperature(logits[is_valid], labels[plain][is_valid])
    return CrossValidation((logits / temperature).softmax(1), novelty, is_valid)

"""Calibration: whether probabilities agree with the share of correct predictions."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

CALIBRATION_BINS = 15  # of equal width; Guo et al. 2017
TEMPERATURES = [2 ** (step / 20) for step in range(-40, 41)]  # 1/4 to 4
# What `fit_temperature` assumes before it sees images; measured in docs/results.md.
PRIOR_TEMPERATURE = 0.4
PRIOR_WEIGHT = 4.0


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithms of the probabilities of logits (N, num_classes)."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@np.errstate(all="ignore")
def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the temperature that validation logits (N, num_classes) are to be divided by.

    It makes probabilities agree with the share of correct predictions: it is the one of
    TEMPERATURES with the lowest cross entropy (Guo et al. 2017), summed over N. To that is added
    PRIOR_WEIGHT times the square of its distance from PRIOR_TEMPERATURE, in powers of two, so that
    a few images that are all predicted correctly do not ask for 0.
    """
    logits = np.asarray(logits, np.float64)
    labels = np.asarray(labels, np.int64)

    def loss(temperature: float) -> float:
        log_probs = log_softmax(logits / temperature)[np.arange(len(labels)), labels]
        distance = math.log2(temperature / PRIOR_TEMPERATURE)
        return PRIOR_WEIGHT * distance**2 - log_probs.sum()

    return min(TEMPERATURES, key=loss)


class CalibrationBins(NamedTuple):
    """Predictions sorted by their probability into CALIBRATION_BINS bins, (bins,) each."""

    counts: np.ndarray  # predictions
    probs: np.ndarray  # sum of their probabilities
    correct: np.ndarray  # correct predictions


def calibration_bins(probs: ArrayLike, correct: ArrayLike) -> CalibrationBins:
    """Sort predictions into bins by their probability.

    Args:
        probs: (N,) probability (0-1) of each prediction.
        correct: (N,) bool, whether it equals the label.
    """
    probs = np.asarray(probs, np.float64)
    bins = (probs * CALIBRATION_BINS).astype(int).clip(0, CALIBRATION_BINS - 1)
    return CalibrationBins(
        counts=np.bincount(bins, minlength=CALIBRATION_BINS),
        probs=np.bincount(bins, probs, CALIBRATION_BINS),
        correct=np.bincount(bins, np.asarray(correct, np.float64), CALIBRATION_BINS),
    )


def calibration_error(probs: ArrayLike, correct: ArrayLike) -> float:
    """Return the expected calibration error (fraction 0-1) of (N,) predictions.

    It is the mean difference between the probability of a bin's predictions and the share of them
    that are correct, weighted by their number (Guo et al. 2017).
    """
    bins = calibration_bins(probs, correct)
    return float(np.abs(bins.probs - bins.correct).sum() / bins.counts.sum())

"""How good predictions are: accuracy, top-5 accuracy, calibration error, per-category figures.

Arguments are arrays, or tensors on the CPU.
"""

import collections
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from evaluation.calibration import calibration_error, log_softmax
from system.messages import counted


@np.errstate(all="ignore")  # a training that diverges gives logits that are not finite
def metrics(logits: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Return how good logits (N, num_classes) are for labels (N,).

    Returns:
        "loss" (cross entropy, mean over N) and, as fractions 0-1: "accuracy", "top5_accuracy" (the
        label is among the 5 highest), "class_accuracy" (mean of each category's accuracy) and
        "ece" (expected calibration error).
    """
    logits = np.asarray(logits, np.float64)
    labels = np.asarray(labels, np.int64)
    log_probs = log_softmax(logits)
    predictions = logits.argmax(1)
    correct = predictions == labels
    label_logits = logits[np.arange(len(labels)), labels]
    rank = (logits > label_logits[:, None]).sum(1)  # number of higher logits
    counts = np.bincount(labels)
    class_accuracy = np.bincount(labels, correct)[counts > 0] / counts[counts > 0]
    return {
        "loss": float(-log_probs[np.arange(len(labels)), labels].mean()),
        "accuracy": float(correct.mean()),
        "top5_accuracy": float((rank < 5).mean()),
        "class_accuracy": float(class_accuracy.mean()),
        "ece": calibration_error(np.exp(log_probs.max(1)), correct),
    }


def wilson_interval(share: float, total: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share (0-1) of `total` images (Wilson 1927)."""
    z = 1.96  # deviations of a normal distribution that 95 % are within
    scale = 1 + z**2 / total
    center = (share + z**2 / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / scale
    return max(0.0, center - half), min(1.0, center + half)


def auroc(known: ArrayLike, unknown: ArrayLike) -> float:
    """Return the area under the ROC curve (0-1) of scores that are lower for unknown images.

    It is the probability that an unknown image has a lower score than a known one; an equal score
    counts half.
    """
    known = np.sort(np.asarray(known, np.float64))
    lower = np.searchsorted(known, unknown, "left")  # known scores, for each unknown one
    not_higher = np.searchsorted(known, unknown, "right")
    return float(1 - (lower + not_higher).mean() / 2 / len(known))


def fpr95(known: ArrayLike, unknown: ArrayLike) -> float:
    """Return the share of unknown images (0-1) accepted by a limit that accepts 95 % of known ones.

    Images with a score of at least the limit are accepted.
    """
    limit = np.quantile(np.asarray(known, np.float64), 0.05)
    return float((np.asarray(unknown, np.float64) >= limit).mean())


def confusion_counts(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> np.ndarray:
    """Return how many images of each category were predicted as each category.

    Args:
        labels, predictions: (N,) indices of categories.

    Returns:
        (num_classes, num_classes) int64: row label, column prediction.

    Raises:
        IndexError: an index is not below `num_classes`.
    """
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (np.asarray(labels), np.asarray(predictions)), 1)
    return counts


def confident_mistakes(labels: ArrayLike, probs: ArrayLike) -> np.ndarray:
    """Return the indices of incorrect predictions, the most confident first, (mistakes,) int64.

    Args:
        labels, probs: (N,) and (N, num_classes).
    """
    probs = np.asarray(probs)
    is_incorrect = probs.argmax(1) != np.asarray(labels)
    order = np.argsort(-probs.max(1), kind="stable")
    return order[is_incorrect[order]]


def category_metrics(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int
) -> list[dict[str, float]]:
    """Return for each category its "images", and "precision", "recall" and "f1" (0-1).

    Precision is the share of the predictions of this category that are correct, recall the share of
    its images that are predicted correctly, F1 their harmonic mean; a share of none is NaN.
    """
    counts = confusion_counts(labels, predictions, num_classes)
    images = counts.sum(1)
    predicted = counts.sum(0)
    correct = counts.diagonal()
    with np.errstate(invalid="ignore"):
        precision = correct / predicted
        recall = correct / images
        f1 = 2 * correct / (images + predicted)
    return [
        {"images": int(n), "precision": float(p), "recall": float(r), "f1": float(f)}
        for n, p, r, f in zip(images, precision, recall, f1, strict=True)
    ]


def format_evaluation(
    probs: ArrayLike,
    labels: ArrayLike,
    names: Sequence[str],
    *,
    min_probability: float = 0.0,
    novelty: ArrayLike = math.nan,
    min_novelty: float = 0.0,
    max_confusions: int = 10,
) -> list[str]:
    """Return lines that say how good probabilities (N, num_classes) are for labels (N,).

    Args:
        names: (num_classes,) of the categories.
        min_probability: if above 0, a line says how many predictions have as much.
        novelty: (N,) of the images, or NaN.
        min_novelty: unless novelty is NaN, a line says how many images have less.
        max_confusions: number of pairs of categories that are listed.
    """
    probs = np.asarray(probs, np.float64)
    labels = np.asarray(labels)
    predictions = probs.argmax(1)
    results = metrics(np.log(probs.clip(1e-30)), labels)
    lines = [
        f"{counted(len(labels), 'image', 'images')} of "
        f"{counted(len(np.unique(labels)), 'category', 'categories')}: accuracy "
        f"{results['accuracy']:.1%}, top-5 {results['top5_accuracy']:.1%}, mean of the "
        f"categories {results['class_accuracy']:.1%}, calibration error {results['ece']:.1%}"
    ]
    if min_probability:
        is_sure = probs.max(1) >= min_probability
        correct = (predictions == labels)[is_sure].mean() if is_sure.any() else 0
        lines.append(
            f"{is_sure.mean():.1%} of the predictions have a probability of at least "
            f"{min_probability:g}, and {correct:.1%} of these are correct"
        )
    if not np.isnan(novelty).any():
        share = np.mean(np.asarray(novelty) < min_novelty)
        lines.append(f"{share:.1%} of the images have a novelty below {min_novelty:g}")
    confusions: collections.Counter[tuple[int, int]] = collections.Counter()
    for label, prediction in zip(labels.tolist(), predictions.tolist(), strict=True):
        if label != prediction:
            confusions[label, prediction] += 1
    for (label, prediction), count in confusions.most_common(max_confusions):
        lines.append(f"{count} of {names[label]} predicted as {names[prediction]}")
    return lines


def format_unknown(
    *,
    probs: ArrayLike,
    novelty: ArrayLike,
    unknown_probs: ArrayLike,
    unknown_novelty: ArrayLike,
    min_novelty: float,
) -> list[str]:
    """Return lines that say how well unknown images can be distinguished from known ones.

    Args:
        probs, novelty: (N, num_classes) and (N,), of known images.
        unknown_probs, unknown_novelty: the same of unknown images.
        min_novelty: a line says how many unknown images have less.
    """
    known = np.asarray(probs).max(1)
    unknown = np.asarray(unknown_probs).max(1)
    lines = [_compare("probability", known, unknown)]
    if not np.isnan(novelty).any():
        lines.append(_compare("novelty", novelty, unknown_novelty))
        share = np.mean(np.asarray(unknown_novelty) < min_novelty)
        count = f"{share:.1%} of {len(unknown)} unknown images"
        lines.append(f"{count} have a novelty below {min_novelty:g}")
    return lines


def _compare(name: str, known: ArrayLike, unknown: ArrayLike) -> str:
    """Return a line that says how well a score separates unknown images from known ones."""
    area = f"AUROC {auroc(known, unknown):.4f}"
    return f"{name} of known and unknown images: {area}, FPR95 {fpr95(known, unknown):.1%}"

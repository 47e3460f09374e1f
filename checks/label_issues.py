"""Which labels may be incorrect: those that a network that never saw the image does not predict.

    probabilities of cross-validation (N, num_classes), labels (N,) -> find_suspects -> findings

The idea is that of confident learning (Northcutt et al. 2021): a label's probability is compared
with that of the other images of its category, since a network is less certain of some categories.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from checks.findings import File, Finding, compare
from checks.near_duplicates import Pairs

SUSPECT = 0.1  # a label with less of its category's mean probability is suspect


class Suspects(NamedTuple):
    """Images whose label may be incorrect, the most suspect first.

    Attributes:
        rows: (K,) int64, indices of images.
        suggested: (K,) int64, the category that is predicted instead.
    """

    rows: torch.Tensor
    suggested: torch.Tensor


def find_suspects(probs: torch.Tensor, labels: torch.Tensor) -> Suspects:
    """Return the images whose label may be incorrect; see `label_quality`.

    They are those for which another category is predicted and the quality is below SUSPECT. This
    finds more than the rule of confident learning (benchmarks/README.md).

    Args:
        probs: (N, num_classes), calibrated, of a network that was not fitted on the image.
        labels: (N,) int64.
    """
    quality = label_quality(probs, labels)
    predictions = probs.argmax(1)
    order = quality.argsort(stable=True)
    rows = order[(predictions != labels)[order] & (quality < SUSPECT)[order]]
    return Suspects(rows, predictions[rows])


def label_quality(probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return how well each label (N,) fits its image, (N,): 0 does not, about 1 as usual.

    It is the probability of the label, divided by the mean of that over the images of its category.
    """
    label_probs = probs.gather(1, labels[:, None])[:, 0]
    counts = labels.bincount(minlength=probs.shape[1])
    means = torch.zeros(probs.shape[1]).index_add_(0, labels, label_probs) / counts
    return label_probs / means[labels].clamp(min=1e-12)


# ---------------------------------------------------------------- as findings


def suspect_findings(
    files: Sequence[File],
    probs: torch.Tensor,
    labels: torch.Tensor,
    categories: Sequence[str],
    names: Sequence[str],
) -> list[Finding]:
    """Return a "suspect label" for each image of `find_suspects`, the most suspect first.

    Args:
        files: (N,) of the images; see there for probs and labels.
        categories, names: (num_classes,) of the indices in `labels`.
    """
    suspects, findings = find_suspects(probs, labels), []
    for number, row in enumerate(map(int, suspects.rows)):
        label, suggested = int(labels[row]), int(suspects.suggested[number])
        prob, other_prob = probs[row, label].item(), probs[row, suggested].item()
        finding = Finding(
            "suspect label",
            *files[row],
            detail=f"{names[label]} {prob:.1%}, {names[suggested]} {other_prob:.1%}",
            rank=number + 1,
            probability=prob,
            suggested=categories[suggested],
            suggested_probability=other_prob,
        )
        findings.append(finding)
    return findings


def pair_findings(files: Sequence[File], pairs: Pairs, digests: Mapping[str, str]) -> list[Finding]:
    """Return a "near-duplicate" for each pair of images, those of different categories first.

    Then come those of different splits. The second image of a pair is the finding's own.

    Args:
        digests: of each file's content, by path; copies with the same content do not count.
    """
    findings = []
    for number, distance in enumerate(pairs.distance.tolist()):
        file, other = files[int(pairs.second[number])], files[int(pairs.first[number])]
        if digests[file.path] == digests[other.path]:
            continue
        detail = f"{compare(file, other)}, distance {distance:.2f}"
        pair = Finding("near-duplicate", *file, detail, other_path=other.path, distance=distance)
        findings.append(((file.category == other.category, file.split == other.split), pair))
    ordered = [pair for _, pair in sorted(findings, key=lambda item: item[0])]
    return [pair._replace(rank=rank) for rank, pair in enumerate(ordered, 1)]


def outlier_findings(files: Sequence[File], novelty: torch.Tensor, limit: float) -> list[Finding]:
    """Return an "outlier" for each image with a novelty (N,) below `limit`, the lowest first."""
    values, findings = novelty.tolist(), []
    rows = [row for row in map(int, novelty.argsort(stable=True)) if values[row] < limit]
    for rank, row in enumerate(rows, 1):
        detail = f"novelty {values[row]:.1g}"
        findings.append(Finding("outlier", *files[row], detail, rank, novelty=values[row]))
    return findings


def accuracy_findings(correct: torch.Tensor) -> list[Finding]:
    """Return the accuracy, and its standard error, of predictions that are correct (N,) or not.

    The error is that of the accuracy with one more correct and one more incorrect prediction:
    otherwise it would be 0 if all predictions are correct, however few there are.
    """
    count, total = int(correct.sum()), len(correct)
    accuracy, smoothed = count / total, (count + 1) / (total + 2)
    error = math.sqrt(smoothed * (1 - smoothed) / total)
    return [
        Finding("accuracy", detail=f"{accuracy:.4f}"),
        Finding("standard error", detail=f"{error:.4f}"),
    ]

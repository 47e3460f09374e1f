"""Checks of labels by features: near-duplicates, suspect labels and outliers.

    features -> cross-validation -> probabilities (N, num_classes) -> suspect labels
    features -> near_duplicates -> pairs
    features -> novelty -> outliers

Suspect labels are those that a network that never saw the image does not predict. The idea is that
of confident learning (Northcutt et al. 2021): a label's probability is compared with that of the
other images of its category, since a network is less certain of some categories.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from checks.findings import Finding, compare, finding_of, print_findings
from checks.near_duplicates import Batches, Pairs, connect, embed, find_pairs
from image_files.names import display_names
from model import Head
from networks.novelty import NOVELTY_LIMIT
from system.messages import UserError, counted, shorten, warn
from training import fitting
from training.sampling import divide_into_folds, in_several_folds
from utils import DataFolder, ImageFile

MAX_COMPARED = 100_000  # images among which a training looks for near-duplicates: 400 MB
GUESSES = 3  # categories that may be right instead of a label
SUSPECT = 0.1  # a label with less of its category's mean probability is suspect


def warn_of_near_duplicates(data: DataFolder, averages: Batches) -> None:
    """Warn of images of valid and test that are near-duplicates of images of train.

    Copies with the same content do not count: `warn_of_copies` has reported them. More than
    MAX_COMPARED images are not compared.

    Args:
        averages: returns the features of all images, in batches; see `near_duplicates.embed`.
    """
    images = data.images
    if len(images) > MAX_COMPARED:
        print("near-duplicates: not searched among so many images; --check_labels does")
        return
    count = len(data.of("train"))
    vectors = embed(averages)
    pairs = find_pairs(vectors[count:], vectors[:count])
    leaks: dict[str, str] = {}  # by path
    for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        image = images[count + second]
        original = images[first]
        if image.digest != original.digest:
            leaks.setdefault(image.path, f"{image.path} ({original.path})")
    if leaks:
        warn(
            f"{data.root}: {counted(len(leaks), 'near-duplicate', 'near-duplicates')} of images of "
            f"train in valid and test: the reported accuracy will be too high: "
            f"{shorten(leaks.values(), 3)}; --check_labels lists all"
        )


def group_near_duplicates(averages: Batches, count: int) -> torch.Tensor:
    """Return the group of each of the first images (count,) int64; near-duplicates are in one.

    Args:
        averages: see `near_duplicates.embed`. All images count there: alone, the copies of bursts
            would be what images have in common.
    """
    vectors = embed(averages)
    return connect(find_pairs(vectors[:count]), count)


def check_labels(
    data: DataFolder,
    samples: fitting.Samples,
    names: Mapping[str, str],
    head: Head,
    settings: fitting.FitSettings,
    *,
    seed: int,
) -> list[Finding]:
    """Find suspect labels, near-duplicates and outliers, and print how many there are.

    Args:
        data: without images that could not be decoded.
        samples: the features of its images.
        names: category folder -> name.
        head, settings: see `fitting.cross_validate`.
        seed: of the folds.

    Returns:
        They, and the accuracy with its standard error.
    """
    images = data.images
    labels = samples.labels[samples.plain_rows()]  # (N,)
    pairs = find_pairs(embed(samples.averages))
    folds = _folds(data, labels, pairs, seed)
    result = fitting.cross_validate(head, samples, folds, settings)
    is_counted = result.is_valid.clone()
    is_counted[len(images) - len(data.of("test")) :] = False
    is_correct = result.probs.argmax(1) == labels
    accuracy = accuracy_findings(is_correct[is_counted])
    print(
        f"accuracy {float(accuracy[0].detail):.1%}, standard error "
        f"{float(accuracy[1].detail):.1%}: "
        f"{int(is_counted.sum())} images of train and valid, by networks that did not see them"
    )
    count = int((~result.is_valid).sum())
    if count:
        unchecked = counted(count, "label", "labels")
        print(f"{unchecked} cannot be checked: too few different images in the category")
    rows = result.is_valid.nonzero()[:, 0]
    categories = list(data.class_to_idx)
    issues = suspect_findings(
        [images[row] for row in rows.tolist()],
        probs=result.probs[rows],
        labels=labels[rows],
        categories=categories,
        names=display_names(categories, names),
    )
    issues += pair_findings(images, pairs)
    issues += outlier_findings(images, result.novelty, NOVELTY_LIMIT)
    print_findings(issues)
    return accuracy + issues


def _folds(data: DataFolder, labels: torch.Tensor, pairs: Pairs, seed: int) -> torch.Tensor:
    """Return the fold of each image (N,) int64; near-duplicates are in one.

    Raises:
        UserError: no category has images in two folds.
    """
    folds = divide_into_folds(labels, connect(pairs, len(labels)), fitting.FOLDS, seed)
    if not in_several_folds(labels, folds).any():
        raise UserError(f"{data.root}: no label can be checked: no category has different images")
    return folds


# ---------------------------------------------------------------- suspect labels


class Suspects(NamedTuple):
    """Images whose label may be incorrect, the most suspect first.

    Attributes:
        rows: (K,) int64, indices of images.
        guesses: (K, 3) int64, the most likely categories without the label, the first one is
            predicted; of fewer categories, (K, num_classes - 1).
    """

    rows: torch.Tensor
    guesses: torch.Tensor


def find_suspects(probs: torch.Tensor, labels: torch.Tensor) -> Suspects:
    """Return the images whose label may be incorrect; see `label_quality`.

    They are those for which another category is predicted and the quality is below SUSPECT. This
    finds more than the rule of confident learning (docs/results.md).

    Args:
        probs: (N, num_classes), calibrated, of a network that was not fitted on the image.
        labels: (N,) int64.
    """
    quality = label_quality(probs, labels)
    order = quality.argsort(stable=True)
    is_suspect = (probs.argmax(1) != labels) & (quality < SUSPECT)
    rows = order[is_suspect[order]]
    others = probs[rows].scatter(1, labels[rows, None], -1)  # without the label
    guesses = (-others).argsort(dim=1, stable=True)
    return Suspects(rows, guesses[:, : min(GUESSES, probs.shape[1] - 1)])


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
    images: Sequence[ImageFile],
    *,
    probs: torch.Tensor,
    labels: torch.Tensor,
    categories: Sequence[str],
    names: Sequence[str],
) -> list[Finding]:
    """Return a "suspect label" for each image of `find_suspects`, the most suspect first.

    Args:
        images: (N,).
        probs, labels: see `find_suspects`.
        categories, names: (num_classes,) of the indices in `labels`.
    """
    suspects = find_suspects(probs, labels)
    findings = []
    pairs = zip(suspects.rows.tolist(), suspects.guesses.tolist(), strict=True)
    for rank, (row, guesses) in enumerate(pairs, 1):
        label = int(labels[row])
        suggested, *others = guesses
        second, third, *_ = [*(categories[other] for other in others), "", ""]
        prob = probs[row, label].item()
        suggested_prob = probs[row, suggested].item()
        detail = (
            f"label {names[label]} {prob:.1%}, predicted {names[suggested]} {suggested_prob:.1%}"
        )
        finding = finding_of("suspect label", images[row], detail)._replace(
            rank=rank,
            probability=prob,
            suggested=categories[suggested],
            suggested_probability=suggested_prob,
            second_guess=second,
            third_guess=third,
        )
        findings.append(finding)
    return findings


def pair_findings(images: Sequence[ImageFile], pairs: Pairs) -> list[Finding]:
    """Return a "near-duplicate" for each pair of images, those of different categories first.

    Then come those of different splits. The second image of a pair is the finding's own. Copies
    with the same content do not count.
    """
    findings: list[tuple[tuple[bool, bool], Finding]] = []
    for number, distance in enumerate(pairs.distance.tolist()):
        image = images[int(pairs.second[number])]
        other = images[int(pairs.first[number])]
        if image.digest != other.digest:
            order = (image.category == other.category, image.split == other.split)
            detail = f"{compare(image, other)}, distance {distance:.2f}"
            finding = finding_of("near-duplicate", image, detail)
            finding = finding._replace(other_path=other.path, distance=distance)
            findings.append((order, finding))
    findings.sort(key=lambda item: item[0])
    return [finding._replace(rank=rank) for rank, (_, finding) in enumerate(findings, 1)]


def outlier_findings(
    images: Sequence[ImageFile], novelty: torch.Tensor, limit: float
) -> list[Finding]:
    """Return an "outlier" for each image with a novelty (N,) below `limit`, the lowest first."""
    findings: list[Finding] = []
    for row in novelty.argsort(stable=True).tolist():
        value = novelty[row].item()
        if value < limit:
            finding = finding_of("outlier", images[row], f"novelty {value:.1g}")
            findings.append(finding._replace(rank=len(findings) + 1, novelty=value))
    return findings


def accuracy_findings(correct: torch.Tensor) -> list[Finding]:
    """Return the accuracy, and its standard error, of predictions that are correct (N,) or not.

    The error is that of the accuracy with one more correct and one more incorrect prediction:
    otherwise it would be 0 if all predictions are correct, however few there are.
    """
    count = int(correct.sum())
    total = len(correct)
    smoothed = (count + 1) / (total + 2)
    error = math.sqrt(smoothed * (1 - smoothed) / total)
    return [
        Finding("accuracy", detail=f"{count / total:.4f}"),
        Finding("standard error", detail=f"{error:.4f}"),
    ]

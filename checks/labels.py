"""Checks of labels: near-duplicates, suspect labels and outliers, by the features of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from checks.data_folder import list_files, print_findings
from checks.findings import Finding
from checks.label_issues import accuracy_findings, outlier_findings, pair_findings, suspect_findings
from checks.near_duplicates import Batches, connect, embed, find_pairs
from image_files.names import display_names
from inference.results import UNUSUAL
from model import Head
from system.messages import UserError, shorten, warn
from training import fitting
from training.sampling import divide_into_folds, in_several_folds
from utils import DataFolder

FOLDS = 5  # of the cross-validation: together four times the time of fitting
MAX_COMPARED = 100_000  # images among which a training looks for near-duplicates: 400 MB


def warn_of_near_duplicates(data: DataFolder, averages: Batches) -> None:
    """Warn of images of valid and test that are near-duplicates of images of train.

    Copies with the same content do not count: `warn_of_copies` has reported them. More than
    MAX_COMPARED images are not compared.

    Args:
        averages: returns the features of all images, in batches; see `near_duplicates.embed`.
    """
    files, count = list(list_files(data)), len(data.paths["train"])
    if len(files) > MAX_COMPARED:
        return print("near-duplicates: not searched among so many images; --check_labels does")
    vectors = embed(averages)
    leaks: dict[str, str] = {}
    for first, second, _ in zip(*find_pairs(vectors[count:], vectors[:count]), strict=True):
        file, other = files[count + int(second)], files[int(first)]
        if data.digests[file.path] != data.digests[other.path]:
            leaks.setdefault(file.path, f"{file.path} ({other.path})")
    if leaks:
        warn(
            f"{data.root}: {len(leaks)} images of valid and test are near-duplicates of images of "
            f"train: the reported accuracy will be too high: {shorten(leaks.values(), 3)}; "
            "--check_labels lists all"
        )


def check_labels(
    data: DataFolder,
    samples: fitting.Samples,
    names: Mapping[str, str],
    new_head: Callable[[], Head],
    *,
    seed: int,
    epochs: int,
    learning_rate: float,
    batch_size: int | None,
) -> list[Finding]:
    """Find suspect labels, near-duplicates and outliers, and print how many there are.

    Args:
        data: without images that could not be decoded.
        samples: the features of its images.
        names: category folder -> name.
        new_head, epochs, learning_rate, batch_size: see `fitting.cross_validate`.
        seed: of the folds.

    Returns:
        They, and the accuracy with its standard error.
    """
    files, categories = list(list_files(data)), list(data.class_to_idx)
    labels, pairs = samples.labels[samples.plain_rows()], find_pairs(embed(samples.averages))
    groups = connect(pairs, len(files))  # with a near-duplicate in another fold, it is no test
    folds = divide_into_folds(labels, groups, FOLDS, seed)
    if not in_several_folds(labels, folds).any():
        raise UserError(f"{data.root}: no label can be checked: no category has different images")
    result = fitting.cross_validate(
        new_head,
        samples,
        folds,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
    )
    is_valid, is_counted = result.is_valid, result.is_valid.clone()
    is_counted[len(files) - len(data.paths["test"]) :] = False
    findings = accuracy_findings((result.probs.argmax(1) == labels)[is_counted])
    print(
        f"accuracy {findings[0].detail}, standard error {findings[1].detail}: "
        f"{int(is_counted.sum())} images of train and valid, by networks that did not see them"
    )
    if count := int((~is_valid).sum()):
        print(f"{count} labels cannot be checked: their categories have no different images")
    rows = is_valid.nonzero()[:, 0]
    of_rows = ([files[row] for row in rows.tolist()], result.probs[rows], labels[rows])
    issues = [
        *suspect_findings(*of_rows, categories, display_names(categories, names)),
        *pair_findings(files, pairs, data.digests),
        *outlier_findings(files, result.novelty, UNUSUAL),
    ]
    print_findings(issues)
    return findings + issues

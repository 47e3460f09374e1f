"""What can be wrong with a data folder: unreadable files, duplicates, leaks, incorrect labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import fitting
from model import Head
from support.arguments import UserError, one_line, shorten, warn
from support.files import escape
from support.findings import File, Finding, find_copies, format_findings, read_paths, write_findings
from support.inspection import inspect_images
from support.label_issues import (
    accuracy_findings,
    outlier_findings,
    pair_findings,
    suspect_findings,
)
from support.names import display_names, match_names
from support.near_duplicates import Batches, connect, embed, find_pairs
from support.results import UNUSUAL
from support.sampling import divide_into_folds, in_several_folds
from utils import (
    CATEGORY_NAMES,
    CROP,
    SPLITS,
    DataFolder,
    Images,
    Scan,
    find_problems,
    load_category_names,
    load_image,
    paths_of,
    read_images,
)

FOLDS = 5  # of the cross-validation: together four times the time of fitting
MAX_COMPARED = 100_000  # images among which a training looks for near-duplicates: 400 MB


# ---------------------------------------------------------------- before training


def list_files(data: DataFolder) -> Iterator[File]:
    """Yield the images of a data folder."""
    categories = list(data.class_to_idx)
    for split in SPLITS:
        for path, label in zip(data.paths[split], data.labels[split], strict=True):
            yield File(split, categories[label], path)


def warn_of_copies(data: DataFolder) -> None:
    """Warn of images with the same content in two splits, or in two categories."""
    leaks, conflicts = [], []
    for file, original in find_copies(list_files(data), data.digests).items():
        line = f"{file.path} ({original.path})"
        leaks += [line] if file.split != original.split else []
        conflicts += [line] if file.category != original.category else []
    if leaks:
        warn(
            f"{data.root}: {len(leaks)} images are in two splits: the reported accuracy will be "
            f"too high: {shorten(leaks)}"
        )
    if conflicts:
        warn(
            f"{data.root}: {len(conflicts)} images are in two categories; one of the labels is "
            f"incorrect: {shorten(conflicts)}"
        )


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


def describe(data: DataFolder) -> dict[str, str]:
    """Return split, category and digest of each image, by path: what a training learns from."""
    return {
        file.path: f"{file.split} {file.category} {data.digests.get(file.path, '')}"
        for file in list_files(data)
    }


def exclude_images(
    data: DataFolder, failures: dict[str, str], *, strict: bool = False
) -> DataFolder:
    """Return the data folder without the images that cannot be read; each is warned of.

    Args:
        failures: why an image cannot be read, by path.
        strict: raise an error instead of the first warning.

    Raises:
        UserError: a category of train, or another split, has no image left; or there are failures
            and `strict` is set.
    """
    for reason in failures.values():
        if strict:
            raise UserError(f"{reason} (--strict)")
        warn(f"{reason}; left out")
    paths, labels = {}, {}
    for split in SPLITS:
        images = zip(data.paths[split], data.labels[split], strict=True)
        readable = [(path, label) for path, label in images if path not in failures]
        if not readable:
            raise UserError(f"{split}: none of its images can be read")
        paths[split], labels[split] = [p for p, _ in readable], [label for _, label in readable]
    labels_in_train = set(labels["train"])
    for category, index in data.class_to_idx.items():
        if index not in labels_in_train:
            raise UserError(f"train/{category}: none of its images can be read")
    return replace(data, paths=paths, labels=labels)


def exclude_unreadable(data: DataFolder, *, strict: bool = False) -> DataFolder:
    """Return a data folder without files that cannot be images; also warn of copies.

    See `exclude_images` for `strict` and errors.
    """
    warn_of_copies(data)
    return exclude_images(data, data.failures, strict=strict)


def exclude_listed(data_dir: str, images: Images, path: str) -> Images:
    """Return the images without those whose paths a file lists; see `findings.read_paths`.

    Raises:
        UserError: none of the paths is an image of the data folder.
    """
    listed = set(read_paths(path))
    known = {escape(image) for image in paths_of(images)}
    unknown = sorted(listed - known)
    if len(unknown) == len(listed):
        raise UserError(f"--exclude {path}: has no image of {data_dir}: {shorten(unknown)}")
    if unknown:
        warn(f"--exclude {path}: {len(unknown)} paths are no images: {shorten(unknown)}")
    print(f"--exclude {path}: {len(listed) - len(unknown)} images are left out")
    return {
        split: {c: [p for p in group if escape(p) not in listed] for c, group in categories.items()}
        for split, categories in images.items()
    }


def check_names(path: str | None, categories: Sequence[str]) -> dict[str, str]:
    """Load the names of categories, print which were found, and warn of what may be wrong.

    Args:
        path: of --category_names; None means the default file, if there is one.

    Returns:
        The name of each category; without one, that of its folder.
    """
    names = load_category_names(path)
    return match_names(names, path or CATEGORY_NAMES, categories, is_default=path is None)


# ---------------------------------------------------------------- instead of training


def check_data_folder(
    data_dir: str,
    images: Images,
    views: int,
    measure: Callable[[list[str]], float],
    table: str = "",
    size: int = CROP,
    *,
    strict: bool = False,
) -> tuple[list[Finding], Scan]:
    """Print what is in a data folder, what may be wrong with it, and how long training will take.

    Returns the findings, and the images that were read, in all splits.

    Args:
        images: from `utils.list_images`.
        views: number of views of each image of train.
        measure: paths of images -> seconds that a view's features take.
        table: a CSV file to write with all findings.
        size: of the views; images that are smaller are reported.
        strict: training would refuse an image that cannot be read.

    Raises:
        UserError: training would refuse the folder, or the table cannot be written.
    """
    scan = read_images(data_dir, images)
    images, findings = scan.images, inspect_images(data_dir, *scan, load_image, size)
    for split, categories in images.items():
        sizes = sorted((len(paths), category) for category, paths in categories.items())
        line = (
            f"{split:5}  {sum(size for size, _ in sizes):7} images  {len(sizes):5} categories, "
            f"of {sizes[0][0]} ({sizes[0][1]}) to {sizes[-1][0]} ({sizes[-1][1]})"
        )
        print(one_line(line))
    print_findings(f for f in findings if f.finding != "images")
    unreadable = {f.path for f in findings if f.finding == "unreadable"}
    readable = {
        split: {c: [path for path in paths if path not in unreadable] for c, paths in cs.items()}
        for split, cs in images.items()
    }
    train = [path for paths in readable["train"].values() for path in paths]
    count = sum(len(paths) for cs in readable.values() for paths in cs.values())
    count += len(train) * (views - 1)
    seconds = float(f"{count * measure(train) if train else 0:.2g}")  # two significant digits
    print(f"features: {count} views in about {seconds:.10g} seconds on this machine")
    print(f"to train: --output_cat {len(images['train'])}")
    findings.append(Finding("seconds", detail=f"{seconds:.10g}"))
    if table:
        write_findings(table, findings)
    problems = list(find_problems(readable))
    if strict and unreadable:
        problems.append(f"{len(unreadable)} images cannot be read (--strict)")
    if problems:
        raise UserError(f"{data_dir}: training would refuse it: {'; '.join(problems[:5])}")
    return findings, scan


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


def print_findings(findings: Iterable[Finding]) -> None:
    """Print a line for each kind of finding."""
    for line in format_findings(findings):
        print(line)

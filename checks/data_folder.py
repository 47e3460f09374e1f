"""What can be wrong with a data folder: unreadable files, duplicates, leaks, incorrect labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from PIL import Image

from checks.findings import (
    File,
    Finding,
    compare,
    find_copies,
    format_findings,
    read_paths,
    write_findings,
)
from image_files.names import look_alikes, match_names
from system.files import escape
from system.messages import UserError, one_line, shorten, warn
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


def print_findings(findings: Iterable[Finding]) -> None:
    """Print a line for each kind of finding."""
    for line in format_findings(findings):
        print(line)


MAX_PENDING = 1000  # images that are decoded ahead
LONG_ASPECT = 3  # long side to short side of an image that is reported as long

Load = Callable[[str, Callable[[str], object]], object]


def inspect_images(
    root: str,
    images: Images,
    digests: Mapping[str, str],
    failures: Mapping[str, str],
    load: Load,
    side: int,
) -> list[Finding]:
    """Decode all images and report what may reduce the quality of a training.

    Args:
        images: paths, relative to `root`, by split and category.
        digests, failures: of each file's content, and why it cannot be read, by path.
        load: decodes an image; it calls its second argument with a line if it had to guess.
        side: pixels of an image's shorter side that are needed.

    Returns:
        Each category's number of "images", and images that are "unreadable", a "duplicate" of an
        earlier one, "below 224 pixels" (`side`), "long" (over 3 times as long as wide), in a "mode"
        that is not RGB, or with "pixels" whose meaning is uncertain. The "unknown category" of a
        split is one that train lacks, an "empty category" one without images in train: training
        refuses both. A "look-alike" is a category whose name can be mistaken for another.
    """
    findings = _inspect_categories(images)
    files = [File(s, c, path) for s, cs in images.items() for c in cs for path in cs[c]]
    originals = find_copies(files, digests)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), MAX_PENDING):
            batch = files[start : start + MAX_PENDING]
            inspected = pool.map(
                lambda file: _inspect_image(root, file.path, failures, load, side), batch
            )
            for file, remarks in zip(batch, inspected, strict=True):
                findings += [Finding(finding, *file, detail) for finding, detail in remarks]
                if other := originals.get(file):
                    copy = Finding("duplicate", *file, compare(file, other))
                    findings.append(copy._replace(other_path=other.path, distance=0.0))
    return findings


def _inspect_categories(images: Images) -> list[Finding]:
    """Count each category's images, and report categories that training refuses."""
    findings = []
    for split, categories in images.items():
        for category, paths in categories.items():
            findings.append(Finding("images", split, category, "", str(len(paths))))
            if category not in images["train"]:
                findings.append(Finding("unknown category", split, category, "", "not in train"))
            elif split == "train" and not paths:
                findings.append(Finding("empty category", split, category, "", "no image"))
    for group, difference in look_alikes({c: c for cs in images.values() for c in cs}):
        detail = f"differs from {shorten(map(repr, group[1:]))} only in {difference}"
        findings.append(Finding("look-alike", "", group[0], "", detail))
    return findings


def _inspect_image(
    root: str, path: str, failures: Mapping[str, str], load: Load, side: int
) -> list[tuple[str, str]]:
    """Return what is unusual about an image."""
    file = os.path.join(root, path)
    lines: list[str] = []
    try:
        if path in failures:
            raise UserError(failures[path])
        load(file, lines.append)
    except UserError as error:
        return [("unreadable", str(error).removeprefix(f"{file}: "))]
    with Image.open(file) as image:
        (width, height), mode = image.size, image.mode
    remarks = [("pixels", line.removeprefix(f"{file}: ")) for line in lines]
    if min(width, height) < side:
        remarks.append((f"below {side} pixels", f"{width} x {height}"))
    if max(width, height) > LONG_ASPECT * min(width, height):
        remarks.append(("long", f"{width} x {height}"))
    if mode != "RGB":
        remarks.append(("mode", mode))
    return remarks

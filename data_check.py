"""What can be wrong with a data folder: unreadable files, duplicates, leaks, unusual images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from support.arguments import UserError, one_line, shorten, warn
from support.files import write_csv
from support.names import look_alikes, same_names
from utils import (
    CATEGORY_NAMES,
    CROP,
    SPLITS,
    DataFolder,
    Images,
    find_problems,
    list_images,
    load_category_names,
    load_image,
    read_images,
)

MAX_PENDING = 1000  # images that are decoded ahead
LONG_ASPECT = 3  # long side to short side of an image that is reported as long


# ---------------------------------------------------------------- before training


class File(NamedTuple):
    """A file of a data folder."""

    split: str
    category: str
    path: str


def _files(data: DataFolder) -> Iterator[File]:
    """Yield the images of a data folder."""
    categories = list(data.class_to_idx)
    for split in SPLITS:
        for path, label in zip(data.paths[split], data.labels[split], strict=True):
            yield File(split, categories[label], path)


def _originals(files: Iterable[File], digests: Mapping[str, str]) -> dict[File, File]:
    """Return the first file with the same content, for each file that is not the first."""
    first: dict[str, File] = {}
    known = [(file, digests[file.path]) for file in files if file.path in digests]
    pairs = [(file, first.setdefault(digest, file)) for file, digest in known]
    return {file: original for file, original in pairs if original != file}


def warn_of_copies(data: DataFolder) -> None:
    """Warn of images with the same content in two splits, or in two categories."""
    leaks, conflicts = [], []
    for file, original in _originals(_files(data), data.digests).items():
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


def check_report_folder(root: str, images: Images, folder: Path) -> None:
    """Raise UserError if a training would write its report among its images.

    The next training would take the report's figures for images.
    """
    inside = Path(os.path.relpath(folder.resolve(), Path(root).resolve())).as_posix()
    for categories in images.values():
        for paths in categories.values():
            if any(path.startswith(f"{inside}/") for path in paths):
                raise UserError(f"--save_dir {folder}: contains images; name another folder")


def describe(data: DataFolder) -> dict[str, str]:
    """Return split, category and digest of each image, by path: what a training learns from."""
    return {
        file.path: f"{file.split} {file.category} {data.digests.get(file.path, '')}"
        for file in _files(data)
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


def check_names(path: str | None, categories: Sequence[str]) -> dict[str, str]:
    """Load the names of categories, print which were found, and warn of what may be wrong.

    Args:
        path: of --category_names; None means the default file, if there is one.

    Returns:
        The name of each category; without one, that of its folder.
    """
    names, file = load_category_names(path), path or CATEGORY_NAMES
    known = {category: names[category] for category in categories if category in names}
    unnamed = [category for category in categories if category not in names]
    unused = [category for category in names if category not in known]
    if known:
        examples = [f"{category} = {name}" for category, name in known.items()]
        print(one_line(f"names: {file}, {shorten(examples, 3)}"))
    else:
        print(f"names: those of the folders{f'; {file} has none of them' if names else ''}")
    if unnamed and (known or path):
        warn(f"{file}: has no name for {len(unnamed)} categories: {shorten(unnamed)}")
    if unused and path:
        warn(f"{file}: {len(unused)} names fit no category: {shorten(unused)}")
    for name, group in same_names(known).items():
        warn(f"{file}: {shorten(group)} have the same name, {name!r}")
    return {category: names.get(category, category) for category in categories}


# ---------------------------------------------------------------- instead of training


def check_data_folder(
    data_dir: str,
    views: int,
    measure: Callable[[list[str]], float],
    table: str = "",
    *,
    strict: bool = False,
) -> list[str]:
    """Print what is in a data folder, what may be wrong with it, and how long training will take.

    Args:
        views: number of views of each image of train.
        measure: paths of images -> seconds that a view's features take.
        table: a CSV file to write with all findings.
        strict: training would refuse an image that cannot be read.

    Returns:
        The categories of train.

    Raises:
        UserError: training would refuse the folder, or the table cannot be written.
    """
    images, digests, failures = read_images(data_dir, list_images(data_dir))
    findings = inspect_images(data_dir, images, digests, failures)
    for split, categories in images.items():
        sizes = sorted((len(paths), category) for category, paths in categories.items())
        line = (
            f"{split:5}  {sum(size for size, _ in sizes):7} images  {len(sizes):5} categories, "
            f"of {sizes[0][0]} ({sizes[0][1]}) to {sizes[-1][0]} ({sizes[-1][1]})"
        )
        print(one_line(line))
    for kind in dict.fromkeys(f.finding for f in findings if f.finding != "images"):
        group = [f for f in findings if f.finding == kind]
        examples = [f"{f.path or f'{f.split}/{f.category}'} ({f.detail})" for f in group]
        print(one_line(f"{kind}: {len(group)}: {shorten(examples)}"))
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
    if table:
        rows = [*findings, Finding("seconds", "", "", "", f"{seconds:.10g}")]
        write_csv(table, [Finding._fields, *rows])
    problems = list(find_problems(readable))
    if strict and unreadable:
        problems.append(f"{len(unreadable)} images cannot be read (--strict)")
    if problems:
        raise UserError(f"{data_dir}: training would refuse it: {'; '.join(problems[:5])}")
    return list(images["train"])


class Finding(NamedTuple):
    """What `inspect_images` found about one image, or about one category."""

    finding: str
    split: str
    category: str
    path: str
    detail: str


def inspect_images(
    root: str, images: Images, digests: Mapping[str, str], failures: Mapping[str, str]
) -> list[Finding]:
    """Decode all images and report what may reduce the quality of a training.

    Args:
        images, digests, failures: from `utils.read_images`.

    Returns:
        Each category's number of "images", and images that are "unreadable", a "duplicate" of an
        earlier one, "below 224 pixels", "long" (over 3 times as long as wide), in a "mode" that is
        not RGB, or with "pixels" whose meaning is uncertain. The "unknown category" of a split is
        one that train lacks, an "empty category" one without images in train: training refuses
        both. A "look-alike" is a category whose name can be mistaken for another.
    """
    findings = _inspect_categories(images)
    files = [File(s, c, path) for s, cs in images.items() for c in cs for path in cs[c]]
    originals = _originals(files, digests)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), MAX_PENDING):
            batch = files[start : start + MAX_PENDING]
            inspected = pool.map(lambda file: _inspect_image(root, file.path, failures), batch)
            for file, remarks in zip(batch, inspected, strict=True):
                findings += [Finding(finding, *file, detail) for finding, detail in remarks]
                if original := originals.get(file):
                    is_conflict = original.category != file.category
                    other_category = "in another category: " if is_conflict else ""
                    is_leak = original.split != file.split
                    prefix = "in another split: " if is_leak else other_category
                    findings.append(Finding("duplicate", *file, f"{prefix}{original.path}"))
    return findings


def _inspect_categories(images: dict[str, dict[str, list[str]]]) -> list[Finding]:
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


def _inspect_image(root: str, path: str, failures: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what is unusual about an image."""
    file = os.path.join(root, path)
    lines: list[str] = []
    try:
        if path in failures:
            raise UserError(failures[path])
        load_image(file, lines.append)
    except UserError as error:
        return [("unreadable", str(error).removeprefix(f"{file}: "))]
    with Image.open(file) as image:
        (width, height), mode = image.size, image.mode
    remarks = [("pixels", line.removeprefix(f"{file}: ")) for line in lines]
    if min(width, height) < CROP:
        remarks.append((f"below {CROP} pixels", f"{width} x {height}"))
    if max(width, height) > LONG_ASPECT * min(width, height):
        remarks.append(("long", f"{width} x {height}"))
    if mode != "RGB":
        remarks.append(("mode", mode))
    return remarks

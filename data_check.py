"""What can be wrong with a data folder: unreadable files, duplicates, leaks, unusual images."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from PIL import Image

from support.arguments import UserError, one_line, shorten, warn
from support.files import check_regular_file, sha256_of, write_csv
from utils import CROP, SPLITS, DataFolder, list_images, load_image

MAX_PENDING = 1000  # images that are decoded ahead
LONG_ASPECT = 3  # long side to short side of an image that is reported as long


# ---------------------------------------------------------------- before training


@dataclass
class FileCheck:
    """What the status of each file says before the work starts, by path.

    Attributes:
        versions: size and modification time; a changed file has another version.
        failures: why a file cannot be an image: missing, empty, a pipe.
    """

    versions: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def check_files(data: DataFolder) -> FileCheck:
    """Look at each file's status once, and warn of images of valid or test that train has too.

    Only files that are as large as one of another split are read.
    """
    checked = FileCheck()
    by_size: dict[int, list[tuple[str, str]]] = {}  # (split, path)
    for split in SPLITS:
        for path in data.paths[split]:
            try:
                status = check_regular_file(os.path.join(data.root, path))
            except UserError as error:
                checked.failures[path] = str(error)
                checked.versions[path] = "missing"
                continue
            checked.versions[path] = f"{status.st_size} {status.st_mtime_ns}"
            by_size.setdefault(status.st_size, []).append((split, path))
    leaks = []
    for files in by_size.values():
        if files[0][0] == "train" != files[-1][0]:
            leaks += _find_leaks(data.root, files, checked)
    if leaks:
        warn(
            f"{data.root}: {len(leaks)} images of valid or test are also in train: the reported "
            f"accuracy will be too high: {shorten(leaks)}"
        )
    return checked


def _find_leaks(root: str, files: list[tuple[str, str]], checked: FileCheck) -> list[str]:
    """List the files of valid and test, (split, path), whose content a file of train has."""
    leaks, in_train = [], {}  # path by content
    for split, path in files:
        try:
            content = sha256_of(os.path.join(root, path))
        except OSError as error:
            checked.failures[path] = f"{root}/{path}: cannot read it: {error.strerror}"
            continue
        if split == "train":
            in_train[content] = path
        elif content in in_train:
            leaks.append(f"{path} ({in_train[content]})")
    return leaks


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
    return DataFolder(data.root, data.class_to_idx, paths, labels)


# ---------------------------------------------------------------- instead of training


def check_data_folder(
    data_dir: str, views: int, measure: Callable[[list[str]], float], table: str = ""
) -> None:
    """Print what is in a data folder, what may be wrong with it, and how long training will take.

    Args:
        views: number of views of each image of train.
        measure: paths of images -> seconds that a view's features take.
        table: a CSV file to write with all findings.

    Raises:
        UserError: the folder cannot be listed, or the table cannot be written.
    """
    images = list_images(data_dir)
    findings = inspect_images(data_dir, images)
    for split, categories in images.items():
        sizes = sorted((len(paths), category) for category, paths in categories.items())
        print(
            f"{split:5}  {sum(size for size, _ in sizes):7} images  {len(sizes):5} categories, "
            f"of {sizes[0][0]} ({sizes[0][1]}) to {sizes[-1][0]} ({sizes[-1][1]})"
        )
    for kind in dict.fromkeys(f.finding for f in findings if f.finding != "images"):
        group = [f for f in findings if f.finding == kind]
        examples = [f"{f.path or f'{f.split}/{f.category}'} ({f.detail})" for f in group]
        print(one_line(f"{kind}: {len(group)}: {shorten(examples)}"))
    unreadable = {f.path for f in findings if f.finding == "unreadable"}
    readable = {
        split: [path for paths in categories.values() for path in paths if path not in unreadable]
        for split, categories in images.items()
    }
    count = sum(map(len, readable.values())) + len(readable["train"]) * (views - 1)
    seconds = count * measure(readable["train"]) if readable["train"] else 0.0
    seconds = float(f"{seconds:.2g}")  # two significant digits
    print(f"features: {count} views in about {seconds:.10g} seconds on this machine")
    print(f"to train: --output_cat {len(images['train'])}")
    if table:
        rows = [*findings, Finding("seconds", "", "", "", f"{seconds:.10g}")]
        write_csv(table, [Finding._fields, *rows])


class Finding(NamedTuple):
    """What `inspect_images` found about one image, or about one category."""

    finding: str
    split: str
    category: str
    path: str
    detail: str


def inspect_images(root: str, images: dict[str, dict[str, list[str]]]) -> list[Finding]:
    """Decode all images and report what may reduce the quality of a training.

    Args:
        images: from `utils.list_images`.

    Returns:
        Each category's number of "images", and images that are "unreadable", a "duplicate" of an
        earlier one, "below 224 pixels", "long" (over 3 times as long as wide), in a "mode" that
        is not RGB, or with "pixels" whose meaning is uncertain. The "unknown
        category" of a split is one that train lacks, an "empty category" one without images in
        train: training refuses both.
    """
    findings = _inspect_categories(images)
    files = [(s, c, path) for s, cs in images.items() for c in cs for path in cs[c]]
    first: dict[str, tuple[str, str, str]] = {}  # the first file with a content
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), MAX_PENDING):
            batch = files[start : start + MAX_PENDING]
            inspected = pool.map(lambda file: _inspect_image(root, file[2]), batch)
            for file, (content, remarks) in zip(batch, inspected, strict=True):
                findings += [Finding(finding, *file, detail) for finding, detail in remarks]
                original = first.setdefault(content, file)
                if content and original != file:
                    prefix = "" if original[0] == file[0] else "in another split: "
                    findings.append(Finding("duplicate", *file, f"{prefix}{original[2]}"))
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
    return findings


def _inspect_image(root: str, path: str) -> tuple[str, list[tuple[str, str]]]:
    """Return an image's sha256 ("" if unreadable), and what is unusual about it."""
    path = os.path.join(root, path)
    lines: list[str] = []
    try:
        load_image(path, lines.append)
    except UserError as error:
        return "", [("unreadable", str(error).removeprefix(f"{path}: "))]
    with Image.open(path) as image:
        (width, height), mode = image.size, image.mode
    remarks = [("pixels", line.removeprefix(f"{path}: ")) for line in lines]
    if min(width, height) < CROP:
        remarks.append((f"below {CROP} pixels", f"{width} x {height}"))
    if max(width, height) > LONG_ASPECT * min(width, height):
        remarks.append(("long", f"{width} x {height}"))
    if mode != "RGB":
        remarks.append(("mode", mode))
    return sha256_of(path), remarks

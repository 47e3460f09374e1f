"""What can be wrong with a data folder: unreadable files, duplicates, leaks, incorrect labels."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from checks.findings import (
    MEASURES,
    Finding,
    compare,
    find_copies,
    finding_of,
    print_findings,
    write_findings,
)
from image_files.decoding import open_file, open_image
from image_files.names import look_alikes
from system.messages import UserError, counted, one_line, shorten, warn
from training.features import Settings, seconds_per_view
from utils import (
    DataFolder,
    ImageFile,
    check_categories,
    decode_image,
    exclude_images,
    find_problems,
)

MAX_PENDING = 1000  # images that are decoded ahead
LONG_ASPECT = 3  # long side to short side of an image that is reported as long

# ---------------------------------------------------------------- before training


def check_and_exclude(data: DataFolder, *, strict: bool = False) -> DataFolder:
    """Warn of what may be wrong with a data folder, and leave out images that cannot be read.

    Args:
        strict: an image that cannot be read is an error.

    Raises:
        UserError: training refuses the folder, or a category has no image left.
    """
    check_categories(data)
    warn_of_copies(data)
    return exclude_images(data, data.errors(), strict=strict)


def warn_of_copies(data: DataFolder) -> None:
    """Warn of images with the same content in two splits, or in two categories."""
    leaks = []
    conflicts = []
    for image, original in find_copies(data.images):
        line = f"{image.path} ({original.path})"
        if image.split != original.split:
            leaks.append(line)
        if image.category != original.category:
            conflicts.append(line)
    if leaks:
        warn(
            f"{data.root}: {counted(len(leaks), 'image is', 'images are')} in two splits: the "
            f"reported accuracy will be too high: {shorten(leaks)}"
        )
    if conflicts:
        warn(
            f"{data.root}: {counted(len(conflicts), 'image is', 'images are')} in two categories; "
            f"one of the labels is incorrect: {shorten(conflicts)}"
        )


def describe_images(data: DataFolder) -> dict[str, str]:
    """Return split, category and digest of each image, by path: what a training learns from."""
    return {image.path: f"{image.split} {image.category} {image.digest}" for image in data.images}


# ---------------------------------------------------------------- instead of training


def check_data_folder(
    data: DataFolder,
    settings: Settings,
    *,
    arch: str,
    views: int,
    table: str = "",
    strict: bool = False,
) -> tuple[list[Finding], DataFolder]:
    """Print what is in a data folder, what may be wrong with it, and how long training will take.

    Returns the findings, and the data folder with the errors of all images that cannot be decoded.

    Args:
        data: from `read_images`.
        settings: of the features; images that are smaller than their views are reported.
        arch: of the backbone, whose speed is measured.
        views: number of views of each image of train.
        table: a CSV file to write with all findings.
        strict: training would refuse an image that cannot be read.

    Raises:
        UserError: training would refuse the folder, or the table cannot be written.
    """
    data, findings = inspect_images(data, settings.image_size)
    print_counts(data)
    print_findings(finding for finding in findings if finding.finding not in MEASURES)
    errors = data.errors()
    readable = data.without(errors)
    train = readable.paths("train")
    count = len(readable.images) + len(train) * (views - 1)
    seconds = 0.0
    if train:
        seconds = count * seconds_per_view(arch, data.root, train, settings)
        seconds = float(f"{seconds:.2g}")  # two significant digits
    print(f"features: {count} views in about {seconds:.10g} seconds, if none are stored")
    findings.append(Finding("seconds", detail=f"{seconds:.10g}"))
    if table:
        write_findings(table, findings)
        print(one_line(f"saved {table}"))
    problems = list(find_problems(readable))
    if strict and errors:
        problems.append(f"{counted(len(errors), 'image', 'images')} cannot be read (--strict)")
    if problems:
        raise UserError(f"{data.root}: training would refuse it: {'; '.join(problems[:5])}")
    print(f"to train: --output_cat {len(data.class_to_idx)}")
    return findings, data


def print_counts(data: DataFolder) -> None:
    """Print the number of images of each split, and of its smallest and its largest category."""
    counts = data.counts()
    for split, categories in data.categories.items():
        sizes = sorted((counts[split, category], category) for category in categories) or [(0, "")]
        smallest = sizes[0]
        largest = sizes[-1]
        line = f"{split:5}  {len(data.of(split)):7} images  {len(categories):5} categories, "
        if smallest[0] == largest[0]:
            line += f"{smallest[0]} of each"
        else:
            line += f"from {smallest[0]} ({smallest[1]}) to {largest[0]} images ({largest[1]})"
        print(one_line(line))


def inspect_images(data: DataFolder, size: int) -> tuple[DataFolder, list[Finding]]:
    """Decode all images, and find what may reduce the quality of a training.

    The findings are each category's number of "images", and images that are "unreadable", a
    "duplicate" of an earlier one, "below 224 pixels" (`size`), "long" (over 3 times as long as
    wide), in a "mode" that is not RGB, or with "pixels" whose meaning is uncertain. The "unknown
    category" of a split is one that train lacks, an "empty category" one without images in train:
    training refuses both. A "look-alike" is a category whose name can be mistaken for another.

    Args:
        size: pixels of an image's shorter side that are needed.

    Returns:
        The data folder with the errors of images that cannot be decoded, and the findings.
    """
    findings = _inspect_categories(data)
    copies = {image.path: original for image, original in find_copies(data.images)}
    images: list[ImageFile] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(data.images), MAX_PENDING):
            batch = data.images[start : start + MAX_PENDING]
            inspected = pool.map(lambda image: _inspect_image(data.root, image, size), batch)
            for image, (error, of_image) in zip(batch, inspected, strict=True):
                images.append(image._replace(error=error))
                findings += of_image
                if image.path in copies:
                    original = copies[image.path]
                    copy = finding_of("duplicate", image, compare(image, original))
                    findings.append(copy._replace(other_path=original.path, distance=0.0))
    return replace(data, images=images), findings


def _inspect_categories(data: DataFolder) -> list[Finding]:
    """Count each category's images, and report categories that training refuses."""
    findings = []
    counts = data.counts()
    train = data.class_to_idx
    names: dict[str, None] = {}  # of all splits, in their order
    for split, categories in data.categories.items():
        names |= dict.fromkeys(categories)
        for category in categories:
            count = counts[split, category]
            findings.append(Finding("images", split, category, detail=str(count)))
            if category not in train:
                findings.append(Finding("unknown category", split, category, detail="not in train"))
            elif split == "train" and not count:
                findings.append(Finding("empty category", split, category, detail="no image"))
    for group, difference in look_alikes(names):
        detail = f"differs from {shorten(map(repr, group[1:]))} only in {difference}"
        findings.append(Finding("look-alike", category=group[0], detail=detail))
    return findings


def _inspect_image(root: str, image: ImageFile, size: int) -> tuple[str, list[Finding]]:
    """Return why an image cannot be decoded, or "", and what is unusual about it."""
    file = os.path.join(root, image.path)
    lines: list[str] = []
    try:
        if image.error:
            raise UserError(image.error)
        with open_file(file) as content:
            decode_image(content, file, size, lines.append)
            with open_image(content, file, lambda line: None) as header:
                width, height = header.size
                mode = header.mode
    except UserError as error:
        reason = str(error)
        return reason, [finding_of("unreadable", image, reason.removeprefix(f"{file}: "))]
    findings = [finding_of("pixels", image, line.removeprefix(f"{file}: ")) for line in lines]
    if min(width, height) < size:
        findings.append(finding_of(f"below {size} pixels", image, f"{width} x {height}"))
    if max(width, height) > LONG_ASPECT * min(width, height):
        findings.append(finding_of("long", image, f"{width} x {height}"))
    if mode != "RGB":
        findings.append(finding_of("mode", image, mode))
    return "", findings

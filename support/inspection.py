"""Decoding all images of a data folder, and what may reduce the quality of a training."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from support.arguments import UserError, shorten
from support.findings import File, Finding, compare, find_copies
from support.names import look_alikes

MAX_PENDING = 1000  # images that are decoded ahead
LONG_ASPECT = 3  # long side to short side of an image that is reported as long

Images = Mapping[str, Mapping[str, Sequence[str]]]
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

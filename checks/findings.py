"""Findings: what was noticed about files, as lines for people and as a table for programs."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from system.files import write_csv
from system.messages import one_line, shorten
from utils import ImageFile

WORST_FIRST = ("unknown category", "empty category", "unreadable", "duplicate", "look-alike")
MEASURES = ("images", "seconds", "accuracy", "standard error")  # which are no problems
ELSEWHERE = ("in another split and category", "in another category", "in another split")


class Finding(NamedTuple):
    """What was noticed about one file or, without a path, about a category or all of them.

    Attributes:
        finding: its kind, such as "duplicate".
        detail: for people.
        rank: among the findings of a kind, from 1; 0: they have no order.
        probability, suggested_probability: of the category, and of the suggested one, 0-1.
        second_guess, third_guess: the most likely categories after the suggested one.
        other_path: of the file that this one resembles, at this distance.
    """

    finding: str
    split: str = ""
    category: str = ""
    path: str = ""
    detail: str = ""
    rank: int = 0
    probability: float | None = None
    suggested: str = ""
    suggested_probability: float | None = None
    other_path: str = ""
    distance: float | None = None
    novelty: float | None = None
    second_guess: str = ""
    third_guess: str = ""


def finding_of(kind: str, image: ImageFile, detail: str) -> Finding:
    """Return what was noticed about an image."""
    return Finding(kind, image.split, image.category, image.path, detail)


def find_copies(images: Iterable[ImageFile]) -> Iterator[tuple[ImageFile, ImageFile]]:
    """Yield each image whose content an earlier one has as well, and the first image with it."""
    first: dict[str, ImageFile] = {}
    for image in images:
        if image.digest:
            original = first.setdefault(image.digest, image)
            if original is not image:
                yield image, original


def compare(image: ImageFile, other: ImageFile) -> str:
    """Return where another image is that resembles this one: "in another split: PATH"."""
    different = []
    if image.split != other.split:
        different.append("split")
    if image.category != other.category:
        different.append("category")
    if not different:
        return other.path
    return f"in another {' and '.join(different)}: {other.path}"


def print_findings(findings: Iterable[Finding]) -> None:
    """Print a line for each kind and cause of findings, with their number and the first ones.

    The worst ones come first: what training refuses or leaves out, then what makes it learn or
    report something false.
    """
    groups: dict[tuple[str, str], list[str]] = {}  # by kind and cause
    for f in findings:
        subject = f.path or f"{f.split}/{f.category}"
        cause = ""
        if f.finding == "unreadable":  # images of a format, for example, have one reason
            cause = f", {f.detail}"
        elif f.detail.startswith(ELSEWHERE):
            where, _, other = f.detail.partition(": ")
            cause = f" {where}"
            subject += f" ({other})"
        else:
            subject += f" ({f.detail})"
        groups.setdefault((f.finding, cause), []).append(subject)
    for kind, cause in sorted(groups, key=_severity):
        examples = groups[kind, cause]
        print(one_line(f"{kind}{cause} ({len(examples)}): {shorten(examples)}"))


def _severity(group: tuple[str, str]) -> tuple[int, int]:
    """Return the position of a kind and a cause in the order of what is printed."""
    kind, cause = group
    kinds = {name: position for position, name in enumerate(WORST_FIRST)}
    causes = {f" {where}": position for position, where in enumerate(ELSEWHERE)}
    return kinds.get(kind, len(kinds)), causes.get(cause, len(causes))


def write_findings(path: str | os.PathLike, findings: Iterable[Finding]) -> None:
    """Write a CSV file with a row for each finding; what a finding lacks is empty.

    Raises:
        UserError: the file cannot be written.
    """
    rows = ([_cell(value) for value in finding] for finding in findings)
    write_csv(path, [Finding._fields, *rows])


def _cell(value: str | int | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    return str(value) if value else ""


def write_unreadable(path: Path, failures: Mapping[str, str]) -> None:
    """Write a table of the images that were left out, or delete an earlier one.

    Args:
        failures: why an image cannot be read, by path.
    """
    if failures:
        rows = [(image, reason.split(f"{image}: ", 1)[-1]) for image, reason in failures.items()]
        write_csv(path, [("path", "reason"), *rows])
    else:
        with contextlib.suppress(OSError):
            path.unlink()

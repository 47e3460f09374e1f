"""Files of a user that say which images a training leaves out, and which get another label."""

import codecs
import collections
import csv
import functools
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from image_files.digests import digest_of_file
from system.files import check_regular_file, escape
from system.messages import UserError, counted, one_line, shorten, warn
from utils import SPLITS, DataFolder, ImageFile

# Findings for which an image may be left out of a training.
REASONS = ("unreadable", "duplicate", "near-duplicate", "suspect label", "outlier")
KEEP, EXCLUDE, RELABEL = "keep", "exclude", "relabel"  # actions of --corrections
Row = Mapping[str, str]  # of a table, by the names of the columns in lower case
DELIMITERS = (",", ";", "\t")  # of CSV files; spreadsheets of some languages write the second


def exclude_listed(data: DataFolder, path: str) -> DataFolder:
    """Return the data folder without the images whose paths a file lists.

    A path is relative to the data folder, or one that exists.

    Args:
        path: a file of paths, or a CSV file with a column "path"; of its column "finding", if there
            is one, only REASONS are allowed.

    Raises:
        UserError: see `read_rows`; or a finding is no reason to leave an image out; or none of the
            paths is an image of the data folder.
    """
    rows = read_rows(path)
    findings = collections.Counter(row.get("finding", "") for row in rows)
    others = [f"{findings[kind]} {kind}" for kind in findings if kind and kind not in REASONS]
    if others:
        raise UserError(
            f"{path}: has rows that are no reason to leave an image out: {shorten(others)}; "
            "delete these rows"
        )
    excluded: dict[str, str] = {}  # path -> finding
    for row, image in _find_images(data, rows, f"--exclude {path}"):
        excluded[image.path] = row.get("finding", "")
    counts = collections.Counter(filter(None, excluded.values()))
    kinds = ", ".join(f"{count} {finding}" for finding, count in counts.most_common())
    line = f"--exclude {path}: {counted(len(excluded), 'image is', 'images are')} left out"
    if kinds:
        line += f" ({kinds})"
    print(line)
    return data.without(excluded)


def correct_labels(data: DataFolder, files: Sequence[str]) -> DataFolder:
    """Return the data folder with the corrections of some files; no file of an image changes.

    Args:
        files: CSV files with the columns "path", and "category" or "action" (KEEP, EXCLUDE or
            RELABEL, which is the default). A path is relative to the data folder, or one that
            exists. With a column "digest", the image has to be the one that was looked at. A later
            file replaces what an earlier one says; its KEEP confirms it.

    Raises:
        UserError: see `read_rows`; or a file is a table of findings, a row is not of this form, an
            image has changed, or none of the paths is an image of the data folder.
    """
    corrections: dict[str, _Correction] = {}  # by path
    for file in files:
        for path, correction in _read_corrections(data, file).items():
            if correction.action != KEEP or path not in corrections:
                corrections[path] = correction
    labels = {image.path: image.category for image in data.images}
    counts = collections.Counter(
        KEEP if (action, category) == (RELABEL, labels[path]) else action
        for path, (action, category, _) in corrections.items()
    )
    print(
        f"--corrections: {counted(counts[RELABEL], 'image gets', 'images get')} another label, "
        f"{counted(counts[EXCLUDE], 'is', 'are')} left out, "
        f"{counted(counts[KEEP], 'is', 'are')} confirmed"
    )
    return _corrected(data, corrections)


class _Correction(NamedTuple):
    action: str
    category: str
    digest: str


def _read_corrections(data: DataFolder, path: str) -> dict[str, _Correction]:
    """Return the corrections of a file by the path of the image."""
    corrections: dict[str, _Correction] = {}
    changed = []
    rows = read_rows(path)
    if "finding" in rows[0]:
        raise UserError(
            f"--corrections {path}: a table of findings, whose labels are the present ones; name "
            "the corrections.csv that labels.html saves, or use --exclude"
        )
    for row, image in _find_images(data, rows, f"--corrections {path}"):
        correction = _parse_correction(row, f"{path}: {row['path']}")
        if corrections.setdefault(image.path, correction) != correction:
            raise UserError(f"{path}: {row['path']}: two rows say different things; delete one")
        if not _is_unchanged(Path(data.root, image.path), correction):
            changed.append(image.path)
    if changed:
        raise UserError(
            f"--corrections {path}: the content of {counted(len(changed), 'image', 'images')} has "
            f"changed since the decision: {shorten(changed)}; check the labels again, or delete "
            "these rows"
        )
    return corrections


def _parse_correction(row: Row, name: str) -> _Correction:
    """Return what a row asks for; raises UserError, which says `name`, if that is not clear."""
    category = row.get("category", "")
    action = row.get("action", RELABEL if category else "")
    if action not in (KEEP, EXCLUDE, RELABEL):
        raise UserError(f"{name}: the action {action!r} is not {KEEP}, {EXCLUDE} or {RELABEL}")
    if action == RELABEL and (not category or "/" in category):
        raise UserError(f"{name}: {category!r} is not a category")
    return _Correction(action, category, row.get("digest", ""))


def _is_unchanged(file: Path, correction: _Correction) -> bool:
    if correction.action == KEEP or not correction.digest:
        return True
    try:
        return digest_of_file(file) == correction.digest
    except OSError:  # training reports and leaves out what cannot be read
        return True


def _corrected(data: DataFolder, corrections: Mapping[str, _Correction]) -> DataFolder:
    """Return the data folder with corrections (by path); categories may come and go."""
    images: list[ImageFile] = []
    for image in data.images:
        correction = corrections.get(image.path)
        if correction is None or correction.action == KEEP:
            images.append(image)
        elif correction.action == RELABEL:
            images.append(image._replace(category=correction.category))
    images.sort(key=lambda image: (SPLITS.index(image.split), image.category, image.path))
    categories = {
        split: sorted({image.category for image in images if image.split == split})
        for split in data.categories
    }
    before = {category for split in data.categories.values() for category in split}
    after = {image.category for image in images}
    if after - before:
        new = shorten(sorted(after - before))
        print(one_line(f"--corrections: categories without a folder: {new}"))
    if before - after:
        empty = shorten(sorted(before - after))
        print(one_line(f"--corrections: categories without images now: {empty}"))
    return replace(data, categories=categories, images=images)


# ---------------------------------------------------------------- paths and rows


def _find_images(data: DataFolder, rows: Sequence[Row], flag: str) -> list[tuple[Row, ImageFile]]:
    """Return each row with the image of its path; rows that name no image are warned of.

    If two category folders are links to one folder, a path may name an image of each.

    Raises:
        UserError: there is no image of the data folder among them.
    """
    real_folder = functools.cache(os.path.realpath)

    def resolve(path: str) -> str:
        if "\0" in path:  # which no file has
            return path
        folder, name = os.path.split(path)
        return escape(os.path.join(real_folder(folder), name))  # a link to a file stays one

    @functools.cache  # only if a path needs it: a million images take seconds
    def by_real_path() -> dict[str, list[ImageFile]]:
        images = collections.defaultdict(list)
        for image in data.images:
            images[resolve(os.path.join(data.root, image.path))].append(image)
        return images

    relative = {escape(image.path): [image] for image in data.images}
    pairs = []
    unknown = []
    for row in rows:
        path = row["path"]
        matches = relative.get(path) or by_real_path().get(resolve(path), [])
        pairs += [(row, image) for image in matches]
        if not matches:
            unknown.append(path)
    if not pairs:
        raise UserError(f"{flag}: has no image of {data.root}: {shorten(unknown)}")
    if unknown:
        rows_name = counted(len(unknown), "row names", "rows name")
        warn(f"{flag}: {rows_name} no image of {data.root}: {shorten(unknown)}")
    return pairs


def read_rows(path: str | os.PathLike) -> list[Row]:
    """Read a list of paths: a CSV file with a column "path", or a text file.

    A text file has one path a line, or ends each with a NUL, as `find -print0` does. Both are in
    UTF-8, or in UTF-16 with a byte order mark.

    Returns:
        The rows that have a path; of a text file, with nothing else.

    Raises:
        UserError: the file is missing, in another encoding, or has no path.
    """
    check_regular_file(path)
    try:
        content = Path(path).read_bytes()
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        rows = _parse_rows(content.decode("utf-16" if is_utf16 else "utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: its encoding is not UTF-8: save it as UTF-8") from error
    except csv.Error as error:
        reason = f"{error}; is a quotation mark missing?"
        raise UserError(f"{path}: not a CSV file: {reason}") from error
    if not rows:
        raise UserError(f"{path}: no path in it")
    return rows


def _parse_rows(text: str) -> list[Row]:
    header = text.split("\n", 1)[0].strip("\r")
    for delimiter in DELIMITERS:
        columns: Sequence[str] = next(csv.reader([header], delimiter=delimiter), [])
        columns = [column.strip().lower() for column in columns]
        if "path" in columns:
            file = io.StringIO(text, newline="")
            rows = csv.DictReader(file, columns, delimiter=delimiter, restval="", strict=True)
            next(rows)  # the header
            return [row for row in rows if row["path"]]
    separator = "\0" if "\0" in text else "\n"
    lines = (line.strip("\r") for line in text.split(separator))
    return [{"path": line} for line in lines if line.strip()]

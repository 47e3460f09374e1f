"""Files: atomic writes, content digests, CSV and figures."""

import contextlib
import csv
import hashlib
import io
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from system.messages import UserError, shorten, warn

TEMPORARY = ".classifier.tmp"  # how a file is called before it is complete, behind its process


def write_atomically(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Replace a file atomically: `write` fills a temporary file beside it, which is then renamed.

    Whatever happens, `path` is the old file or the new one.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(os.path.realpath(path))  # a link stays one: the file behind it is replaced
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch converts an OSError, and Ctrl-C, into a RuntimeError; its context is the reason.
        cause = error.__context__
        if cause is not None and not isinstance(cause, Exception):
            raise cause from None
        reason = next((e.strerror for e in (error, cause) if isinstance(e, OSError)), error)
        raise UserError(f"{path}: cannot write it: {reason}") from error
    finally:
        with contextlib.suppress(OSError):  # renamed, or never made
            temporary.unlink()


def temporary_path(path: Path) -> Path:
    """Return where this process writes a file before it has its name."""
    return path.parent / f".{path.name}.{os.getpid()}{TEMPORARY}"


def check_regular_file(path: str | os.PathLike) -> os.stat_result:
    """Return the status of a regular file that is not empty.

    Raises:
        UserError: it is missing, empty, or something else, such as a pipe, that may never end.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from error
    except ValueError as error:  # such as a NUL in the path
        raise UserError(f"{path}: not a valid path: {error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path}: is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: not a file, but a pipe or a device")
    if not status.st_size:
        raise UserError(f"{path}: empty")
    return status


def sha256_of(path: str | os.PathLike) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
    return sha256.hexdigest()


def write_csv(path: str | os.PathLike, rows: Iterable[Sequence]) -> None:
    """Write a CSV file atomically; bytes of file names that are not text are escaped.

    Raises:
        UserError: the file cannot be written.
    """

    def write(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        csv.writer(text).writerows(rows)
        text.detach()  # writes what is buffered

    write_atomically(path, write)


def escape(text: str) -> str:
    """Return text as `write_csv` writes it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def save_figure(figure: Any, path: str | os.PathLike) -> None:
    """Write a matplotlib figure atomically; the name's ending, such as .png, is its format.

    Raises:
        UserError: the file cannot be written, or the format is unknown.
    """
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kind = Path(path).suffix[1:]
            # Of a PNG: the usual 6 takes four times as long for a file that is hardly smaller.
            options = {"pil_kwargs": {"compress_level": 1}} if kind == "png" else {}
            write_atomically(path, lambda file: figure.savefig(file, format=kind, **options))
    except ValueError as error:
        raise UserError(f"{path}: cannot write it: {shorten([str(error)])}") from error
    if any("Glyph" in str(warning.message) for warning in caught):
        warn(f"{path}: the font lacks some letters of the names, which are drawn as boxes")


def is_text(value: object) -> bool:
    """Return whether a value is a string whose only surrogates are bytes of a file name."""
    return type(value) is str and not re.search(r"[\ud800-\udc7f\udd00-\udfff]", value)


def is_within(low: float, high: float, *values) -> bool:
    """Return whether all values are numbers from `low` to `high`; NaN is not."""
    return all(type(value) in (int, float) and low <= value <= high for value in values)

"""Files: atomic writes, safe reads of torch files, content digests and CSV."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import pickletools
import re
import stat
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn

from support.arguments import UserError, shorten

# The globals that a file of `torch.save` with plain types and tensors refers to.
ALLOWED_GLOBALS = (
    r"collections OrderedDict|torch\._utils _rebuild_(tensor(_v2)?|parameter)|torch \w+Storage"
)


def write_atomically(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Replace a file atomically: `write` fills a temporary file beside it, which is then renamed.

    Whatever happens, `path` is the old file or the new one.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
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


def output_path(text: str, default_name: str, flag: str) -> Path:
    """Return the file that a flag's value means; its folder is made, and tested by writing to it.

    Args:
        text: a file; or a folder, in which the file is called `default_name`.

    Raises:
        UserError: no file can be written there.
    """
    path = Path(text)
    if os.path.isdir(path) or text.endswith(("/", os.sep)) or not path.suffix:
        path = path / default_name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
        if os.path.isdir(path):
            raise IsADirectoryError(0, "is a folder")
    except OSError as error:
        raise UserError(f"{flag} {text}: cannot write there: {error.strerror}") from error
    return path


def save_torch(content: dict, path: str | os.PathLike) -> None:
    """Write `content` atomically with `torch.save`; see `write_atomically`."""
    write_atomically(path, lambda file: torch.save(content, file))


def load_torch(path: str | os.PathLike, kind: str) -> Any:
    """Return the content of a file of `torch.save`, memory-mapped, without executing any of it.

    Args:
        kind: what the file should be, for the error message: "checkpoint".

    Raises:
        UserError: the file is missing or holds more than plain types and tensors.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such {kind}")
    try:
        is_archive = _check_torch_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Files of torch before 1.6, such as torchvision's own, are no archives: not mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror or error}") from error
    except Exception as error:
        raise UserError(f"{path}: not a {kind} that this program can read") from error


def _check_torch_file(path: str | os.PathLike) -> bool:
    """Return whether a file is an archive, as torch's are since 1.6.

    Files that would exhaust the memory are refused: torch executes nothing in a file, but it
    decompresses what is compressed (`torch.save` compresses nothing), calls codecs that double a
    text, and hashes a tuple of tuples, each of them twice.

    Raises:
        Exception: the file does such things, or torch did not write it.
    """
    with open(path, "rb") as file:
        is_archive = file.read(4) == b"PK\3\4"  # torch looks at the same bytes
        file.seek(0)
        if is_archive:
            archive = zipfile.ZipFile(file)
            if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                raise ValueError("compressed")
            names = [name for name in archive.namelist() if name.lower().endswith("data.pkl")]
            for name in names:
                with archive.open(name) as pickled:
                    _check_pickle(pickled)
        else:
            for _ in range(5):  # an old file is five pickles, one after the other
                _check_pickle(file)
    return is_archive


def _check_pickle(pickled: Any) -> None:
    """Raise ValueError if a pickle refers to other globals, or has tuples within tuples."""
    last, tuples = "", set()  # the memo numbers of tuples
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL" and not re.fullmatch(ALLOWED_GLOBALS, str(argument)):
            raise ValueError(f"refers to {argument}")
        if "PUT" in opcode.name and "TUPLE" in last:
            tuples.add(argument)
        if "GET" in opcode.name and argument in tuples:
            raise ValueError("tuples within tuples")
        last = opcode.name


def load_tensors(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load a module's `state_dict` out of `tensors`, as float32; other tensors are ignored.

    Raises:
        ValueError: a tensor is missing, has another shape or type, or values that are not finite.
    """
    loaded = {}
    for name, expected in module.state_dict().items():
        if name not in tensors:
            raise ValueError(f"no tensor {name}")
        tensor = tensors[name]
        if tensor.shape != expected.shape or not tensor.is_floating_point():
            raise ValueError(f"{name} has another shape or type")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name} declares more values than it has")  # by a stride of 0
        loaded[name] = tensor.detach().float()
        with np.errstate(all="ignore"):  # numpy, since torch's threads wait where a core is busy
            if not np.isfinite(loaded[name].numpy().sum()):
                raise ValueError(f"{name} has values that are not finite")
    module.load_state_dict(loaded, assign=True)


def check_regular_file(path: str | os.PathLike) -> os.stat_result:
    """Return the status of a regular file that is not empty.

    Raises:
        UserError: it is missing, empty, or something else, such as a pipe, that may never end.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: not a file")
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


def digest_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of named tensors, in hexadecimal."""
    sha256 = hashlib.sha256()
    for name, tensor in tensors.items():
        sha256.update(name.encode())
        sha256.update(tensor.contiguous().cpu().view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def write_csv(path: str | os.PathLike, rows: Iterable[Sequence]) -> None:
    """Write a CSV file; bytes of file names that are not text are escaped.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            csv.writer(file).writerows(rows)
    except OSError as error:
        raise UserError(f"{path}: cannot write it: {error.strerror}") from error


def read_csv(path: str | os.PathLike) -> list[list[str]]:
    """Read a CSV file of `write_csv` with at least two columns.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: missing or damaged; delete its folder") from error
    if any(len(row) < 2 for row in rows):
        raise UserError(f"{path}: damaged; delete its folder")
    return rows


def escape(text: str) -> str:
    """Return text as `write_csv` writes it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def save_figure(figure: Any, path: str | os.PathLike) -> None:
    """Write a matplotlib figure; the file name's ending, such as .png or .pdf, is its format.

    Raises:
        UserError: the file cannot be written, or the format is unknown.
    """
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or shorten([str(error)])
        raise UserError(f"{path}: cannot write it: {reason}") from error

"""Files of `torch.save`: safe reads, atomic writes, and digests of tensors."""

from __future__ import annotations

import hashlib
import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from system.files import is_text, is_within, write_atomically
from system.messages import UserError

# The globals that a file of `torch.save` with plain types and tensors refers to.
ALLOWED_GLOBALS = (
    r"collections OrderedDict|torch\._utils _rebuild_(tensor(_v2)?|parameter)|torch \w+Storage"
)

MAX_PICKLE = 10**6  # bytes of an archive's pickle: those of 13,000 categories, which take a second


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
        reason = f"is a folder, not a {kind}" if os.path.isdir(path) else f"no such {kind}"
        raise UserError(f"{path}: {reason}")
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
            items = archive.infolist()
            if any(item.compress_type != zipfile.ZIP_STORED for item in items):
                raise ValueError("compressed")
            if sum(item.file_size for item in items) > os.path.getsize(path):
                raise ValueError("its members overlap")
            if damaged := archive.testzip():  # 40 ms for 60 MB
                raise ValueError(f"{damaged} does not have its checksum")
            for item in items:
                if item.filename.lower().endswith("data.pkl"):
                    if item.file_size > MAX_PICKLE:
                        raise ValueError(f"{item.filename} is larger than any of a checkpoint")
                    with archive.open(item) as pickled:
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


def digest_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of named tensors, in hexadecimal."""
    sha256 = hashlib.sha256()
    for name, tensor in tensors.items():
        sha256.update(name.encode())
        sha256.update(tensor.contiguous().cpu().view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def check_version(path: str | os.PathLike, content: Any, oldest: int, newest: int) -> None:
    """Raise UserError unless a file's content has a `format_version` that can be read."""
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{path}: not a checkpoint of this program's train.py")
    if not oldest <= version <= newest:
        age, remedy = "newer", "use a newer program"
        if version < newest:
            age, remedy = "older", "train again"
        raise UserError(
            f"{path}: its format, {version}, is {age} than this program's, {newest}; {remedy}"
        )


def check_values(
    content: dict[str, Any], architectures: Collection[str], image_sizes: Collection[int]
) -> None:
    """Check a checkpoint's values beside its weights.

    Types come first, and no value is printed: in a hostile file, the comparison or the text of
    lists within lists may take forever.

    Raises:
        Exception: a value is missing, or one that training never writes.
    """
    classes, images = content["class_to_idx"], [*content["means"], *content["stds"]]
    names = content["names"] if content["format_version"] > 4 else {}
    for name, is_valid in {
        "arch": type(content["arch"]) is str and content["arch"] in architectures,
        "class_to_idx": len(classes) > 0
        and all(is_text(c) and type(i) is int for c, i in classes.items())
        and sorted(classes.values()) == list(range(len(classes))),
        "names": type(names) is dict
        and names.keys() <= classes.keys()
        and all(map(is_text, names.values())),
        "arguments": type(content["arguments"]) is dict,
        "hidden_units": is_within(1, 10**9, content["hidden_units"]),
        "num_outputs": is_within(len(classes), 10**9, content["num_outputs"]),
        "image_size": type(content["image_size"]) is int and content["image_size"] in image_sizes,
        "dropout": is_within(0, 1, content["dropout"]),
        "temperature": is_within(1e-6, 1e6, content["temperature"]),
        "means or stds": len(content["means"]) == len(content["stds"]) == 3
        and is_within(-1e6, 1e6, *images)
        and is_within(1e-6, 1e6, *images[3:]),
    }.items():
        if not is_valid:
            raise ValueError(f"invalid {name}")

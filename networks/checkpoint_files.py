"""Files of `torch.save`: safe reads, atomic writes, and digests of tensors."""

import hashlib
import os
import warnings
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from system.files import is_text, is_within, write_atomically
from system.messages import UserError


def save_torch(content: dict, path: str | os.PathLike) -> None:
    """Replace a file by `content` as `torch.save` writes it, atomically."""
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
        is_archive = _is_archive(path)
        if is_archive:
            _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Files of torch before 1.6, such as torchvision's own, are no archives: not mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror or error}") from error
    except Exception as error:
        raise UserError(f"{path}: not a {kind} that this program can read") from error


def _is_archive(path: str | os.PathLike) -> bool:
    """Return whether a file is a ZIP archive, as torch's are since 1.6."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\3\4"  # torch looks at the same bytes


def _check_archive(path: str | os.PathLike) -> None:
    """Raise ValueError unless an archive is as `torch.save` writes it: stored, and undamaged."""
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            if item.compress_type != zipfile.ZIP_STORED:  # it could fill the memory
                raise ValueError(f"{item.filename} is compressed")
        damaged = archive.testzip()  # 40 ms for 60 MB
        if damaged:
            raise ValueError(f"{damaged} does not have its checksum")


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
        is_dense = tensor.layout == torch.strided and not tensor.is_meta
        if tensor.shape != expected.shape or not tensor.is_floating_point() or not is_dense:
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


def check_version(path: str | os.PathLike, content: Any, newest: int) -> None:
    """Raise UserError unless a file's content has a `format_version` from 1 to `newest`."""
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is not int or not is_within(1, 10**6, version):
        raise UserError(f"{path}: not a checkpoint of this program's train.py")
    if version > newest:
        raise UserError(
            f"{path}: its format, {version}, is newer than this program's, {newest}; use a newer "
            "program"
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
    arch = content["arch"]
    if type(arch) is not str or arch not in architectures:
        raise ValueError("arch is none of this program's")
    image_size = content["image_size"]
    if type(image_size) is not int or image_size not in image_sizes:
        raise ValueError("image_size is none of this program's")
    class_to_idx = content["class_to_idx"]
    if type(class_to_idx) is not dict or not all(map(is_text, class_to_idx)):
        raise ValueError("class_to_idx has a category that is not text")
    indices = list(class_to_idx.values())
    if not indices or any(type(index) is not int for index in indices):
        raise ValueError("class_to_idx has no categories, or an index that is not a whole number")
    if sorted(indices) != list(range(len(indices))):
        raise ValueError("class_to_idx does not number its categories from 0")
    names = content["names"]
    if type(names) is not dict or not names.keys() <= class_to_idx.keys():
        raise ValueError("names has a category that class_to_idx lacks")
    if not all(map(is_text, names.values())):
        raise ValueError("names has a name that is not text")
    if type(content["arguments"]) is not dict:
        raise ValueError("arguments is not a dictionary")
    if not is_within(1, 10**9, content["hidden_units"]):
        raise ValueError("hidden_units is not a number above 0")
    if not is_within(len(class_to_idx), 10**9, content["num_outputs"]):
        raise ValueError("num_outputs is less than the number of categories")
    if not is_within(0, 1, content["dropout"]):
        raise ValueError("dropout is not from 0 to 1")
    if not is_within(1e-6, 1e6, content["temperature"]):
        raise ValueError("temperature is not a number above 0")
    if len(content["means"]) != 3 or not is_within(-1e6, 1e6, *content["means"]):
        raise ValueError("means are not three numbers")
    if len(content["stds"]) != 3 or not is_within(1e-6, 1e6, *content["stds"]):
        raise ValueError("stds are not three numbers above 0")

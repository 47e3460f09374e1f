"""Whether the values of a checkpoint, beside its tensors, are ones that a training writes."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import Any

from support.arguments import UserError


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


def is_text(value: object) -> bool:
    """Return whether a value is a string whose only surrogates are bytes of a file name."""
    return type(value) is str and not re.search(r"[\ud800-\udc7f\udd00-\udfff]", value)


def is_within(low: float, high: float, *values) -> bool:
    """Return whether all values are numbers from `low` to `high`; NaN is not."""
    return all(type(value) in (int, float) and low <= value <= high for value in values)

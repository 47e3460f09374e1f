"""Names: reading a JSON file of them, and telling apart names that are equal or look alike."""

import collections
import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from system.files import check_regular_file
from system.messages import UserError, counted, one_line, shorten, warn

CATEGORY_NAMES = "cat_to_name.json"  # the default file of category names


def load_names(path: str | os.PathLike) -> dict[str, str]:
    """Read a JSON object of strings, in UTF-8 or UTF-16; a key that occurs twice gives a warning.

    Blank names are left out.

    Raises:
        UserError: the file is missing, is not JSON in these encodings, or not an object of strings.
    """

    def check_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
        counts = collections.Counter(key for key, _ in pairs)
        repeated = [key for key, count in counts.items() if count > 1]
        if repeated:
            warn(f"{path}: has more than one name for {shorten(repeated)}; the last one is used")
        return dict(pairs)

    check_regular_file(path)
    try:
        names = json.loads(Path(path).read_bytes(), object_pairs_hook=check_keys)
    except OSError as error:
        raise UserError(f"{path}: cannot read the category names: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: its encoding is not UTF-8 or UTF-16: save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(names, dict):
        raise UserError(f'{path}: expected one JSON object such as {{"1": "pink primrose"}}')
    for key, name in names.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: the name of {key!r} is {name!r}, not a string")
    named = {key: name for key, name in names.items() if name.strip()}
    return {_valid_text(key): _valid_text(name) for key, name in named.items()}


def _valid_text(text: str) -> str:
    """Replace surrogates without a partner, which no encoding can write."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def name_categories(categories: Sequence[str], path: str | None) -> dict[str, str]:
    """Return the name of each category, or the category itself; print which there are.

    Warns of names that are missing, unused or equal.

    Args:
        path: of a file of names; None means CATEGORY_NAMES in the working folder, if it is there.
            Nobody asked for that file: it may be for other categories.
    """
    file = path or CATEGORY_NAMES
    names = load_names(file) if path or os.path.exists(file) else {}
    named = {category: names[category] for category in categories if category in names}
    if named:
        examples = [f"{category} = {name}" for category, name in named.items()]
        print(one_line(f"names: {file}, {shorten(examples, 3)}"))
    elif names:
        print(f"names: those of the folders; {file} has none of them")
    else:
        print("names: those of the folders")
    unnamed = [category for category in categories if category not in names]
    if unnamed and (named or path):
        without_name = counted(len(unnamed), "category", "categories")
        warn(f"{file}: has no name for {without_name}: {shorten(unnamed)}")
    unused = [category for category in names if category not in named]
    if unused and path:
        fitting_none = counted(len(unused), "name fits", "names fit")
        warn(f"{file}: {fitting_none} no category: {shorten(unused)}")
    for name, group in same_names(named).items():
        warn(f"{file}: {shorten(group)} have the same name, {name!r}")
    return {category: names.get(category, category) for category in categories}


def display_names(keys: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Return the name of each key, or the key itself; equal names are followed by their key."""
    labels = [names.get(key, key) for key in keys]
    counts = collections.Counter(labels)
    pairs = zip(keys, labels, strict=True)
    return [f"{name} ({key})" if counts[name] > 1 else name for key, name in pairs]


def same_names(names: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the keys that have the same name as another key, by that name."""
    return _groups(names, names.__getitem__)


def look_alikes(texts: Iterable[str]) -> list[tuple[list[str], str]]:
    """Return groups of texts that people cannot distinguish, and what they differ in.

    Such as "rose", "Rose" and "rose ", or an accented letter in one or in two characters.
    """
    groups = _groups(texts, look_alike_key).values()
    return [(group, _difference(group[0], group[1])) for group in groups]


def look_alike_key(text: str) -> str:
    """Return a text that is equal for texts that people cannot distinguish."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _groups(items: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    """Return the items that share a key with another item, by that key."""
    groups: dict[str, list[str]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return {key: group for key, group in groups.items() if len(group) > 1}


def _difference(text: str, other: str) -> str:
    """Return what distinguishes two texts that look alike."""
    if "".join(text.split()) == "".join(other.split()):
        return "blanks"
    if unicodedata.normalize("NFKC", text) == unicodedata.normalize("NFKC", other):
        return "the encoding of accents"
    return "upper and lower case"

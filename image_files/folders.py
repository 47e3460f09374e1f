"""Finding image files in folders and by patterns: what is plainly no image is left out."""

import collections
import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from system.messages import UserError

IGNORED_FOLDERS = ("__macosx",)
IGNORED_FILES = ("thumbs.db", "desktop.ini", ".partial", ".settings", ".lock")  # or endings
IGNORED_SUFFIXES = tuple(".txt .csv .json .jsonl .xml .md .html .py .ipynb .db".split())


def scan_folder(folder: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in a folder that are not hidden, sorted.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        with os.scandir(os.fspath(folder)) as scanned:
            entries = [(e.name, _is_folder(e)) for e in scanned if e.name[0] != "."]
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}") from error
    folders = [name for name, is_folder in entries if is_folder]
    files = [name for name, is_folder in entries if not is_folder]
    return (
        sorted(name for name in folders if name.lower() not in IGNORED_FOLDERS),
        sorted(name for name in files if not name.lower().endswith(IGNORED_FILES)),
    )


def is_no_image(name: str) -> bool:
    """Return whether a file's name says that it is not an image."""
    return os.path.splitext(name)[1].lower() in IGNORED_SUFFIXES


def _is_folder(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder: no error for circular links, no stat without a link."""
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def images_below(
    root: Path,
    folder: str,
    ignored: collections.Counter[str],
    *,
    strict: bool = True,
    parents: tuple[str, ...] = (),
) -> Iterator[str]:
    """Yield the paths of the images in a folder and below, in string order.

    Links are followed, except into a folder that they are in.

    Args:
        folder: relative to `root`, as the paths are; with forward slashes.
        ignored: counts the files that are not images by their suffix.
        strict: a folder that cannot be read is an error; else its path is yielded.
        parents: real paths of the folders above.

    Raises:
        UserError: a folder cannot be read, and `strict` is set.
    """
    real = os.path.realpath(root / folder)
    if real in parents:
        return
    try:
        folders, files = scan_folder(root / folder)
    except UserError:
        if strict:
            raise
        yield folder
        return
    is_folder = dict.fromkeys(files, False) | dict.fromkeys(folders, True)
    for name in sorted(is_folder):
        path = f"{folder}/{name}" if folder else name
        if is_folder[name]:
            yield from images_below(root, path, ignored, strict=strict, parents=(*parents, real))
        elif is_no_image(name):
            ignored[os.path.splitext(name)[1].lower()] += 1
        else:
            yield path


def files_below(folder: str) -> Iterator[str]:
    """Yield the images in a folder and below, and folders that cannot be read."""
    for path in images_below(Path(folder), "", collections.Counter(), strict=False):
        yield os.path.join(folder, path) if path else folder


def find_files(words: Iterable[str]) -> Iterator[str]:
    """Yield the paths that words mean; decoding shows whether they are images.

    A folder means all images in it and below, in string order. A pattern, "photos/*.jpg" or
    "**/*.png", means the files that match, in string order; "-" a list on standard input, one path
    a line.
    """
    for word in words:
        if word == "-":
            if hasattr(sys.stdin, "reconfigure"):
                sys.stdin.reconfigure(errors="surrogateescape")
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        elif os.path.isdir(word):
            yield from files_below(word)
        elif is_pattern(word):
            for path in sorted(glob.glob(word, recursive=True)):
                yield from files_below(path) if os.path.isdir(path) else [path]
        else:
            yield word


def check_words(words: Sequence[str]) -> None:
    """Raise UserError if a word of `find_files` means nothing."""
    for word in words:
        if not word.strip():
            raise UserError("--input: a path is empty")
        if word == "-" and sys.stdin is None:
            raise UserError("--input -: standard input is closed")
        if is_pattern(word) and not next(glob.iglob(word, recursive=True), None):
            raise UserError(f"--input {word}: no file matches this pattern")
        if os.path.isdir(word) and next(files_below(word), None) is None:
            raise UserError(f"--input {word}: no images there")


def is_pattern(word: str) -> bool:
    """Return whether a word is a pattern, and not the name of an existing file."""
    return glob.has_magic(word) and not os.path.lexists(word)

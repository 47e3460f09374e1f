"""Finding image files in folders and by patterns: what is plainly no image is left out."""

import codecs
import collections
import contextlib
import glob
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from system.messages import UserError

# Names, in lower case, that are not listed: what systems, network storage and Python make, and what
# the commands of this program write beside their results. (Hidden ones are not listed, either.)
IGNORED_FOLDERS = (
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "@eadir",  # of Synology: a folder of thumbnails for each image
    "#recycle",
    "#snapshot",
    "@recycle",  # of QNAP
    "@recently-snapshot",
    "__macosx",
    "__pycache__",
)
UNFINISHED = ".unfinished"  # the ending of the folder of an interrupted training
IGNORED_ENDINGS = (  # of files
    "thumbs.db",
    "desktop.ini",
    "icon\r",  # of macOS: an empty file
    ".partial",
    ".settings",
    ".lock",
)
# Endings of files that are listed, and are no images.
IGNORED_SUFFIXES = (
    *(".txt", ".csv", ".json", ".jsonl", ".xml", ".md", ".html", ".py", ".ipynb", ".db", ".log"),
    *(".aae", ".xmp", ".mov", ".mp4", ".m4v", ".avi"),  # what cameras write beside images
    *(".pth", ".pt", ".onnx", ".features", ".sqlite"),
)


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
    folders: list[str] = []
    files: list[str] = []
    for name, is_folder in sorted(entries):
        endings = UNFINISHED if is_folder else IGNORED_ENDINGS
        if name.lower() in IGNORED_FOLDERS or name.lower().endswith(endings):
            continue
        if is_folder:
            folders.append(name)
        else:
            files.append(name)
    return folders, files


def is_no_image(name: str) -> bool:
    """Return whether a file's name says that it is not an image."""
    return os.path.splitext(name)[1].lower() in IGNORED_SUFFIXES


def _is_folder(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder: no error for circular links, no stat without a link."""
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def _enter(folder: str | os.PathLike[str], parents: tuple[str, ...]) -> tuple[str, ...]:
    """Return the real paths of a folder and of those above it; () if it is within itself.

    Args:
        parents: the real paths of the folders that led to it; () for the first one.
    """
    real = os.path.realpath(folder)
    if real in parents:
        return ()
    return (*(parents or map(str, Path(real).parents)), real)


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
    parents = _enter(root / folder, parents)
    if not parents:
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
            yield from images_below(root, path, ignored, strict=strict, parents=parents)
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
    "**/*.png", means the files that match, in string order; "-" a list on standard input, see
    `read_list`.
    """
    for word in words:
        if word == "-":
            yield from read_list(sys.stdin.buffer)
        elif os.path.isdir(word):
            yield from files_below(word)
        elif is_pattern(word):
            for path in sorted(set(_matches(word))):
                yield from files_below(path) if os.path.isdir(path) else [path]
        else:
            yield word


def read_list(file: BinaryIO) -> Iterator[str]:
    """Yield the paths of a list as soon as they are read: one a line, or each ended by NUL.

    A byte order mark at the beginning is no part of a path; with that of UTF-16, the list is text
    in UTF-16. Otherwise, the bytes are those of the paths.
    """
    first = file.readline()
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = (first + file.read()).decode("utf-16", "replace")
        lines: Iterable[bytes] = map(os.fsencode, text.splitlines())
    elif b"\0" in first:
        lines = (first + file.read()).split(b"\0")
    else:
        lines = itertools.chain([first.removeprefix(codecs.BOM_UTF8)], file)
    for line in lines:
        if line.strip():
            yield os.fsdecode(line.rstrip(b"\r\n"))


def _matches(pattern: str) -> Iterator[str]:
    """Yield the paths that match a pattern, in no order; some may come twice.

    "**" means a folder and all that are below it, but not those that are in a circle of links,
    which glob itself follows without an end.
    """
    start, stars, rest = pattern.partition("**")
    if start.endswith(os.sep) and stars and rest in ("", os.sep):
        yield from glob.iglob(start)  # all below a folder: as the folder itself
        return
    if not stars or (start and not start.endswith(os.sep)) or not rest.startswith(os.sep):
        yield from glob.iglob(pattern)  # "**" within a name means "*"
        return
    for folder in glob.iglob(start) if start else [""]:
        for below in _folders_below(folder):
            yield from _matches(os.path.join(glob.escape(below), rest.lstrip(os.sep)))


def _folders_below(folder: str, parents: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield a folder and those below it that can be read, but no folder within itself."""
    parents = _enter(folder or ".", parents)
    if not parents:
        return
    yield folder
    with contextlib.suppress(UserError):
        for name in scan_folder(folder or ".")[0]:
            yield from _folders_below(os.path.join(folder, name), parents)


def check_words(words: Sequence[str]) -> None:
    """Raise UserError if a word of `find_files` means nothing."""
    for word in words:
        if word == "-" and sys.stdin is None:
            raise UserError("--input -: standard input is closed")
        if is_pattern(word) and next(_matches(word), None) is None:
            hint = ""
            if "[" in word:
                hint = "; of a name that has a bracket, write [[] instead of ["
            raise UserError(f"--input {word}: no file matches this pattern{hint}")
        if os.path.isdir(word) and next(files_below(word), None) is None:
            raise UserError(f"--input {word}: no images there")


def is_pattern(word: str) -> bool:
    """Return whether a word is a pattern, and not the name of an existing file."""
    return glob.has_magic(word) and not os.path.lexists(word)

"""Sorting images into folders, one a category, when they are predicted; no image is moved."""

import collections
import contextlib
import filecmp
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from inference.results import Result
from system.files import temporary_path
from system.messages import UserError, shorten

UNKNOWN, UNREADABLE = "unknown", "unreadable"  # folders of what is in no category
PREDICTIONS = "predictions.csv"  # in the folder, unless another --output is named


class Sorter:
    """Copies images into `FOLDER/<category>`, or makes links to them there.

    An image that is unknown or resembles none of the categories goes into UNKNOWN, one that cannot
    be read into UNREADABLE. Of two images with one name, the second becomes `NAME-2.jpg`.

    Args:
        categories: those that may be predicted.
        is_link: make symbolic links instead of copies.
        resume: the folder may have images of an interrupted run.

    Raises:
        UserError: the folder is not empty, and there is nothing to resume; or a category cannot be
            the name of a folder.
    """

    def __init__(self, folder: str, categories: Sequence[str], is_link: bool, resume: bool):
        self.folder = Path(folder)
        self.is_link = is_link
        self.is_first = resume  # only the first image may be there without being recorded
        self.numbers: collections.Counter[Path] = collections.Counter()
        invalid = [c for c in categories if c in ("", "..") or Path(c).name != c or "\0" in c]
        if invalid:
            raise UserError(f"--sort_into: no names of folders: {shorten(map(repr, invalid))}")
        self.unknown, self.unreadable = UNKNOWN, UNREADABLE
        while self.unknown in categories:
            self.unknown += "_"
        while self.unreadable in categories:
            self.unreadable += "_"
        with contextlib.suppress(FileNotFoundError):
            if not resume and any(self.folder.iterdir()):
                raise UserError(
                    f"--sort_into {folder}: is not empty; continue with --resume, or name another "
                    "folder"
                )

    def check_inputs(self, paths: Iterable[str]) -> None:
        """Raise UserError if an image is in the folder that is written."""
        below = os.path.join(os.path.realpath(self.folder), "")
        for path in paths:
            if os.path.realpath(path).startswith(below):
                raise UserError(f"--sort_into {self.folder}: contains {path} of --input")

    def sort(self, results: Iterable[Result]) -> Iterator[Result]:
        """Yield each result when its image is in its folder.

        Raises:
            UserError: an image cannot be copied.
        """
        for result in results:
            if os.path.isfile(result.path):
                try:
                    self._place(Path(result.path), self.folder / self._folder_of(result))
                except OSError as error:
                    reason = error.strerror or error
                    raise UserError(f"--sort_into: {result.path}: {reason}") from error
            self.is_first = False
            yield result

    def _folder_of(self, result: Result) -> str:
        if result.error:
            return self.unreadable
        best = result.predictions[0]
        return self.unknown if best.is_unknown or best.is_unusual else best.category

    def _place(self, source: Path, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        plain = folder / source.name
        while True:
            self.numbers[plain] += 1
            number = self.numbers[plain]
            name = source.name if number == 1 else f"{source.stem}-{number}{source.suffix}"
            target = folder / name
            if not os.path.lexists(target):
                break
            if self.is_first and filecmp.cmp(source, target, shallow=False):
                return
        temporary = temporary_path(target)
        if self.is_link:
            temporary.symlink_to(source.absolute())
        else:
            shutil.copy2(source, temporary)
        temporary.replace(target)

"""Sorting images into folders, one a category, when they are predicted; no image is moved."""

import collections
import contextlib
import filecmp
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from inference.results import Result
from system.files import TEMPORARY, sha256_of, temporary_path
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
        resume: the folder has images of an interrupted run.
        reserved: names in the folder that are not for categories.

    Raises:
        UserError: the folder has files, and there is nothing to resume, or it cannot be read; or a
            category cannot be the name of a folder.
    """

    def __init__(
        self,
        folder: str,
        categories: Sequence[str],
        is_link: bool,
        resume: bool,
        reserved: Sequence[str] = (),
    ):
        self.folder = Path(folder)
        self.temporary = temporary_path(self.folder / "image")
        self.is_link = is_link
        self.is_first = resume  # only the first image may be there without being recorded
        self.numbers: collections.Counter[Path] = collections.Counter()
        reserved = ("", "..", *reserved)
        invalid = [c for c in categories if c in reserved or Path(c).name != c or "\0" in c]
        if invalid:
            raise UserError(f"--sort_into: no names of folders: {shorten(map(repr, invalid))}")
        self.unknown, self.unreadable = UNKNOWN, UNREADABLE
        while self.unknown in categories:
            self.unknown += "_"
        while self.unreadable in categories:
            self.unreadable += "_"
        if not resume and _has_files(folder):
            raise UserError(
                f"--sort_into {folder}: is not empty; continue an interrupted run with --resume, "
                "or name another folder"
            )

    def outside(self, paths: Iterable[str]) -> Iterator[str]:
        """Yield the paths that are not in the folder, which may be in one of the images."""
        below = os.path.join(os.path.realpath(self.folder), "")
        for path in paths:
            # Not of the image, which may be a link. A path with a NUL is that of no file.
            parent = "" if "\0" in path else os.path.realpath(os.path.dirname(path))
            if not os.path.join(parent, "").startswith(below):
                yield path

    def sort(self, results: Iterable[Result]) -> Iterator[Result]:
        """Yield each result when its image is in its folder; an error if it cannot be read.

        Raises:
            UserError: the folder cannot be written.
        """
        for path in self.folder.glob(f".image.*{TEMPORARY}"):  # of a run that was killed
            with contextlib.suppress(OSError):
                path.unlink()
        for result in results:
            if os.path.isfile(result.path):
                try:
                    self._place(Path(result.path), self.folder / self._folder_of(result))
                except OSError as error:
                    reason = error.strerror or str(error)
                    if self.is_link or _is_readable(result.path):
                        raise UserError(
                            f"--sort_into {self.folder}: cannot write {result.path} there: {reason}"
                        ) from error
                    result = Result(result.path, [], result.error or reason)
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
            if self.is_first and self._is_placed(source, target):
                return
        try:
            if self.is_link:
                self.temporary.symlink_to(source.absolute())
            else:
                shutil.copy2(source, self.temporary)
            self.temporary.replace(target)
        finally:
            with contextlib.suppress(OSError):  # renamed, or never made
                self.temporary.unlink()

    def _is_placed(self, source: Path, target: Path) -> bool:
        if self.is_link:
            return os.path.realpath(source) == os.path.realpath(target)
        return filecmp.cmp(source, target, shallow=False)


def _has_files(folder: str) -> bool:
    """Return whether anything but folders is in a folder or below; a missing one has nothing.

    Raises:
        UserError: a folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return any(not e.is_dir(follow_symlinks=False) or _has_files(e.path) for e in entries)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"--sort_into {folder}: cannot read it: {error.strerror}") from error


def _is_readable(path: str) -> bool:
    """Return whether a file can be read up to its end."""
    try:
        sha256_of(path)
    except OSError:
        return False
    return True

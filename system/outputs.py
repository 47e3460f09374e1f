"""What a command may write: no file that it reads, no file of another kind, and only alone."""

import contextlib
import errno
import glob
import os
import re
import socket
import stat
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from system.files import TEMPORARY, temporary_path
from system.messages import UserError, shorten

# How files begin, by what they are. An existing file is replaced only by one of its kind.
KINDS: dict[str, tuple[bytes, ...]] = {
    "checkpoint": (b"PK\3\4",),  # a ZIP archive, as other files are: see `_is_of_kind`
    "figure": (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"II*\0", b"MM\0*", b"%PDF", b"<?xml"),
    "ONNX model": (b"\x08",),  # the number of its first field
    "table of findings": (b"finding,",),
    "table of a training": (b"epoch,", b"category,", b"path,reason"),
    "unfinished output": (b'{"path": ', b'{\n "--'),
    "lock": (b"process ",),
    "page": (b"<!doctype html>\n<!-- Image Classifier: ",),
    "metrics": (b'{\n  "checkpoint": ',),
}
FIGURE_FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".pdf", ".svg")
REPLACED_SUFFIXES = (".pth", ".pt", ".csv")  # in the names of files beside another
HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # what the system says of a lock of another

PathText = str | os.PathLike


def output_path(text: str, default_name: str) -> Path:
    """Return the file that a flag's value means; in a folder, it is called `default_name`."""
    path = Path(text)
    is_folder = os.path.isdir(path) or text.endswith(("/", os.sep)) or not path.suffix
    return path / default_name if is_folder else path


def path_beside(path: PathText, ending: str) -> Path:
    """Return a path in the folder of another one: model.pth, curves.png -> model.curves.png.

    Two models have files of their own, also if they are called lr0.01 and lr0.03.
    """
    path = Path(path)
    stem = path.stem if path.suffix in REPLACED_SUFFIXES else path.name
    return path.with_name(f"{stem}.{ending}")


def lock_path(path: PathText) -> Path:
    """Return the path of the file that says who is writing another one."""
    return Path(f"{os.fspath(path)}.lock")


class Output(NamedTuple):
    """A file that a command will write: what named it, where, and a kind of KINDS.

    With the kind "", any file may be replaced.
    """

    flag: str
    path: PathText
    kind: str


def check_outputs(outputs: Iterable[Output], inputs: Sequence[PathText | None]) -> None:
    """Check that files can and may be written, before the work; their folders are made.

    Args:
        outputs: all files that the command writes, those beside the named ones as well.
        inputs: files that the same command reads; None and those that are missing do not count.

    Raises:
        UserError: one of them cannot be written, is one of the inputs, is written twice, or is a
            file of another kind.
    """
    flags: dict[str, str] = {}
    for output in outputs:
        _check_output(output, inputs)
        target = os.path.realpath(output.path)
        if target in flags:
            raise UserError(
                f"{output.flag} {output.path}: {flags[target]} writes that file, too; name "
                "another one"
            )
        flags[target] = output.flag


def _check_output(output: Output, inputs: Sequence[PathText | None]) -> None:
    path = Path(output.path)
    name = f"{output.flag} {shorten([str(path)])}"
    if output.kind == "figure" and path.suffix.lower() not in FIGURE_FORMATS:
        raise UserError(f"{name}: the name has to end in one of {', '.join(FIGURE_FORMATS)}")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(temporary_path(path))  # if the name is not too long
        path.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.realpath(path)
        tempfile.TemporaryFile(dir=os.path.dirname(target)).close()
        is_replaceable = _is_of_kind(target, output.kind)
        same = [other for other in inputs if other is not None and _is_same(target, other)]
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "not a valid path"
        raise UserError(f"{name}: cannot write there: {reason}") from error
    if same:
        raise UserError(f"{name}: this command reads that file; name another one")
    if not is_replaceable:
        raise UserError(f"{name}: exists and is no {output.kind}; name another file, or delete it")


def check_no_input_below(flag: str, folder: PathText, root: PathText, paths: Iterable[str]) -> None:
    """Check that a folder for figures is not among the images, where they would be taken for some.

    Args:
        flag: what named the folder, for the error message.
        paths: of the images, relative to `root`.

    Raises:
        UserError: an image is in the folder, or below it.
    """
    inside = Path(os.path.relpath(Path(folder).resolve(), Path(root).resolve())).as_posix()
    if any(path.startswith(f"{inside}/") for path in paths):
        raise UserError(f"{flag} {folder}: contains images; name another folder")


def _is_of_kind(path: str, kind: str) -> bool:
    """Return whether a file may be replaced by one of a kind: it is one, is empty, or is missing.

    Raises:
        OSError: it is not a regular file.
    """
    if not os.path.lexists(path):
        return True
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(0, "is a folder")
    if not stat.S_ISREG(mode):
        raise OSError(0, "not a file, but a pipe or a device")
    with open(path, "rb") as file:
        beginning = file.read(64)
        if not beginning:
            return True
        if not beginning.startswith(KINDS.get(kind, (b"",))):
            return False
        if kind == "checkpoint":  # torch.save writes ARCHIVE/data.pkl
            with contextlib.suppress(zipfile.BadZipFile):
                return any(n.endswith("/data.pkl") for n in zipfile.ZipFile(file).namelist())
            return False
        return (
            kind != "ONNX model" or b"preprocessing_version" in beginning + file.read()
        )  # its metadata


def _is_same(path: str, other: PathText) -> bool:
    """Return whether two paths are one file, by any link; a missing one is none."""
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False


@contextlib.contextmanager
def lock(flag: str, path: PathText) -> Iterator[None]:
    """Let only one process at a time write a file; `FILE.lock` beside it says which one.

    The system releases the lock of a process that ends, however it ends. Where the file system has
    no locks, there is none.

    Raises:
        UserError: another process has the lock, or `FILE.lock` cannot be written.
    """
    file = lock_path(path)
    no_link = getattr(os, "O_NOFOLLOW", 0)  # which Windows lacks
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | no_link, 0o666)
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot write {file.name}: {error.strerror}") from error
    try:
        _lock_descriptor(descriptor)
        is_ours = os.path.samestat(os.fstat(descriptor), os.stat(file))
    except OSError as error:
        is_ours = error.errno not in (*HELD, errno.ENOENT)
    if not is_ours:
        holder = os.read(descriptor, 200).decode(errors="replace")
        os.close(descriptor)
        raise UserError(f"{flag} {path}: {holder or 'another process'} is writing it")
    _remove_temporary_files(Path(path))
    os.ftruncate(descriptor, 0)
    text = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%c')},"
    os.write(descriptor, text.encode())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()  # while it is locked: another process may not delete a newer one
        os.close(descriptor)


def _remove_temporary_files(path: Path) -> None:
    """Delete what processes that were killed have left of this file and those beside it."""
    for file in path.parent.glob(f".{glob.escape(path.stem)}.*{TEMPORARY}"):
        number = file.name.removesuffix(TEMPORARY).rpartition(".")[2]
        if re.fullmatch(r"[0-9]{1,9}", number) and not _is_running(int(number)):
            with contextlib.suppress(OSError):
                file.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # of another user
    return True


def _lock_descriptor(descriptor: int) -> None:
    """Lock an open file.

    Raises:
        OSError: another process has locked it (see HELD), or its file system has no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        # Not flock, which the processes that decode images would hold as well.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

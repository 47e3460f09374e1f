"""Read a thousand unusual and damaged images: those that Pillow is tested with.

    python benchmarks/unusual_images.py
    python benchmarks/unusual_images.py --folder /path/to/pillow/Tests/images
    python benchmarks/unusual_images.py --checkpoint assets/model/checkpoint_script.pth

Each passes through `utils.load_image` and `utils.plain_view`, with --checkpoint also through
`predict`. This runs in another process, which is ended if an image takes more than --limit seconds.
Without --folder, Pillow's source archive is downloaded from PyPI (47 MB), in the version that is
installed.
"""

from __future__ import annotations

import collections
import json
import multiprocessing
import os
import tarfile
import tempfile
import time
import urllib.request
from multiprocessing.connection import Connection
from pathlib import Path

import PIL
from common import run_script, show

from model import load_checkpoint
from predict import predict
from system.arguments import ArgumentParser, positive_number
from system.files import sha256_of
from system.messages import UserError
from utils import load_image, plain_view

IMPORT_SECONDS = 120  # that a new process may take before its first image
SPAWN = multiprocessing.get_context("spawn")


def download(folder: str) -> Path:
    """Download Pillow's source archive into `folder`, and return the path of its Tests/images."""
    header = {"Accept": "application/vnd.pypi.simple.v1+json"}  # PEP 691
    index = urllib.request.Request("https://pypi.org/simple/pillow/", headers=header)
    name, archive = f"pillow-{PIL.__version__}.tar.gz", f"{folder}/pillow.tar.gz"
    try:
        with urllib.request.urlopen(index) as page:
            [file] = [file for file in json.load(page)["files"] if file["filename"] == name]
        urllib.request.urlretrieve(file["url"], archive)
    except OSError as error:
        raise UserError(f"{name}: cannot download it: {error}; use --folder") from error
    if sha256_of(archive) != file["hashes"]["sha256"]:
        raise UserError(f"{name}: its sha256 is not the one that PyPI states")
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if "/Tests/images/" in m.name]
        tar.extractall(folder, members, filter="data")
    return next(Path(folder).glob("*/Tests/images"))


def read_all(paths: list[Path], checkpoint: str | None, pipe: Connection) -> None:
    """Send (path, None) before each image and (path, outcome) after it; runs in a new process."""
    model = load_checkpoint(checkpoint) if checkpoint else None
    for path in paths:
        pipe.send((path, None))
        try:
            plain_view(load_image(path))
            if model is not None:
                predict(model, [path])
            pipe.send((path, "read"))
        except UserError as error:
            pipe.send((path, f"refused: {error}".replace(f"{path}: ", "")))
        except BaseException as error:  # what this script looks for
            pipe.send((path, f"crashed: {type(error).__name__}: {error}"))


def outcomes(paths: list[Path], checkpoint: str | None, limit: float) -> dict[Path, str]:
    """Return the outcome of each image; if one hangs or crashes, a new process continues."""
    result: dict[Path, str] = {}
    while pending := [path for path in paths if path not in result]:
        receiver, sender = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=read_all, args=(pending, checkpoint, sender))
        process.start()
        sender.close()
        path = None
        try:
            while receiver.poll(limit if path else IMPORT_SECONDS):
                path, outcome = receiver.recv()
                if outcome:
                    result[path] = outcome
            result[path or pending[0]] = f"hung: over {limit:g} s"
        except EOFError:  # the process has ended
            process.join()
            if process.exitcode:
                result[path or pending[0]] = f"crashed: exit status {process.exitcode}"
        process.kill()
        process.join()
    return result


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--folder", help="of images (Pillow's Tests/images)")
    parser.add_argument("--checkpoint", help="also predict with this one")
    limit = "seconds per image (%(default)s)"
    parser.add_argument("--limit", type=positive_number, default=30, help=limit)
    args = parser.parse_args()
    if args.checkpoint:
        load_checkpoint(args.checkpoint)  # raises if it cannot be loaded
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder) if args.folder else download(temporary)
        paths = sorted(Path(d, name) for d, _, names in os.walk(folder) for name in names)
        start = time.perf_counter()
        result = outcomes(paths, args.checkpoint, args.limit)
        seconds = time.perf_counter() - start
    counts = collections.Counter(outcome.split(":")[0] for outcome in result.values())
    for path, outcome in result.items():
        if outcome != "read":
            print(f"{path.relative_to(folder)}: {outcome}")
    kinds = ("read", "refused", "crashed", "hung")
    rows = [[kind, counts[kind]] for kind in kinds] + [["seconds", f"{seconds:.0f}"]]
    numbers = {kind: counts[kind] for kind in kinds} | {"seconds": seconds}
    show(f"{len(paths)} files, Pillow {PIL.__version__}", ["files", ""], rows, numbers)


if __name__ == "__main__":
    run_script(main)

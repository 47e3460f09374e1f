"""Read a thousand odd and broken pictures: those that Pillow is tested with.

    python benchmarks/odd_pictures.py
    python benchmarks/odd_pictures.py --folder /path/to/pillow/Tests/images
    python benchmarks/odd_pictures.py --checkpoint assets/model/checkpoint_script.pth

Each goes through `utils.load_image` and its plain view, with --checkpoint also through `predict`,
in a process that is ended after --limit seconds. Without --folder, Pillow's source archive is
fetched from PyPI (47 MB), for the version that is installed.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import tarfile
import tempfile
import time
import urllib.request
from pathlib import Path

import PIL
from common import show

from model import load_checkpoint
from predict import predict
from utils import UserError, load_image, plain_view, sha256_of

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--folder", help="of pictures (Pillow's Tests/images)")
parser.add_argument("--checkpoint", help="predict, too, with this one")
parser.add_argument("--limit", type=float, default=30, help="seconds a picture (%(default)s)")


def fetch(folder: str) -> Path:
    """Pillow's Tests/images, out of its source archive, in `folder`."""
    header = {"Accept": "application/vnd.pypi.simple.v1+json"}  # PEP 691
    index = urllib.request.Request("https://pypi.org/simple/pillow/", headers=header)
    name, archive = f"pillow-{PIL.__version__}.tar.gz", f"{folder}/pillow.tar.gz"
    with urllib.request.urlopen(index) as page:
        [file] = [file for file in json.load(page)["files"] if file["filename"] == name]
    urllib.request.urlretrieve(file["url"], archive)
    if sha256_of(archive) != file["hashes"]["sha256"]:
        raise SystemExit(f"{name}: not the file that PyPI promises")
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if "/Tests/images/" in m.name]
        tar.extractall(folder, members, filter="data")
    return next(Path(folder).glob("*/Tests/images"))


def read_all(paths: list[Path], checkpoint: str | None, pipe) -> None:
    """In a process of its own: send each picture's path before, and what became of it after."""
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
    """What became of each picture; a new process goes on behind one that hangs or kills it."""
    found: dict[Path, str] = {}
    while left := [path for path in paths if path not in found]:
        here, there = multiprocessing.get_context("spawn").Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=read_all, args=(left, checkpoint, there)
        )
        process.start()
        there.close()
        path = None
        try:
            while here.poll(limit if path else 120):  # torch has to be imported first
                path, outcome = here.recv()
                if outcome:
                    found[path] = outcome
            found[path or left[0]] = f"hung: over {limit:g} s"
        except EOFError:  # it has ended
            process.join()
            if process.exitcode:
                found[path or left[0]] = f"crashed: exit status {process.exitcode}"
        process.kill()
        process.join()
    return found


def main() -> None:
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder) if args.folder else fetch(temporary)
        paths = sorted(Path(d, name) for d, _, names in os.walk(folder) for name in names)
        start = time.perf_counter()
        found = outcomes(paths, args.checkpoint, args.limit)
        seconds = time.perf_counter() - start
    counts = collections.Counter(outcome.split(":")[0] for outcome in found.values())
    for path, outcome in found.items():
        if outcome != "read":
            print(f"{path.relative_to(folder)}: {outcome}")
    kinds = ("read", "refused", "crashed", "hung")
    rows = [[kind, counts[kind]] for kind in kinds] + [["seconds", f"{seconds:.0f}"]]
    result = {kind: counts[kind] for kind in kinds} | {"seconds": seconds}
    show(f"{len(paths)} files of Pillow {PIL.__version__}", ["files", ""], rows, result)


if __name__ == "__main__":
    main()

"""What the tests share: small images, the command lines, and one trained checkpoint."""

import contextlib
import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# The workers of pytest-xdist have the cores: each of them, and what it starts, uses one.
os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import numpy as np
import pytest
import tiny_train
import torch
from filelock import FileLock
from PIL import Image

import model
import predict
import train
import utils
from image_files.digests import digest_of_file
from inference.formats import COLUMNS
from networks import novelty
from system import scripts
from training import features

ROOT = Path(__file__).resolve().parent.parent
CATEGORIES = ("1", "10", "2", "x y")  # in string order
MAINS = {"train.py": train.main, "predict.py": predict.main}
NAMES_WARNING = "warning: cat_to_name.json: has no name for 1 category: x y"  # of CATEGORIES
TINY_TRAIN = "tests/tiny_train.py"  # train.py with one more architecture
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
TIMEOUT = 300  # seconds after which a process that hangs is ended


# ---------------------------------------------------------------- the command lines


def run(script: str, *args, cwd: Path = ROOT, env: dict | None = None, launcher=()):
    """Run a script as a user does, in a process of its own."""
    return subprocess.run(
        [sys.executable, *launcher, str(ROOT / script), *map(str, args)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def free_port() -> str:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture
def call(monkeypatch, capsys):
    """Like `run`, but in this process, which saves the imports."""

    def in_process(script: str, *args) -> subprocess.CompletedProcess:
        words = [script, *map(str, args)]
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        status = 0
        try:
            scripts.run_script(MAINS[script], script)
        except SystemExit as stop:
            status = stop.code
        return subprocess.CompletedProcess(words, status, *capsys.readouterr())

    return in_process


def messages_of(done: subprocess.CompletedProcess) -> list[str]:
    """List the lines on stderr, without progress, and without the warning of near-duplicates.

    To networks with random weights, most images of these tests are near-duplicates.
    """
    others = (" near-duplicate", "cross-validation: ")
    return [line for line in done.stderr.splitlines() if not any(text in line for text in others)]


def assert_error(done: subprocess.CompletedProcess, *words) -> None:
    """Assert status 2 and one line on stderr with all of `words`, besides warnings and progress."""
    *before, line = done.stderr.splitlines() or [""]
    assert done.returncode == 2, done.stderr
    assert all(
        message.startswith(("warning: ", "features: ", "reading: ")) for message in before
    ), done.stderr
    assert line.startswith(("train.py: error: ", "predict.py: error: ")), line
    for word in words:
        assert str(word) in line


def table_rows(text: str) -> list[tuple[int, float, str, str]]:
    """Parse rank, probability in percent, name and category of each line of predict.py's table."""
    lines = text.splitlines()
    assert re.split(r" {2,}", lines[0].strip()) == ["rank", "probability", "name", "category"]
    if lines[-1].startswith("This image resembles none of the categories"):
        del lines[-1]
    rows = []
    for line in lines[1:]:
        rank, percent, name, category = re.split(r" {2,}", line.strip().rstrip("█ "))
        assert re.fullmatch(r"\d+\.\d%", percent)
        rows.append((int(rank), float(percent[:-1]), name, category))
    return rows


def parse_results(text: str, kind: str) -> list[dict]:
    """Parse predict.py's CSV, JSON or JSON lines into the objects of its JSON."""
    if kind == "json":
        return json.loads(text)
    if kind == "jsonl":
        return [json.loads(line) for line in text.split("\n")[:-1]]
    objects: list[dict] = []
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(rows[0]) == list(COLUMNS)
    for row in rows:
        if row["error"]:
            assert row["rank"] == row["category"] == row["name"] == row["probability"] == ""
            objects.append({"path": row["path"], "error": row["error"]})
            continue
        if row["rank"] == "1":
            novelty = float(row["novelty"]) if row["novelty"] else None
            objects.append({"path": row["path"], "predictions": [], "novelty": novelty})
        prediction = {"rank": int(row["rank"]), "category": row["category"], "name": row["name"]}
        prediction["probability"] = float(row["probability"])
        assert row["path"] == objects[-1]["path"]
        objects[-1]["predictions"].append(prediction)
    return objects


# ---------------------------------------------------------------- made once


@pytest.fixture(scope="session")
def make_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Make a file or a folder once for all workers of pytest-xdist.

    Takes its name and a function that makes it; returns its path, which no test may change.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # that of all workers

    def returned(name: str, make: Callable[[Path], object]) -> Path:
        path = base / name
        done = base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                make(path)
                done.touch()
        return path

    return returned


@pytest.fixture(scope="session", autouse=True)
def own_cache(make_once):
    """Let the tests, and the processes that they start, store features in a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(make_once("cache", Path.mkdir)))
        yield


# ---------------------------------------------------------------- images


def draw(kind: int, seed: int, width: int = 100, height: int = 90) -> Image.Image:
    """Draw a noisy image; its color and pattern follow from `kind` (0-3)."""
    rng = np.random.default_rng(1000 * kind + seed)
    y, x = np.mgrid[:height, :width] + rng.integers(0, 30, (2, 1, 1))
    pattern = [
        np.hypot(x - x.mean(), y - y.mean()) < 30,
        y // 6 % 2 == 0,
        (x // 10 + y // 10) % 2 == 0,
        np.ones_like(x),
    ][kind]
    color = np.array([(230, 30, 30), (40, 60, 230), (30, 200, 60), (240, 240, 200)][kind])
    pixels = pattern[..., None] * color + rng.normal(20, 12, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_images(root: Path, categories=CATEGORIES, train=4, valid=2, test=2) -> Path:
    """Fill `root/{train,valid,test}/<category>` with so many images each."""
    for split, count in (("train", train), ("valid", valid), ("test", test)):
        for kind, category in enumerate(categories):
            folder = root / split / category
            folder.mkdir(parents=True)
            for number in range(count):
                seed = 100 * utils.SPLITS.index(split) + number
                draw(kind, seed).save(folder / f"{split}_{number}.jpg", quality=95)
    return root


def all_images(root: Path) -> list[str]:
    """List the paths of all images in `root`, relative to it, sorted."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))


@pytest.fixture(scope="session")
def images(make_once) -> Path:
    """A data folder with 4 categories, which no test changes: see `own_images`."""
    return make_once("images", make_images)


@pytest.fixture
def own_images(tmp_path) -> Path:
    """A tiny data folder that a test may change: 2 categories of 2/1/1 images."""
    return make_images(tmp_path / "own images", ("a", "b"), 2, 1, 1)


@pytest.fixture
def locked_folder():
    """A folder that only root can read (see `not_root`), in a folder that everybody can read."""
    folder = Path(tempfile.mkdtemp(prefix="locked"))
    folder.chmod(0)
    yield folder
    folder.chmod(0o700)
    folder.rmdir()


@contextlib.contextmanager
def not_root():
    """Drop root's rights, if the tests run with them."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@contextlib.contextmanager
def full_disk(size: int = 200_000):
    """Let the system refuse to make a file larger than `size` bytes, as a full disk does."""
    resource = pytest.importorskip("resource", reason="this system cannot limit a file's size")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def held_by_another_process(imported: str, manager: str) -> Iterator[subprocess.Popen]:
    """Start a process that holds a context manager, such as a lock, until it is killed.

    Args:
        imported: the statement that imports it.
        manager: the expression that makes it.
    """
    program = f"{imported}\nwith {manager}:\n    print('held', flush=True)\n    input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == b"held\n"
        yield process


@pytest.fixture(scope="session")
def flowers_dir() -> Path:
    """A data folder of real photographs, which the environment names."""
    if not os.environ.get("FLOWERS_DIR"):
        pytest.skip("FLOWERS_DIR, a data folder of flower photographs, is not set")
    return Path(os.environ["FLOWERS_DIR"])


@pytest.fixture(scope="session")
def vgg16_weights() -> Path:
    """A state_dict file with VGG16's ImageNet weights, which the environment names."""
    if not os.environ.get("VGG16_WEIGHTS"):
        pytest.skip("VGG16_WEIGHTS, a state_dict file with ImageNet weights, is not set")
    return Path(os.environ["VGG16_WEIGHTS"])


# ---------------------------------------------------------------- networks


def backbone_of(arch: str = "vgg16", seed: int = 0) -> model.Backbone:
    """Make a complete backbone with the random weights of `--weights none`."""
    backbone = model.Backbone(arch)
    model.load_weights(backbone, arch, "none", seed)
    return backbone


def small_backbone(seed: int = 0) -> model.Backbone:
    """Make a backbone of two layers with max-pooling between them: fast, and with 384 features."""
    backbone = model.Backbone("vgg13")
    layers = [backbone.features[index] for index in (0, 1, 4, 4, 5, 6)]
    backbone.features, backbone.feature_layers = torch.nn.Sequential(*layers), (1, 5)
    backbone.num_features = 2 * 64 + 2 * 128
    model.load_weights(backbone, "vgg13", "none", seed)
    return backbone


def detector_of(hidden_units: int, num_classes: int = 3) -> novelty.NoveltyDetector:
    """Make a novelty detector of random hidden layers, calibrated on others."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % num_classes
    hidden = torch.rand(40, hidden_units, generator=generator) + labels[:, None]
    detector = novelty.fit_detector([(hidden, labels)], hidden_units, num_classes)
    logits = 3 * torch.rand(20, num_classes, generator=generator)
    detector.calibrate(*detector.scores(hidden[:20] + 0.1, logits).unbind(1))
    return detector


@pytest.fixture(scope="session")
def tiny() -> Iterator[str]:
    """The name of one more architecture, for this process; see tiny_train.py."""
    with pytest.MonkeyPatch.context() as patch:
        architecture = model.Architecture(tiny_train.build, "", tiny_train.FEATURE_LAYERS)
        patch.setitem(model.ARCHITECTURES, "tiny", architecture)
        yield "tiny"


@pytest.fixture
def train_tiny(tiny, images, call, tmp_path):
    """Train a tiny network on `images` in this process; its features are cached.

    Takes flags that differ, and whether to write a report; returns the finished command and the
    path of its checkpoint.
    """
    path, weights = tmp_path / "tiny.pth", tmp_path / "tiny weights.pt"
    torch.save(backbone_of("tiny").state_dict(), weights)

    def with_flags(*flags, report=False):
        fixed = ("--data_dir", images, "--output_cat", len(CATEGORIES), "--arch", "tiny")
        fixed += ("--weights", weights, "--workers", 0, "--epochs", 4, "--batch_size", 8)
        fixed += ("--hidden_units", 16, "--save_dir", path)
        fixed += () if report else ("--no_report",)
        return call("train.py", *fixed, *flags), path

    return with_flags


def feature_files(cache: Path) -> list[Path]:
    """List the files of features in a cache."""
    return sorted(cache.rglob("*.features"))


def start_training(flags, launcher=(), env=None) -> subprocess.Popen:
    """Start a training with a second for each batch: time to be disturbed."""
    return subprocess.Popen(
        [sys.executable, *launcher, ROOT / TINY_TRAIN, *map(str, flags)],
        cwd=ROOT,
        env={**os.environ, "SLOW": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_features(cache: Path, process: subprocess.Popen) -> None:
    """Wait until the first features have been written."""
    deadline = time.monotonic() + TIMEOUT
    while not any(path.stat().st_size for path in feature_files(cache)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no features yet"
        time.sleep(0.02)


def children(parent: int) -> list[int]:
    """List the processes that a process has started, the first one first."""
    ids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with_parent = path.read_text() if path.exists() else ""
        if re.search(rf"\) \S {parent} ", with_parent):
            ids.append(int(path.parent.name))
    return sorted(ids)


@pytest.fixture
def training(images, tmp_path):
    """Flags of a training with four batches in each of two processes; its cache and checkpoint."""
    cache, checkpoint = tmp_path / "cache", tmp_path / "checkpoint.pth"
    flags = ("--data_dir", images, "--output_cat", 4, "--arch", "tiny", "--weights", "none")
    flags += ("--epochs", 2, "--workers", 0, "--cache_dir", cache, "--save_dir", checkpoint)
    return (*flags, "--no_report"), cache, checkpoint


def views_of(root, paths, numbers=(0,)) -> list[features.View]:
    """List the views with these numbers of each image; see `features.list_views`."""
    images = [utils.ImageFile("", "", path, digest_of_file(Path(root, path))) for path in paths]
    return features.views_of(images, numbers)


def load_views(root, path, numbers, *size) -> torch.Tensor:
    """Call `utils.load_views` with the digest that the file has now."""
    return utils.load_views(str(root), path, digest_of_file(Path(root, path)), numbers, *size)


def extract(root, views, cache, backbone=None, strict=False, **changes) -> features.Features:
    """Call `features.extract`, by default with a small backbone and in this process.

    Args:
        views: from `views_of`.
        changes: of `features.Settings`.
    """
    settings = features.Settings(**changes)
    return features.extract(
        backbone or small_backbone(), str(root), views, settings, cache, strict=strict
    )


def state_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read the weights of a checkpoint."""
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether two state_dicts agree in every bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="session")
def checkpoint(tiny, images, make_once) -> Path:
    """A checkpoint of a tiny network, which this process knows: an image takes milliseconds.

    Its predictions are correct and not sure, with probabilities from 0.7 on.
    """
    flags = ["--data_dir", images, "--output_cat", len(CATEGORIES), "--arch", tiny]
    flags += ["--weights", "none", "--workers", 0, "--views", 4, "--no_report", "--no_cache"]
    flags += ["--epochs", 8, "--batch_size", 8, "--learning_rate", 0.0003, "--save_dir"]
    return make_once("tiny.pth", lambda path: train.main([*map(str, flags), str(path)]))


LIST_IMPORTS = """
import atexit, pathlib, sys
names = pathlib.Path(__file__).with_name("imported.txt")
atexit.register(lambda: names.write_text("\\n".join(sys.modules)))
"""


class Trained(NamedTuple):
    """A checkpoint of `train.py`, the finished command, and the modules that it imported."""

    checkpoint: Path
    done: subprocess.CompletedProcess
    flags: tuple
    imported: list[str]


@pytest.fixture(scope="session")
def trained(images, make_once) -> Trained:
    """A checkpoint that the real command line trained on `images`; its features are cached."""
    flags = ("--data_dir", images, "--output_cat", len(CATEGORIES), "--epochs", 8)
    flags += ("--batch_size", 8, "--hidden_units", 64, "--views", 2)

    def make(folder: Path) -> None:
        path = folder / "new" / "model.pth"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(LIST_IMPORTS)
        command = ("train.py", *flags, "--weights", "none", "--save_dir", path)
        done = run(*command, env={"PYTHONPATH": str(folder)})
        assert done.returncode == 0, done.stderr
        (folder / "output.json").write_text(json.dumps([done.stdout, done.stderr]))

    folder = make_once("trained", make)
    output = json.loads((folder / "output.json").read_text())
    done = subprocess.CompletedProcess(["train.py", *flags], 0, *output)
    imported = (folder / "imported.txt").read_text().splitlines()
    return Trained(folder / "new" / "model.pth", done, flags, imported)


@pytest.fixture
def train_again(trained, call, tmp_path):
    """Train on `images` in this process, from the features that `trained` cached.

    Takes flags that differ; returns the finished command and the path of its checkpoint.
    """
    path, weights = tmp_path / "again.pth", tmp_path / "vgg16.pth"
    torch.save(backbone_of().state_dict(), weights)

    def with_flags(*flags):
        fixed = ("--weights", weights, "--workers", 0, "--save_dir", path, "--no_report")
        return call("train.py", *trained.flags, *fixed, *flags), path

    yield with_flags
    path.unlink(missing_ok=True)
    weights.unlink()

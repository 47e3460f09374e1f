"""What the tests share: small pictures, the command lines, and one trained checkpoint."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import features
import model
import predict
import train
import utils

ROOT = Path(__file__).resolve().parent.parent
CATEGORIES = ("1", "10", "2", "x y")  # in string order
MAINS = {"train.py": train.main, "predict.py": predict.main}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # torchrun's own setting
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
LONG = 300  # seconds after which a process that hangs is given up


# ---------------------------------------------------------------- the command lines


def run(script: str, *args, cwd: Path = ROOT, env: dict | None = None, launcher=()):
    """Run a script as a user does, in a process of its own."""
    return subprocess.run(
        [sys.executable, *launcher, str(ROOT / script), *map(str, args)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=LONG,
    )


@pytest.fixture
def call(monkeypatch, capsys):
    """Like `run`, but in this process, which saves the imports."""

    def in_process(script: str, *args) -> subprocess.CompletedProcess:
        words = [script, *map(str, args)]
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        status = 0
        try:
            utils.run_script(MAINS[script], script)
        except SystemExit as stop:
            status = stop.code
        return subprocess.CompletedProcess(words, status, *capsys.readouterr())

    return in_process


def assert_error(done: subprocess.CompletedProcess, *words) -> None:
    """It ended with status 2 and one line that says all of `words`, besides plain messages."""
    *before, line = done.stderr.splitlines() or [""]
    assert done.returncode == 2, done.stderr
    assert all(message.startswith(("warning: ", "features: ")) for message in before), done.stderr
    assert line.startswith(("train.py: error: ", "predict.py: error: ")), line
    for word in words:
        assert str(word) in line


def table_rows(text: str) -> list[tuple[int, float, str, str]]:
    """Rank, probability in percent, name and category of each line that predict.py prints."""
    lines = text.splitlines()
    assert re.split(r" {2,}", lines[0].strip()) == ["rank", "probability", "name", "category"]
    found = []
    for line in lines[1:]:
        rank, percent, name, category = re.split(r" {2,}", line.strip().rstrip("█ "))
        assert re.fullmatch(r"\d+\.\d%", percent)
        found.append((int(rank), float(percent[:-1]), name, category))
    return found


# ---------------------------------------------------------------- pictures


def draw(kind: int, seed: int, width: int = 100, height: int = 90) -> Image.Image:
    """A noisy picture; its colour and pattern follow from `kind` (0-3)."""
    rng = np.random.default_rng(1000 * kind + seed)
    y, x = np.mgrid[:height, :width] + rng.integers(0, 30, (2, 1, 1))
    pattern = [
        np.hypot(x - x.mean(), y - y.mean()) < 30,
        y // 6 % 2 == 0,
        (x // 10 + y // 10) % 2 == 0,
        np.ones_like(x),
    ][kind]
    colour = np.array([(230, 30, 30), (40, 60, 230), (30, 200, 60), (240, 240, 200)][kind])
    pixels = pattern[..., None] * colour + rng.normal(20, 12, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_pictures(root: Path, categories=CATEGORIES, train=4, valid=2, test=2) -> Path:
    """Fill `root/{train,valid,test}/<category>` with so many pictures each."""
    for split, count in (("train", train), ("valid", valid), ("test", test)):
        for kind, category in enumerate(categories):
            folder = root / split / category
            folder.mkdir(parents=True)
            for number in range(count):
                seed = 100 * utils.SPLITS.index(split) + number
                draw(kind, seed).save(folder / f"{split}_{number}.jpg", quality=95)
    return root


def all_pictures(root: Path) -> list[str]:
    """The paths of all pictures in `root`, relative to it, sorted."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A data folder with 4 categories. Not to be changed: see `own_pictures`."""
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture
def own_pictures(tmp_path) -> Path:
    """A tiny data folder that a test may change: 2 categories of 2/1/1 pictures."""
    return make_pictures(tmp_path / "own pictures", ("a", "b"), 2, 1, 1)


@pytest.fixture
def locked_folder():
    """A folder that nobody but root may look into (see `not_root`), in one that everybody may."""
    folder = Path(tempfile.mkdtemp(prefix="locked"))
    folder.chmod(0)
    yield folder
    folder.chmod(0o700)
    folder.rmdir()


@contextlib.contextmanager
def not_root():
    """Go on without root's rights, where the tests run with them."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture(scope="session")
def flowers_dir() -> Path:
    """Real photographs: a data folder that the environment names."""
    if not os.environ.get("FLOWERS_DIR"):
        pytest.skip("FLOWERS_DIR, a data folder of flower photographs, is not set")
    return Path(os.environ["FLOWERS_DIR"])


@pytest.fixture(scope="session")
def vgg16_weights() -> Path:
    """VGG16's ImageNet weights: a state_dict file that the environment names."""
    if not os.environ.get("VGG16_WEIGHTS"):
        pytest.skip("VGG16_WEIGHTS, a state_dict file with ImageNet weights, is not set")
    return Path(os.environ["VGG16_WEIGHTS"])


# ---------------------------------------------------------------- networks


def backbone_of(arch: str = "vgg16", seed: int = 0) -> model.Backbone:
    """A whole backbone with the random values that `--weights none` gives."""
    backbone = model.Backbone(arch)
    model.load_weights(backbone, arch, "none", seed)
    return backbone


def small_backbone(seed: int = 0) -> model.Backbone:
    """Two layers of a backbone, max-pooling between them: quick, and with 384 features."""
    backbone = model.Backbone("vgg13")
    layers = [backbone.features[place] for place in (0, 1, 4, 4, 5, 6)]
    backbone.features, backbone.stages = torch.nn.Sequential(*layers), (1, 5)
    backbone.num_features = 2 * 64 + 2 * 128
    model.load_weights(backbone, "vgg13", "none", seed)
    return backbone


def extract(root, views, cache, backbone=None, **changes) -> features.Features:
    """`features.extract` by a small backbone, in this process, unless told otherwise."""
    settings = {"means": utils.MEANS, "stds": utils.STDS, "cache": cache, "workers": 0}
    settings |= {"device": torch.device("cpu"), "precision": torch.float32}
    return features.extract(backbone or small_backbone(), str(root), views, **settings | changes)


def state_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint."""
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two state_dicts agree in every bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """The tests, and what they start, keep features in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory):
    """The values of `--weights none --seed 0` as a file: they stay the same for other seeds."""
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(backbone_of().state_dict(), path)
    yield path
    path.unlink()  # 59 MB


class Trained(NamedTuple):
    """What `train.py` wrote and said."""

    checkpoint: Path
    done: subprocess.CompletedProcess
    flags: tuple


@pytest.fixture(scope="session")
def trained(pictures, tmp_path_factory):
    """A checkpoint that the real command line trained on `pictures`, its features kept."""
    checkpoint = tmp_path_factory.mktemp("trained") / "new" / "model.pth"
    flags = ("--data_dir", pictures, "--output_cat", len(CATEGORIES), "--epochs", 8)
    flags += ("--batch_size", 8, "--hidden_units", 64, "--views", 2)
    done = run("train.py", *flags, "--weights", "none", "--save_dir", checkpoint)
    assert done.returncode == 0, done.stderr
    yield Trained(checkpoint, done, flags)
    shutil.rmtree(checkpoint.parent)


@pytest.fixture
def train_again(trained, weights_file, call, tmp_path):
    """Train on `pictures` in this process, from the features that `trained` kept.

    Takes flags that differ; gives the finished command and the path of its checkpoint.
    """
    path = tmp_path / "again.pth"

    def with_flags(*flags):
        fixed = ("--weights", weights_file, "--workers", 0, "--save_dir", path, "--no_report")
        return call("train.py", *trained.flags, *fixed, *flags), path

    yield with_flags
    path.unlink(missing_ok=True)

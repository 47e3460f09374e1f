"""What the benchmarks share: arguments, timed commands, features, statistics and output."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as system/scripts.py does in the scripts

import torch  # noqa: E402
import torchvision  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from image_files.digests import digest_of_file  # noqa: E402
from image_files.folders import files_below  # noqa: E402
from model import Backbone, load_weights  # noqa: E402
from system import arguments, scripts  # noqa: E402
from system.devices import select_precision  # noqa: E402
from system.messages import UserError  # noqa: E402
from training import features  # noqa: E402
from training.fitting import FitSettings  # noqa: E402
from utils import list_images, read_data_folder  # noqa: E402

CPU = torch.device("cpu")
SETTINGS = FitSettings(epochs=7, learning_rate=0.03)  # train.py's defaults
HIDDEN = 512
DROPOUT = 0.5


# ---------------------------------------------------------------- arguments


def weights_parser(description: str | None) -> arguments.ArgumentParser:
    """Return a parser with --weights, whose default comes from the environment."""
    parser = arguments.ArgumentParser(description=description)
    _add_from_environment(parser, "--weights", "VGG16_WEIGHTS")
    return parser


def data_parser(description: str | None) -> arguments.ArgumentParser:
    """Return a parser with --data_dir and --weights, whose defaults come from the environment."""
    parser = weights_parser(description)
    _add_from_environment(parser, "--data_dir", "FLOWERS_DIR")
    return parser


def _add_from_environment(parser: arguments.ArgumentParser, flag: str, variable: str) -> None:
    value = os.environ.get(variable)
    parser.add_argument(flag, default=value, required=not value, help=f"(${variable})")


def run_script(main: Callable[[], object]) -> None:
    """Call a benchmark's `main`; a UserError becomes one line and exit status 2."""
    scripts.run_script(main, Path(sys.argv[0]).name)


# ---------------------------------------------------------------- commands


def timed(*command: str, **variables: str) -> tuple[float, str]:
    """Run Python with these arguments; returns wall-clock seconds and what it printed.

    Args:
        variables: are added to the environment.

    Raises:
        UserError: the exit status is not 0.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"exit status {done.returncode} of: python {' '.join(command)}")
    return time.perf_counter() - start, done.stdout


def import_seconds() -> float:
    """Return the seconds that a new process takes for `import torch`."""
    return timed("-c", "import torch")[0]


def train_command(data_dir: str, weights: str, checkpoint: str, *flags: str) -> list[str]:
    """Return the command that trains on all categories of a data folder, for `timed`."""
    count = len(list_images(data_dir).class_to_idx)
    command = [str(ROOT / "train.py"), "--data_dir", data_dir, "--output_cat", str(count)]
    return [*command, "--weights", weights, "--save_dir", checkpoint, *flags]


# ---------------------------------------------------------------- backbone and features


def load_backbone(weights: str) -> Backbone:
    """Return VGG16's backbone with `weights`; see `model.load_weights`."""
    backbone = Backbone("vgg16")
    load_weights(backbone, "vgg16", weights)
    return backbone


def default_precision() -> torch.dtype:
    """Return the precision in which train.py computes with VGG16 of ImageNet on this CPU."""
    return select_precision(CPU, has_int8=True)


def extract(
    args: argparse.Namespace,
    root: str,
    views: Sequence[features.View],
    strict: bool = False,
    precision: torch.dtype | None = None,
) -> features.Features:
    """Return the features of views of images in `root`; see `features.extract`.

    Args:
        args: with weights and cache_dir.
        precision: of the convolutions; None: `default_precision`.
    """
    settings = features.Settings(precision=precision or default_precision(), workers=1)
    backbone = load_backbone(args.weights)
    return features.extract(backbone, root, views, settings, args.cache_dir, strict=strict)


def folder_features(args: argparse.Namespace, root: str) -> torch.Tensor:
    """Return the features (N, num_regions, num_features) of all images in a folder and below it."""
    paths = [os.path.relpath(path, root) for path in files_below(root)]
    views = [features.View(path, 0, digest_of_file(os.path.join(root, path))) for path in paths]
    stored = extract(args, root, views)
    return stored[torch.tensor([i for i, p in enumerate(paths) if p not in stored.failures])]


def training_features(
    args: argparse.Namespace, numbers: Sequence[int] = (0,)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features and labels of the images of train and valid; those of test are not used.

    Args:
        args: with data_dir, weights and cache_dir.
        numbers: of each image's views.

    Returns:
        Features (N, len(numbers), len(REGIONS), num_features), and labels (N,).
    """
    data = read_data_folder(args.data_dir)
    views = features.views_of(data.of("train") + data.of("valid"), numbers)
    stored = extract(args, args.data_dir, views, strict=True)
    labels = torch.tensor(data.labels("train") + data.labels("valid"))
    return stored[torch.arange(len(stored))].unflatten(0, (len(labels), len(numbers))), labels


# ---------------------------------------------------------------- output


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """Format mean ± standard deviation of percentages; the deviation of one value is 0."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f} %"


def machine() -> dict[str, str]:
    """Return the date, the processor, its precision, and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "precision": str(default_precision()).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def show(title: str, header: list[str], rows: list[list], result: dict) -> None:
    """Print the machine, a Markdown table, and the whole result as one line of JSON."""
    about = machine()
    print(f"\n{title}\n" + ", ".join(f"{name} {value}" for name, value in about.items()) + "\n")
    for row in [header, ["---"] * len(header), *rows]:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(json.dumps({"machine": about, **result}))

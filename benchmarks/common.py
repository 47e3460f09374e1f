"""What the benchmarks share: the machine's description, timed commands, tables."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
import torchvision

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from features import fast_copy  # noqa: E402
from model import Backbone, load_weights  # noqa: E402
from utils import select_precision  # noqa: E402


def machine() -> dict[str, str]:
    """Processor, cores, threads and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "precision": str(select_precision(torch.device("cpu"))).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def timed(*command: str, **environment: str) -> tuple[float, str]:
    """Run a Python script of this project; wall-clock seconds, and what it printed."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return time.perf_counter() - start, done.stdout


def import_seconds() -> float:
    """Seconds that a new process needs for `import torch, torchvision`, and to start and end."""
    return timed("-c", "import torch, torchvision")[0]


class Floor:
    """The bare backbone on views that are in memory already: what no program can do without."""

    def __init__(self, arch: str, weights: str, batch_size: int = 4):
        self.backbone = Backbone(arch)
        load_weights(self.backbone, arch, weights)
        precision = select_precision(torch.device("cpu"))
        self.backbone = fast_copy(self.backbone, torch.device("cpu"), precision)
        self.images = torch.rand(batch_size, 3, 224, 224)
        self.seconds()  # the first pass prepares kernels

    @torch.inference_mode()
    def seconds(self, batches: int = 10) -> float:
        """Seconds an image, the median of some batches."""
        times = []
        for _ in range(batches):
            start = time.perf_counter()
            self.backbone(self.images)
            times.append(time.perf_counter() - start)
        return sorted(times)[batches // 2] / len(self.images)


def show(title: str, header: list[str], rows: list[list], result: dict) -> None:
    """Print the machine, a Markdown table, and the whole result as one line of JSON."""
    about = machine()
    print(f"\n{title}\n" + ", ".join(f"{name} {value}" for name, value in about.items()) + "\n")
    for row in [header, ["---"] * len(header), *rows]:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(json.dumps({"machine": about, **result}))

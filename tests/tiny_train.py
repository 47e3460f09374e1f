"""Run train.py with one more architecture, `--arch tiny`, and with a state saved after each epoch.

    python tests/tiny_train.py --data_dir flowers --output_cat 102 --arch tiny --weights none

An image takes milliseconds. The environment variable SLOW is the number of seconds that each batch
of images and each epoch take at least: time to end a process in the middle of either.
"""

import os
import runpy
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from system import scripts

    scripts.prepare("train.py")

import torch
from torch import nn
from torchvision.models.vgg import make_layers

ROOT = Path(__file__).resolve().parent.parent
FEATURE_LAYERS = (5, 8)  # the ReLU before the last max-pooling, and the last one
SECONDS = float(os.environ.get("SLOW", 0))


class SlowReLU(nn.ReLU):
    """A ReLU that takes at least SECONDS."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(SECONDS)
        return super().forward(x)


def build() -> nn.Sequential:
    """Make the layers of a VGG of three convolutions with few channels."""
    layers = make_layers([8, "M", "M", 8, "M", 16])
    layers[FEATURE_LAYERS[1]] = SlowReLU()
    return layers


def main() -> None:
    """Run the script with this command line."""
    import model
    from training import resume

    class SlowRun(resume.UnfinishedRun):
        def save(self, first_epoch, state):
            super().save(first_epoch, state)
            time.sleep(SECONDS)

    resume.SAVE_INTERVAL, resume.UnfinishedRun = 0, SlowRun
    model.ARCHITECTURES["tiny"] = model.Architecture(build, "", FEATURE_LAYERS)
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


if __name__ == "__main__":
    main()

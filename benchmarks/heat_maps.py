"""What hiding the hottest places of a heat map costs the answer, for two ways to compute the heat.

    python benchmarks/heat_maps.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS

Of every photograph of valid, the 20 hottest of the 14 x 14 places (a tenth) are painted in the mean
colour: the more the logit of the answer falls, the better the map knows what it rests on. Compared
are `model.heat_map` (HiResCAM), Grad-CAM, which weighs each map by its mean slope, and chance.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile

import torch
from common import ROOT, show, timed

import utils
from model import Classifier, heat_map, load_checkpoint, pool_parts

HIDDEN = 20  # places
NAMES = ("HiResCAM", "Grad-CAM", "chance")

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--data_dir", default=os.environ.get("FLOWERS_DIR"))
parser.add_argument("--weights", default=os.environ.get("VGG16_WEIGHTS"))


def grad_cam(model: Classifier, image: torch.Tensor, index: int) -> torch.Tensor:
    """As `model.heat_map`, but with Grad-CAM's weights: the mean slope over all places."""
    with torch.no_grad():
        features, maps = model.backbone.features_and_maps(image[None])
        maps = model.backbone.last_block(maps).float()
    maps.requires_grad_()
    second = pool_parts(maps)
    features = torch.cat([features[..., : -second.shape[2]], second], 2)
    [slopes] = torch.autograd.grad(model.head(features).mean(1)[0, index], maps)
    return (slopes.mean((2, 3), keepdim=True) * maps).sum(1)[0].detach()


def costs(model: Classifier, path: str, generator: torch.Generator) -> list[float]:
    """How much the logit of a picture's answer falls, for each of NAMES."""
    view = utils.plain_view(utils.load_image(path))
    [image] = utils.normalize(view[None], model.means, model.stds)
    with torch.no_grad():
        logits = model(image[None])[0]
    index = logits.argmax().item()
    heats = [heat_map(model, image, index), grad_cam(model, image, index)]
    heats.append(torch.rand(heats[0].shape, generator=generator))
    hidden = []
    for heat in heats:
        mask = torch.ones(heat.numel())
        mask[heat.flatten().topk(HIDDEN).indices] = 0
        mask = mask.view(heat.shape).repeat_interleave(16, 0).repeat_interleave(16, 1)
        hidden.append(image * mask)  # the mean colour is 0
    with torch.no_grad():
        return (logits[index] - model(torch.stack(hidden))[:, index]).tolist()


def main() -> None:
    args = parser.parse_args()
    data = utils.read_data_folder(args.data_dir)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = f"{folder}/checkpoint.pth"
        flags = ["--data_dir", args.data_dir, "--output_cat", str(len(data.class_to_idx))]
        flags += ["--weights", args.weights, "--save_dir", checkpoint, "--no_report"]
        timed(str(ROOT / "train.py"), *flags)
        model = load_checkpoint(checkpoint)
        precision = utils.select_precision(torch.device("cpu"))
        model.backbone.to(precision, memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(0)
        paths = [f"{data.root}/{path}" for path in data.paths["valid"]]
        columns = list(zip(*(costs(model, path, generator) for path in paths), strict=True))
    rows = []
    for name, column in zip(NAMES, columns, strict=True):
        error = statistics.stdev(column) / len(column) ** 0.5
        rows.append([name, f"{statistics.mean(column):.2f} ± {error:.2f}"])
    title = f"{len(paths)} photographs, {HIDDEN} of 196 places hidden, mean ± standard error"
    show(title, ["heat", "the logit falls by"], rows, {"costs": columns})


if __name__ == "__main__":
    main()

"""Compare heat maps: how much does hiding the hottest locations lower the logit?

    python benchmarks/heat_maps.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS

In each image of valid, the 20 hottest of the 14 x 14 locations (a tenth) are painted in the mean
color. The more the logit of the predicted category falls, the better the heat map has located what
the prediction depends on. Compared are `model.heat_map` (HiResCAM), Grad-CAM, which weights each
map by the mean of its gradients, and random locations.
"""

from __future__ import annotations

import statistics
import tempfile

import torch
from common import CPU, data_parser, run_script, show, timed, train_command

import utils
from model import (
    REGIONS,
    Classifier,
    heat_map,
    load_checkpoint,
)
from networks.vgg import pool_regions, replace_second_stage
from system.devices import select_precision

HIDDEN = 20  # locations
NAMES = ("HiResCAM", "Grad-CAM", "random")


def grad_cam(model: Classifier, view: torch.Tensor, category: str) -> torch.Tensor:
    """Return what `model.heat_map` does, up to scale, but with Grad-CAM's weights."""
    with torch.no_grad():
        image = utils.normalize(view[None], model.means, model.stds)  # (1, 3, 224, 224)
        features, maps = model.backbone.features_and_maps(image)
        maps = model.backbone.last_block(maps).float()  # (1, 512, 14, 14)
    maps.requires_grad_()
    features = replace_second_stage(features, pool_regions(maps, REGIONS))
    logit = model.head.image_outputs(features)[1][0, model.class_to_idx[category]]
    [gradients] = torch.autograd.grad(logit, maps)
    return (gradients.mean((2, 3), keepdim=True) * maps).sum(1)[0].detach()


@torch.no_grad()
def logits_of(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Return the logits (N, num_classes) of normalized images (N, 3, 224, 224)."""
    return model.head.image_outputs(model.backbone(images))[1]


def drops(model: Classifier, path: str, generator: torch.Generator) -> list[float]:
    """Return by how much the logit of an image's predicted category falls, for each of NAMES."""
    view = utils.plain_view(utils.load_image(path))
    [image] = utils.normalize(view[None], model.means, model.stds)
    [logits] = logits_of(model, image[None])
    index = int(logits.argmax())
    category = model.categories[index]
    heats = [heat_map(model, view, category), grad_cam(model, view, category)]
    heats.append(torch.rand(heats[0].shape, generator=generator))
    hidden = []
    for heat in heats:
        mask = torch.ones(heat.numel())
        mask[heat.flatten().topk(HIDDEN).indices] = 0
        mask = mask.view(heat.shape).repeat_interleave(16, 0).repeat_interleave(16, 1)
        hidden.append(image * mask)  # the mean color is 0
    return (logits[index] - logits_of(model, torch.stack(hidden))[:, index]).tolist()


def main() -> None:
    args = data_parser(__doc__).parse_args()
    data = utils.read_data_folder(args.data_dir)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = f"{folder}/checkpoint.pth"
        timed(*train_command(args.data_dir, args.weights, checkpoint, "--no_report"))
        model = load_checkpoint(checkpoint)
        model.backbone.to(select_precision(CPU), memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(0)
        paths = [f"{data.root}/{path}" for path in data.paths("valid")]
        columns = list(zip(*(drops(model, path, generator) for path in paths), strict=True))
    rows = []
    for name, column in zip(NAMES, columns, strict=True):
        error = statistics.stdev(column) / len(column) ** 0.5
        rows.append([name, f"{statistics.mean(column):.2f} ± {error:.2f}"])
    title = f"{len(paths)} images, {HIDDEN} of 196 locations hidden, mean ± standard error"
    show(title, ["heat map", "the logit falls by"], rows, {"drops": columns})


if __name__ == "__main__":
    run_script(main)

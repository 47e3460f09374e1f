"""The network: the frozen convolutions of torchvision's VGG and a new head; checkpoints.

    images (N, 3, 224, 224)
    -> backbone -> features (N, 6, 2048), of six regions; of larger images (N, 12, 2048)
    -> head     -> logits (N, num_classes), the mean over the regions
    -> probabilities (N, num_classes), and novelty (N,): how unusual each image is

To add an architecture, add a row to ARCHITECTURES.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from inference.predictor import Predictor
from networks import int8
from networks.checkpoint_files import (
    check_values,
    check_version,
    digest_of_tensors,
    load_tensors,
    load_torch,
    save_torch,
)
from networks.heat_maps import hires_cam
from networks.novelty import NoveltyDetector
from networks.vgg import pool_regions, replace_second_stage, vgg_layers
from networks.weights import load_weights as load_backbone_weights
from networks.weights import ranges_of
from networks.winograd import replace_convolutions
from system import devices
from system.messages import UserError, shorten
from utils import CROP, IMAGE_SIZES, describe_plain_view, normalize

FORMAT_VERSION, OLDEST_VERSION = 8, 4  # 4 had no names, 5 no novelty detector, 6 one image size
MIRRORED_VERSION = 8  # 7 did not mirror the second scale of images above 224 pixels
WINOGRAD_CHANNELS = 128  # input channels from which Winograd's method is faster; see fast_copy

# Regions of an image whose features are taken, as (top, left, side), fractions of its side: the
# whole, four overlapping corners, and the middle. One pass of the convolutions serves all of them,
# as in OverFeat (Sermanet et al. 2014). benchmarks/README.md has what each region brings.
REGIONS = [(0, 0, 1), (0, 0, 0.7), (0, 0.3, 0.7), (0.3, 0, 0.7), (0.3, 0.3, 0.7), (0.2, 0.2, 0.6)]


@dataclass(frozen=True)
class Architecture:
    """A VGG: its layers, torchvision's address of its weights, and where features are taken.

    `stages` are indices of layers: the last ReLU before the fourth and before the fifth
    max-pooling. Both together gave 2 points of accuracy more than the last alone
    (benchmarks/README.md).
    """

    build: Callable[[], Any]  # nn.Sequential
    url: str
    stages: tuple[int, int]


URL = "https://download.pytorch.org/models/"
ARCHITECTURES = {
    "vgg16": Architecture(lambda: vgg_layers(2, 2, 3, 3, 3), f"{URL}vgg16-397923af.pth", (22, 29)),
    "vgg13": Architecture(lambda: vgg_layers(2, 2, 2, 2, 2), f"{URL}vgg13-19584684.pth", (18, 23)),
}


def num_regions(image_size: int) -> int:
    """Return how many regions of an image of this size have features."""
    return len(REGIONS) * (1 if image_size <= CROP else 2)


class Backbone(nn.Module):
    """The convolutions of a VGG, frozen; their outputs at two stages are pooled over REGIONS.

    Images above 224 pixels pass through them a second time, mirrored and at half the size: objects
    are then as large as in the images that the network was trained on (benchmarks/README.md).

    Its weights have torchvision's names (`features.0.weight`, ...). They have no values, on the
    meta device, until `load_weights` or `load_checkpoint` loads them.
    """

    def __init__(self, arch: str):
        super().__init__()
        self.stages = ARCHITECTURES[arch].stages
        with torch.device("meta"):
            self.features = ARCHITECTURES[arch].build()[: self.stages[1] + 1]
        channels = [self.features[stage - 1].out_channels for stage in self.stages]
        self.num_features = 2 * sum(channels)  # an average and a maximum of each
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) -> features (N, num_regions, num_features) float32, all above 0.

        The convolutions run in the precision of the weights.
        """
        return torch.cat([self.features_and_maps(scale)[0] for scale in scales_of(images)], 1)

    def features_and_maps(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features of one scale and the last block's input (N, 512, H / 16, W / 16)."""
        x = images.to(self.features[0].weight.dtype, memory_format=torch.channels_last)
        x = self.features[: self.stages[0] + 1](x)  # (N, 512, H / 8, W / 8)
        first = pool_regions(x, REGIONS)
        maps = self.features[self.stages[0] + 1](x)  # (N, 512, H / 16, W / 16)
        return torch.cat([first, self.second_stage(maps)], 2), maps

    def second_stage(self, maps: torch.Tensor) -> torch.Tensor:
        """Last block's input (N, 512, H, W) -> (N, len(REGIONS), num_features / 2) float32."""
        return pool_regions(self.last_block(maps), REGIONS)

    @property
    def last_block(self) -> nn.Sequential:
        """The convolutions after the fourth max-pooling, which fine-tuning may change."""
        return self.features[self.stages[0] + 2 :]

    def maps_shape(self, size: int) -> tuple[int, int, int]:
        """Return (C, H, W) of the last block's input, for images of `size` x `size` pixels."""
        for layer in self.features[: self.stages[0] + 2]:
            if isinstance(layer, nn.MaxPool2d):
                size //= 2
        return self.features[self.stages[0] - 1].out_channels, size, size

    def digest(self) -> str:
        """Return the sha256 of all weights, in hexadecimal."""
        return digest_of_tensors(self.state_dict())


def scales_of(images: torch.Tensor) -> list[torch.Tensor]:
    """Return images (N, 3, H, W), and above 224 pixels also mirror images of half the size."""
    return [images] if images.shape[2] <= CROP else [images, avg_pool2d(images, 2).flip(3)]


def fast_copy(backbone: Backbone, device: torch.device, precision: torch.dtype) -> Backbone:
    """Return a copy of a backbone to run on many views: its features agree up to rounding.

    A CPU that computes in float32 gets Winograd convolutions where they are faster than torch's:
    from WINOGRAD_CHANNELS on (benchmarks/choices.py). They need 230 MB more memory and time to
    prepare, so that they do not pay for one image. In torch.int8, features agree up to 4 %.
    """
    if precision == torch.int8:
        backbone, (first, second) = copy.deepcopy(backbone), backbone.stages
        blocks = [(0, first + 1), (first + 2, second + 1)]
        ranges = ranges_of(backbone.digest())
        int8.replace_layers(backbone.features, blocks, ranges)
        return backbone
    backbone = copy.deepcopy(backbone).to(device, precision).to(memory_format=torch.channels_last)
    if device.type == "cpu" and precision == torch.float32:
        replace_convolutions(backbone.features, WINOGRAD_CHANNELS)
    return backbone


class Head(nn.Module):
    """A feed-forward network on features: standardize, hidden layer, ReLU, dropout, logits.

    `mean` and `std` (num_features) are those of the training features; `standardize_by` sets them.
    Of `num_outputs` outputs, only the first `num_classes` belong to a category. The others are cut
    off, so that they are never predicted.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        num_features: int,
        hidden_units: int,
        num_outputs: int,
        num_classes: int,
        dropout: float,
    ):
        super().__init__()
        self.num_classes, self.hidden_units = num_classes, hidden_units
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))
        self.layers = nn.Sequential(
            nn.Linear(num_features, hidden_units),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_units, num_outputs),
        )

    def standardize_by(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Set the mean and standard deviation (num_features) of the features."""
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=1e-3))  # a feature that never varies stays finite

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features of regions (..., num_features) float32 -> logits (..., num_classes) float32."""
        return self.output(self.hidden(features))

    def hidden(self, features: torch.Tensor) -> torch.Tensor:
        """Features of regions (..., num_features) -> hidden layer (..., hidden_units)."""
        linear, relu, dropout, _ = self.layers  # a slice would be a new module in each step
        return dropout(relu(linear((features - self.mean) / self.std)))

    def output(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden layer (..., hidden_units) -> logits (..., num_classes)."""
        return self.layers[-1](hidden)[..., : self.num_classes]

    def image_hidden(self, features: torch.Tensor) -> torch.Tensor:
        """Features (N, num_regions, num_features) -> hidden layer (N, hidden_units): the mean."""
        return self.hidden(features).mean(1)

    def image_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Features (N, num_regions, num_features) -> logits (N, num_classes): the mean."""
        return self.output(self.image_hidden(features))


class Classifier(Predictor, nn.Module):
    """Backbone and head, with everything else that a prediction needs.

    Attributes, beside those of `Predictor`:
        arch: a key of ARCHITECTURES.
        temperature: what logits are divided by before they become probabilities.
        detector: computes the novelty; None: there is none.
        history: how it was trained, as the checkpoint stores it: "epoch" (the one used, from 1),
            "metrics" and "arguments".
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        *,
        arch: str,
        class_to_idx: dict[str, int],
        means: Sequence[float],
        stds: Sequence[float],
        image_size: int,
        temperature: float = 1.0,
        detector: NoveltyDetector | None = None,
        names: dict[str, str] | None = None,
        history: dict[str, Any] | None = None,
    ):
        nn.Module.__init__(self)
        self.backbone, self.head, self.detector = backbone, head, detector
        self.arch, self.class_to_idx = arch, class_to_idx
        self.categories = sorted(class_to_idx, key=class_to_idx.__getitem__)
        self.means, self.stds, self.image_size = means, stds, image_size
        self.temperature, self.names, self.history = temperature, names or {}, history or {}
        self.has_novelty = detector is not None
        self.trained_on = str(self.history.get("arguments", {}).get("data_dir", ""))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalized images (N, 3, size, size) -> probabilities (N, num_classes), novelty (N,).

        Without a detector, novelty is NaN.
        """
        hidden = self.head.image_hidden(self.backbone(images))
        logits = self.head.output(hidden)
        if self.detector is None:
            novelty = torch.full_like(logits[:, 0], torch.nan)
        else:
            novelty = self.detector(hidden, logits)
        return (logits / self.temperature).softmax(1), novelty

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def prepare(self, device: str, precision: str) -> None:
        """See `Predictor.prepare`."""
        where = devices.select_device(device)
        self.device_type = where.type
        self.to(where).backbone.to(devices.select_precision(where, precision))
        self.backbone.to(memory_format=torch.channels_last)

    def prepare_for_many(self) -> None:
        """See `Predictor.prepare_for_many`, and `fast_copy`."""
        precision = self.backbone.features[0].weight.dtype
        self.backbone = fast_copy(self.backbone, self.device, precision)

    @torch.inference_mode()
    def compute(
        self, views: np.ndarray, means: Sequence[float], stds: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Predictor.predict_views`."""
        images = normalize(torch.as_tensor(views).to(self.device), means, stds)
        probs, novelty = self(images)
        return probs.cpu().numpy(), novelty.cpu().numpy()

    def metadata(self) -> dict[str, Any]:
        """Return what a file without torch's weights needs to say, as plain values."""
        return {
            "categories": self.categories,
            "names": self.all_names(),
            "preprocessing": describe_plain_view(self.image_size),
            "arch": self.arch,
            "format_version": FORMAT_VERSION,  # of the checkpoint
            "means": self.means,  # range 0-1, of red, green and blue
            "stds": self.stds,
            "temperature": self.temperature,
        }


def heat_map(model: Classifier, view: np.ndarray, category: str) -> torch.Tensor:
    """Return the locations of an image that raise a category's logit; see `hires_cam`.

    The maps are those of the backbone's last convolution. Grad-CAM (Selvaraju et al. 2017) weights
    a map by the mean of its gradients, which is less faithful where a maximum is taken
    (benchmarks/README.md).

    Args:
        view: (3, H, W) uint8.
        category: a folder's name, of the most likely category or any other.

    Returns:
        (H / 16, W / 16) float32 on the CPU, 0-1; the maximum is 1 unless all are 0.
    """
    index = model.class_to_idx[category]
    with torch.no_grad():
        views = torch.as_tensor(view[None]).to(model.device)
        scales = scales_of(normalize(views, model.means, model.stds))
        features, inputs = zip(*map(model.backbone.features_and_maps, scales), strict=True)
        maps = [model.backbone.last_block(x).float() for x in inputs]  # (1, 512, H / 16, W / 16)

    def logit_of(maps: Sequence[torch.Tensor]) -> torch.Tensor:
        pooled = [
            replace_second_stage(first.clone(), pool_regions(scale, REGIONS))
            for first, scale in zip(features, maps, strict=True)
        ]
        return model.head.image_logits(torch.cat(pooled, 1))[0, index]

    return hires_cam(maps, logit_of)  # which mirrors the second of `scales_of` back


# ---------------------------------------------------------------- weights and checkpoints


def load_weights(backbone: Backbone, arch: str, weights: str, seed: int = 0) -> None:
    """Load or make a new backbone's weights; see `networks.weights.load_weights`."""
    load_backbone_weights(backbone, weights, arch, ARCHITECTURES[arch].url, seed)


def save_checkpoint(path: str | os.PathLike, model: Classifier) -> None:
    """Write everything that a prediction needs, as plain types and tensors, atomically."""
    layers: Any = model.head.layers
    content = {
        "format_version": FORMAT_VERSION,
        "arch": model.arch,
        "hidden_units": model.head.hidden_units,
        "num_outputs": layers[-1].out_features,
        "dropout": layers[2].p,
        "class_to_idx": dict(model.class_to_idx),
        "means": list(model.means),
        "stds": list(model.stds),
        "image_size": model.image_size,
        "temperature": model.temperature,
        "names": model.names,
        **model.history,
        "state_dict": {name: tensor.cpu() for name, tensor in model.state_dict().items()},
    }
    save_torch(content, path)


def load_checkpoint(path: str | os.PathLike) -> Classifier:
    """Return the classifier that `save_checkpoint` wrote, on the CPU, in evaluation mode.

    Its weights are memory-mapped: the file has to stay as long as they are in use.

    Raises:
        UserError: the file is missing, no checkpoint, or of another format.
    """
    content = load_torch(path, "checkpoint")
    check_version(path, content, OLDEST_VERSION, FORMAT_VERSION)
    try:
        check_values(content, ARCHITECTURES, IMAGE_SIZES)
        classifier = _build_classifier(content)
    except Exception as error:
        reason = f"{type(error).__name__}: {shorten([str(error)])}"
        raise UserError(f"{path}: damaged checkpoint: {reason}") from error
    if classifier.image_size > CROP:
        check_version(path, content, MIRRORED_VERSION, FORMAT_VERSION)
    return classifier


def _build_classifier(content: dict[str, Any]) -> Classifier:
    """Build the classifier of a checkpoint's content."""
    backbone = Backbone(content["arch"])
    hidden_units, num_classes = content["hidden_units"], len(content["class_to_idx"])
    sizes = (backbone.num_features, hidden_units, content["num_outputs"], num_classes)
    with torch.device("meta"):
        head, detector = Head(*sizes, content["dropout"]), None
        if "detector.means" in content["state_dict"]:
            detector = NoveltyDetector(hidden_units, num_classes)
    names = ("arch", "class_to_idx", "means", "stds", "image_size", "temperature")
    model = Classifier(
        backbone,
        head,
        detector=detector,
        names=content.get("names", {}),
        history={name: content[name] for name in ("epoch", "metrics", "arguments")},
        **{name: content[name] for name in names},
    )
    load_tensors(model, content["state_dict"])
    if detector is not None:
        detector.check()
    return model.requires_grad_(False).eval()

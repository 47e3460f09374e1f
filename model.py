"""The network: the frozen convolutions of torchvision's VGG and a new head; checkpoints.

    images (N, 3, 224, 224)
    -> backbone -> features (N, 6, 2048), of six regions; of larger images (N, 12, 2048)
    -> head     -> logits (N, num_classes), the mean over the regions
    -> probabilities (N, num_classes), and novelty (N,): how unusual each image is

To add an architecture, add a row to ARCHITECTURES; to add a region, add a line to REGIONS.
"""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
from networks.novelty import NOVELTY_LIMIT, NoveltyDetector
from networks.vgg import Region, pool_regions, replace_second_stage, vgg_layers
from networks.weights import (
    VGG16_DIGEST,
    VGG16_RANGES,
    load_imagenet_weights,
    load_weights_file,
    randomize_weights,
)
from system import devices
from system.messages import UserError, shorten
from utils import CROP, IMAGE_SIZES, MEANS, STDS, normalize, preprocessing

# Of a checkpoint. Raise it when a checkpoint's names change, or what follows from its weights.
FORMAT_VERSION = 2

# Regions of an image whose features are taken, as (top, left, side), fractions of its side: the
# whole, which comes first, four overlapping corners, and the middle. One pass of the convolutions
# serves all of them, as in OverFeat (Sermanet et al. 2014). docs/results.md has what each
# region brings. A checkpoint of other regions has to be trained again.
REGIONS: list[Region] = [
    (0, 0, 1),
    (0, 0, 0.7),
    (0, 0.3, 0.7),
    (0.3, 0, 0.7),
    (0.3, 0.3, 0.7),
    (0.2, 0.2, 0.6),
]


@dataclass(frozen=True)
class Architecture:
    """A VGG: its layers, torchvision's address of its weights, and where features are taken.

    `feature_layers` are indices of layers: the last ReLU before the fourth and before the fifth
    max-pooling. Both together gave 2 points of accuracy more than the last alone
    (docs/results.md).
    """

    build: Callable[[], nn.Sequential]
    url: str
    feature_layers: tuple[int, int]


ARCHITECTURES = {
    "vgg16": Architecture(
        build=partial(vgg_layers, (2, 2, 3, 3, 3)),
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        feature_layers=(22, 29),
    ),
    "vgg13": Architecture(
        build=partial(vgg_layers, (2, 2, 2, 2, 2)),
        url="https://download.pytorch.org/models/vgg13-19584684.pth",
        feature_layers=(18, 23),
    ),
}


def num_scales(image_size: int) -> int:
    """Return how many times an image of this size passes through the backbone.

    Images above 224 pixels pass a second time, mirrored and at half the size: objects are then as
    large as in the images that the network was trained on (docs/results.md).
    """
    return 1 if image_size <= CROP else 2


def num_regions(image_size: int) -> int:
    """Return how many regions of an image of this size have features."""
    return len(REGIONS) * num_scales(image_size)


def at_all_scales(images: torch.Tensor) -> list[torch.Tensor]:
    """Return images (N, 3, H, W) at each of their `num_scales`; the second is mirrored."""
    if num_scales(images.shape[2]) == 1:
        return [images]
    return [images, avg_pool2d(images, 2).flip(3)]


def program_settings(arch: str, image_size: int) -> dict[str, Any]:
    """Return what features depend on beside weights and flags, as plain values.

    A checkpoint has these settings, and is refused by a program with others.
    """
    return {
        **preprocessing(image_size),
        "regions": [list(region) for region in REGIONS],
        "num_scales": num_scales(image_size),
        "feature_layers": list(ARCHITECTURES[arch].feature_layers),
    }


class Backbone(nn.Module):
    """The convolutions of a VGG, frozen; the outputs of two layers are pooled over REGIONS.

    Its weights have torchvision's names (`features.0.weight`, ...). They have no values, on the
    meta device, until `load_weights` or `load_checkpoint` loads them.
    """

    features: Any  # nn.Sequential: to mypy, the attributes of its layers are tensors

    def __init__(self, arch: str):
        super().__init__()
        self.feature_layers = ARCHITECTURES[arch].feature_layers
        with torch.device("meta"):
            self.features = ARCHITECTURES[arch].build()[: self.feature_layers[1] + 1]
        channels = [self.features[relu - 1].out_channels for relu in self.feature_layers]
        self.num_features = 2 * sum(channels)  # an average and a maximum of each
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) -> features (N, num_regions, num_features) float32, all above 0.

        The convolutions run in the precision of the weights.
        """
        return torch.cat([self.features_and_maps(x)[0] for x in at_all_scales(images)], 1)

    def features_and_maps(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features of one scale and the last block's input (N, 512, H / 16, W / 16)."""
        x = images.to(self.features[0].weight.dtype, memory_format=torch.channels_last)
        x = self.features[: self.feature_layers[0] + 1](x)  # (N, 512, H / 8, W / 8)
        first = pool_regions(x, REGIONS)
        maps = self.features[self.feature_layers[0] + 1](x)  # (N, 512, H / 16, W / 16)
        second = pool_regions(self.last_block(maps), REGIONS)
        return torch.cat([first, second], 2), maps

    @property
    def last_block(self) -> nn.Sequential:
        """The convolutions after the fourth max-pooling."""
        return self.features[self.feature_layers[0] + 2 :]

    def digest(self) -> str:
        """Return the sha256 of all weights, in hexadecimal."""
        return digest_of_tensors(self.state_dict())


def has_int8(backbone: Backbone, means: Sequence[float], stds: Sequence[float]) -> bool:
    """Return whether the ranges are known that a backbone's values have, of normalized images.

    They are known for VGG16 with ImageNet's weights, means and standard deviations.
    """
    return backbone.digest() == VGG16_DIGEST and list(means) == MEANS and list(stds) == STDS


def select_precision(device: torch.device, name: str, has_int8: bool) -> torch.dtype:
    """Return the dtype of the convolutions that --precision means; see `devices.select_precision`.

    Args:
        has_int8: see the function of that name.

    Raises:
        UserError: int8 is asked for, and the weights or means are others.
    """
    if name == "int8" and not has_int8:
        raise UserError(
            "--precision int8 goes with --arch vgg16, --weights imagenet, and without --means and "
            "--stds"
        )
    return devices.select_precision(device, name, has_int8 and int8.is_installed())


def convert(backbone: Backbone, device: torch.device, precision: torch.dtype) -> None:
    """Move a backbone to a device, and let it compute in a precision.

    In torch.int8, which needs what `has_int8` asks for, features agree up to 4 %. Its preparation
    takes a second, so that it does not pay for one image.

    Raises:
        UserError: onnx or onnxruntime is missing.
    """
    if precision == torch.int8:
        first, second = backbone.feature_layers
        blocks = [(0, first + 1), (first + 2, second + 1)]
        int8.replace_layers(backbone.features, blocks, VGG16_RANGES)
        return
    backbone.to(device, precision)
    backbone.to(memory_format=torch.channels_last)


def fast_copy(backbone: Backbone, device: torch.device, precision: torch.dtype) -> Backbone:
    """Return a copy of a backbone to run on many views; see `convert`."""
    backbone = copy.deepcopy(backbone)
    convert(backbone, device, precision)
    return backbone


class Head(nn.Module):
    """Two classifiers of standardized features, whose logits are added up.

    One has a hidden layer, and is more accurate with many images; the other one is linear, and is
    more accurate with few. Their sum is as accurate as the better one (docs/results.md).

        features -> standardize -> hidden layer, ReLU, dropout -> logits
                                -> linear                      -> logits

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
        self.hidden_units = hidden_units
        self.num_outputs = num_outputs
        self.num_classes = num_classes
        self.dropout = dropout
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))
        self.layers = nn.Sequential(
            nn.Linear(num_features, hidden_units),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_units, num_outputs),
        )
        self.linear = nn.Linear(num_features, num_outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.linear.requires_grad_(False)  # it is fitted in closed form

    def standardize_by(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Set the mean and standard deviation (num_features) of the features."""
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=1e-3))  # a feature that never varies stays finite

    def standardize(self, features: torch.Tensor) -> torch.Tensor:
        """Features (..., num_features) -> standardized features (..., num_features)."""
        return (features - self.mean) / self.std

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features of regions (..., num_features) -> logits (..., num_classes) of the hidden layer.

        Those of the linear classifier are not in it: each is fitted by itself.
        """
        hidden = self.hidden(self.standardize(features))
        return self.layers[-1](hidden)[..., : self.num_classes]

    def hidden(self, standardized: torch.Tensor) -> torch.Tensor:
        """Standardized features (..., num_features) -> hidden layer (..., hidden_units)."""
        linear, relu, dropout, _ = self.layers  # a slice would be a new module in each step
        return dropout(relu(linear(standardized)))

    def image_outputs(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an image's hidden layer and its logits, means over its regions.

        Args:
            features: (N, num_regions, num_features).

        Returns:
            (N, hidden_units) and (N, num_classes).
        """
        standardized = self.standardize(features)
        hidden = self.hidden(standardized).mean(1)
        logits = self.layers[-1](hidden) + self.linear(standardized.mean(1))
        return hidden, logits[:, : self.num_classes]


class Classifier(Predictor, nn.Module):
    """Backbone and head, with everything else that a prediction needs.

    Attributes, beside those of `Predictor`:
        arch: a key of ARCHITECTURES.
        temperature: what logits are divided by before they become probabilities.
        detector: computes the novelty; None: there is none.
        novelty_limit: the novelty below which an image is reported.
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
        self.backbone = backbone
        self.head = head
        self.detector = detector
        self.arch = arch
        self.class_to_idx = class_to_idx
        self.categories = sorted(class_to_idx, key=class_to_idx.__getitem__)
        self.names = names or {}
        self.means = means
        self.stds = stds
        self.image_size = image_size
        self.temperature = temperature
        self.has_novelty = detector is not None
        self.novelty_limit = NOVELTY_LIMIT
        self.history = history or {}
        self.trained_on = str(self.history.get("arguments", {}).get("data_dir", ""))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalized images (N, 3, size, size) -> probabilities (N, num_classes), novelty (N,).

        Without a detector, novelty is NaN.
        """
        hidden, logits = self.head.image_outputs(self.backbone(images))
        if self.detector is None:
            novelty = torch.full_like(logits[:, 0], torch.nan)
        else:
            novelty = self.detector(hidden, logits)
        return (logits / self.temperature).softmax(1), novelty

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def prepare(self, device: str, precision: str, is_one: bool = False) -> None:
        """Move to a device, "cpu" or "gpu", and the backbone to a precision.

        Args:
            is_one: only one image will be predicted: "auto" is then not int8.

        Raises:
            UserError: they are not available.
        """
        selected = devices.select_device(device)
        self.device_type = selected.type
        can_choose = selected.type == "cpu" and (precision == "int8" or not is_one)
        is_possible = can_choose and has_int8(self.backbone, self.means, self.stds)
        dtype = select_precision(selected, precision, is_possible)
        self.to(selected)
        convert(self.backbone, selected, dtype)

    @torch.inference_mode()
    def compute(
        self, views: np.ndarray, means: Sequence[float], stds: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities (N, num_classes) and novelty (N,) of views (N, 3, H, W) uint8."""
        images = normalize(torch.as_tensor(views).to(self.device), means, stds)
        probs, novelty = self(images)
        return probs.cpu().numpy(), novelty.cpu().numpy()

    def metadata(self) -> dict[str, Any]:
        """Return what a file without torch's weights needs to say, as plain values."""
        return {
            "categories": self.categories,
            "names": self.all_names(),
            **preprocessing(self.image_size),
            "novelty_limit": self.novelty_limit,
            "arch": self.arch,
            "format_version": FORMAT_VERSION,  # of the checkpoint
            "means": self.means,  # range 0-1, of red, green and blue
            "stds": self.stds,
            "temperature": self.temperature,
        }


def heat_map(model: Classifier, view: np.ndarray, category: str) -> torch.Tensor:
    """Return the locations of an image that raise a category's logit, by HiResCAM.

    The maps are those of the backbone's last convolution. Grad-CAM (Selvaraju et al. 2017) weights
    a map by the mean of its gradients, which is less faithful where a maximum is taken
    (docs/results.md).

    Args:
        view: (3, H, W) uint8.
        category: a folder's name, of the most likely category or any other.

    Returns:
        (H / 16, W / 16) float32 on the CPU, 0-1; the maximum is 1 unless all are 0.
    """
    index = model.class_to_idx[category]
    features = []  # of each scale: (1, len(REGIONS), num_features)
    maps = []  # (1, 512, H / 16, W / 16)
    with torch.no_grad():
        views = torch.as_tensor(view[None]).to(model.device)
        for images in at_all_scales(normalize(views, model.means, model.stds)):
            pooled, inputs = model.backbone.features_and_maps(images)
            features.append(pooled)
            maps.append(model.backbone.last_block(inputs).float())

    def logit_of(maps: Sequence[torch.Tensor]) -> torch.Tensor:
        replaced = []
        for pooled, scale in zip(features, maps, strict=True):
            second = pool_regions(scale, REGIONS)
            replaced.append(replace_second_stage(pooled.clone(), second))
        _, logits = model.head.image_outputs(torch.cat(replaced, 1))
        return logits[0, index]

    return hires_cam(maps, logit_of)  # mirrors the maps of the second scale back


# ---------------------------------------------------------------- weights and checkpoints


def load_weights(backbone: Backbone, arch: str, weights: str, seed: int = 0) -> None:
    """Load or make a new backbone's weights.

    Args:
        weights: "imagenet" (found or downloaded), "none" (random, from `seed`), or the path of a
            `state_dict` with torchvision's keys; those of VGG's own classifier are ignored.

    Raises:
        UserError: the file is missing or does not fit; or no source of ImageNet weights works.
    """
    if weights == "none":
        randomize_weights(backbone, seed)
    elif weights == "imagenet":
        load_imagenet_weights(backbone, arch, ARCHITECTURES[arch].url)
    else:
        load_weights_file(backbone, weights)


def save_checkpoint(path: str | os.PathLike, model: Classifier) -> None:
    """Write everything that a prediction needs, as plain types and tensors, atomically."""
    content = {
        "format_version": FORMAT_VERSION,
        "arch": model.arch,
        **program_settings(model.arch, model.image_size),
        "hidden_units": model.head.hidden_units,
        "num_outputs": model.head.num_outputs,
        "dropout": model.head.dropout,
        "class_to_idx": dict(model.class_to_idx),
        "names": model.names,
        "means": list(model.means),
        "stds": list(model.stds),
        "temperature": model.temperature,
        **model.history,
        "state_dict": {name: tensor.cpu() for name, tensor in model.state_dict().items()},
    }
    save_torch(content, path)


def load_checkpoint(path: str | os.PathLike) -> Classifier:
    """Return the classifier that `save_checkpoint` wrote, on the CPU, in evaluation mode.

    Its weights are memory-mapped: the file has to stay as long as they are in use.

    Raises:
        UserError: the file is missing, no checkpoint, or of a program with another format or other
            settings.
    """
    content = load_torch(path, "checkpoint")
    check_version(path, content, FORMAT_VERSION)
    try:
        check_values(content, ARCHITECTURES, IMAGE_SIZES)
        expected = program_settings(content["arch"], content["image_size"])
        differences = [name for name in expected if content[name] != expected[name]]
        if not differences:
            return _build_classifier(content)
    except Exception as error:
        reason = f"{type(error).__name__}: {shorten([str(error)])}"
        raise UserError(f"{path}: damaged checkpoint: {reason}") from error
    raise UserError(
        f"{path}: trained by a program with other {' and '.join(differences)}; train again"
    )


def _build_classifier(content: dict[str, Any]) -> Classifier:
    """Build the classifier of a checkpoint's content."""
    class_to_idx = content["class_to_idx"]
    backbone = Backbone(content["arch"])
    detector = None
    with torch.device("meta"):
        head = Head(
            backbone.num_features,
            hidden_units=content["hidden_units"],
            num_outputs=content["num_outputs"],
            num_classes=len(class_to_idx),
            dropout=content["dropout"],
        )
        if "detector.means" in content["state_dict"]:
            detector = NoveltyDetector(content["hidden_units"], len(class_to_idx))
    model = Classifier(
        backbone,
        head,
        arch=content["arch"],
        class_to_idx=class_to_idx,
        means=content["means"],
        stds=content["stds"],
        image_size=content["image_size"],
        temperature=content["temperature"],
        detector=detector,
        names=content["names"],
        history={name: content[name] for name in ("epoch", "metrics", "arguments")},
    )
    load_tensors(model, content["state_dict"])
    if detector is not None:
        detector.check()
    return model.requires_grad_(False).eval()

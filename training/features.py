"""Each view of each image goes through the backbone once; its features are cached on disk.

A frozen backbone gives the same features in every epoch and in every run, so they are computed
once, appended to a file, and read from there: at once if they fit into MEMORY_LIMIT, else batch by
batch. Under torchrun, the processes share the images.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

LAYOUT = 9  # of the stored records; in the cache's key, as is all that features depend on
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
        maps: also store the input of the backbone's last block: 200 KB more a view.
    """

    means: Sequence[float] = tuple(utils.MEANS)
    stds: Sequence[float] = tuple(utils.STDS)
    device: torch.device = torch.device("cpu")
    precision: torch.dtype = torch.float32
    workers: int = 0
    image_size: int = utils.CROP
    maps: bool = False


class View(NamedTuple):
    """A view of an image."""

    path: str  # relative to the data folder
    number: int  # 0 for the plain view, others are random
    digest: str  # of the file's content


def list_views(data: utils.DataFolder, count: int) -> list[View]:
    """List the views of a training: `count` of each image of train, then the others' plain view."""
    others = [path for split in ("valid", "test") for path in data.paths[split]]
    train = views_of(data.paths["train"], range(count), data.digests)
    return train + views_of(others, [0], data.digests)


def views_of(
    paths: Iterable[str], numbers: Sequence[int], digests: Mapping[str, str]
) -> list[View]:
    """List the views with these numbers of each image; see `list_views`."""
    return [View(path, number, digests[path]) for path in paths for number in numbers]


@dataclass
class Features:
    """Features of a list of views, stored on disk: `features[rows]` reads a batch of them.

    Attributes:
        file, row: (N,) where those of each view are; file MISSING: its image could not be decoded.
        digest: identifies the views, their images and all settings; see `identity`.
        failures: why an image could not be decoded, by path.
    """

    store: RecordStore
    file: np.ndarray
    row: np.ndarray
    digest: str = ""
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
        size = len(self) * self.store.dtype["features"].itemsize
        if self._loaded is None and size <= MEMORY_LIMIT:
            self._loaded = torch.from_numpy(self.store.read_all("features", self.file, self.row))
        if self._loaded is not None:
            return self._loaded[index].float()
        return self._read("features", *(index if isinstance(index, tuple) else (index,)))

    def averages(self, rows: torch.Tensor) -> torch.Tensor:
        """Read the averages over the whole image: (B,) int64 -> (B, num_features / 2) float32.

        Of two scales, they are of the smaller one, which is nearer to 224 pixels.
        """
        # Two stages of equally many channels, of each the averages and then the maxima.
        region = self.store.dtype["features"].shape[0] - len(REGIONS)
        whole = self[rows, torch.full_like(rows, region)]
        return whole.unflatten(1, (2, 2, -1))[:, :, 0].flatten(1)

    def maps(self, rows: torch.Tensor) -> torch.Tensor:
        """Read the input of the backbone's last block: (B,) int64 -> (B, 512, 14, 14) float32."""
        return self._read("maps", rows)

    def identity(self) -> str:
        """Return the digest of the views, their images, all settings and what could be decoded."""
        flags = np.packbits(self.file != MISSING).tobytes()
        return hashlib.sha256(self.digest.encode() + flags).hexdigest()

    def is_decoded(self) -> torch.Tensor:
        """Return whether the image of each view could be decoded, (N,) bool."""
        return torch.from_numpy(self.file != MISSING)

    def _read(self, name: str, rows: torch.Tensor, *regions: torch.Tensor) -> torch.Tensor:
        index, items = rows.numpy(), [numbers.numpy() for numbers in regions]
        values = self.store.read(name, self.file[index], self.row[index], *items)
        return torch.from_numpy(values.astype(np.float32))


# ---------------------------------------------------------------- extraction


class Batch(NamedTuple):
    """Some of all views: decoded, or their features."""

    indices: list[int]  # into the list of all views
    content: tuple[np.ndarray, ...]  # (N, 3, size, size) uint8; or features and maps, float16
    failures: dict[int, str]  # by index: why a view's image could not be decoded

    def size(self) -> int:
        return len(self.indices) + len(self.failures)


Work = list[tuple[str, str, list[tuple[int, int]]]]  # path, digest, (index, number) of each view


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
    features, keys = _find_cached(backbone, views, settings, Path(cache))
    missing = np.flatnonzero(features.file == MISSING).tolist()
    first = {keys[index]: index for index in reversed(missing)}  # equal images share features
    work: Work = []
    unique = [index for index in missing if first[keys[index]] == index]
    for (path, digest), group in itertools.groupby(unique, key=lambda i: views[i][::2]):
        work.append((path, digest, [(index, views[index].number) for index in group]))
    if rank_and_size()[1] > 1:
        broadcast((work, settings.precision))
        broadcast_tensors(backbone.state_dict().values() if work else ())
    if not work:
        return features
    batches = _compute(backbone, root, work, settings)
    done = len(views) - len(unique)
    with failed_worker_is_an_error():
        for batch in progress(batches, len(views), "features", size=Batch.size, done=done):
            features.failures.update({views[i].path: why for i, why in batch.failures.items()})
            batch_keys = [keys[index] for index in batch.indices]
            file, rows = features.store.append(batch_keys, *batch.content)
            features.file[batch.indices], features.row[batch.indices] = file, rows
            if strict and features.failures:
                raise UserError(f"{next(iter(features.failures.values()))} (--strict)")
    features.store.close()
    for index in missing:
        source = first[keys[index]]
        features.file[index], features.row[index] = features.file[source], features.row[source]
        if features.file[source] == MISSING:
            reason = features.failures[views[source].path]
            reason = reason.replace(views[source].path, views[index].path)
            features.failures[views[index].path] = reason
    return features


def assist_extraction(backbone: Backbone, root: str, settings: Settings) -> None:
    """Compute this process's share of the features and send them to the first process.

    See `extract`. The views, the precision and the backbone's weights come from the first process.
    """
    work, precision = broadcast(None)
    if not work:
        return
    backbone.to_empty(device="cpu")
    broadcast_tensors(backbone.state_dict().values())
    with failed_worker_is_an_error():
        for _ in _compute(backbone, root, work, replace(settings, precision=precision)):
            pass  # the first process gets them


def _find_cached(
    backbone: Backbone, views: Sequence[View], settings: Settings, cache: Path
) -> tuple[Features, list[bytes]]:
    """Open the store of these settings and find the features that it has, and each view's key."""
    means, stds, maps = list(settings.means), list(settings.stds), settings.maps
    size = settings.image_size
    description = (
        f"{LAYOUT} {REGIONS} {size} {utils.short_side(size)} {utils.CROP_SCALE} {means} {stds} "
        f"{settings.precision} {backbone.feature_layers} {settings.device.type} "
        f"{backbone.digest()} {maps}"
    )
    fields: dict[str, tuple[int, ...]] = {"features": (num_regions(size), backbone.num_features)}
    if maps:
        fields["maps"] = backbone.maps_shape(size)
    folder = cache / hashlib.sha256(description.encode()).hexdigest()[:16]
    store = RecordStore(folder, fields, hint="; name another folder with --cache_dir")
    identities = (f"{view.number} {view.digest}".encode() for view in views)
    keys = [hashlib.sha256(identity).digest()[:KEY_BYTES] for identity in identities]
    digest = hashlib.sha256(b"".join([description.encode(), *keys])).hexdigest()
    return Features(store, *store.find(keys), digest), keys


def _compute(backbone: Backbone, root: str, work: Work, settings: Settings) -> Iterator[Batch]:
    """Decode and compute; the first of torchrun's processes yields the batches of all of them."""
    rank, size = rank_and_size()
    limit = default_batch_size(settings.device.type, settings.image_size)
    images = max(1, limit // len(work[0][2]))  # in a batch
    dataset = _Images(root, work[rank::size], settings.image_size)
    decoded = load_ahead(dataset, images, settings.workers, _collate)
    batches = _run_backbone(backbone, decoded, settings)
    if size == 1:
        return batches
    share = math.ceil(len(work) / size)  # the largest of all processes
    return map(_collate, gather(batches, math.ceil(share / images)))


class _Images(Dataset):
    """Decodes images: each item is a Batch with the views of one."""

    def __init__(self, root: str, work: Work, size: int):
        self.root, self.work, self.size = root, work, size

    def __len__(self) -> int:
        return len(self.work)

    def __getitem__(self, number: int) -> Batch:
        path, digest, views = self.work[number]
        indices = [index for index, _ in views]
        try:
            numbers = [number for _, number in views]
            content = utils.load_views(self.root, path, digest, numbers, self.size)
            return Batch(indices, (content,), {})
        except UserError as error:
            empty = np.empty((0, 3, self.size, self.size), np.uint8)
            return Batch([], (empty,), dict.fromkeys(indices, str(error)))


def _collate(batches: list[Batch]) -> Batch:
    """Join several batches into one."""
    failures = {index: why for batch in batches for index, why in batch.failures.items()}
    indices = [index for batch in batches for index in batch.indices]
    content = zip(*(batch.content for batch in batches), strict=True)
    return Batch(indices, tuple(np.concatenate(arrays) for arrays in content), failures)


@torch.inference_mode()
def _run_backbone(
    backbone: Backbone, decoded: Iterable[Batch], settings: Settings
) -> Iterator[Batch]:
    """Turn batches of views into batches of features, and of maps if asked for.

    Raises:
        UserError: the GPU's memory is not enough for a single view.
    """
    device = settings.device
    backbone = fast_copy(backbone, device, settings.precision)
    limit = default_batch_size(device.type, settings.image_size)  # views that fit into memory
    for batch in decoded:
        views = torch.from_numpy(batch.content[0])
        done: list[list[torch.Tensor]] = []
        while len(views) or not done:
            try:
                inputs = views[:limit].to(device, non_blocking=True)
                inputs = utils.normalize(inputs, settings.means, settings.stds)
                many = backbone.features_and_maps(inputs) if settings.maps else [backbone(inputs)]
                done.append([values.half().cpu() for values in many])
            except torch.OutOfMemoryError as error:
                if limit == 1:
                    raise UserError("not enough GPU memory; use --device cpu") from error
                limit = max(1, min(limit, len(views)) // 2)
                warn(f"not enough GPU memory: continuing with {limit} views at a time")
                continue
            views = views[limit:]
        content = tuple(torch.cat(tensors).numpy() for tensors in zip(*done, strict=True))
        yield batch._replace(content=content)


def seconds_per_view(arch: str, root: str, paths: Sequence[str], settings: Settings) -> float:
    """Measure how long decoding a view and computing its features take: the median of TRIALS.

    Args:
        paths: of images, relative to `root`, that can be decoded.
    """
    backbone, size, times = Backbone(arch), settings.image_size, []
    load_weights(backbone, arch, "none")
    backbone = fast_copy(backbone, settings.device, settings.precision)
    with torch.inference_mode():
        for path in [paths[0], *paths[:: max(1, len(paths) // TRIALS)]]:
            start = time.perf_counter()
            view = torch.from_numpy(utils.load_plain_view(os.path.join(root, path), size))
            inputs = view[None].to(settings.device)
            backbone(utils.normalize(inputs, settings.means, settings.stds)).cpu()
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first one prepares kernels

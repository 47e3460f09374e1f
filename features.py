"""Each view of each picture goes through the backbone once; its features are kept on disk.

A frozen backbone gives the same features in every epoch and in every run, so they are computed
once, appended to a file as they come, and read from there. The memory that this takes does not
depend on the number of pictures. Under torchrun the processes share the pictures out.

Knows nothing of heads, of epochs and of command lines.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import math
import os
import signal
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset

from model import PARTS, Backbone
from utils import CROP, CROP_SCALE, RESIZE, UserError, load_views, normalize, progress, warn

LAYOUT = 5  # of the files below; part of the cache's key, as is all that features depend on
KEY_BYTES = 16
BATCH_SIZES = {"cpu": 4, "cuda": 128, "mps": 32}  # views; benchmarks/choices.py compares them

View = tuple[str, int]  # a picture's path in the data folder; 0 for plain, more for random


@dataclass
class Features:
    """Features of a list of views, kept in files. `features[rows]` reads some of them.

    `file[i]` and `row[i]` say where those of view i are; file -1: its picture could not be decoded,
    and `failures` tells why, by path.
    """

    paths: list[Path]
    dtype: np.dtype  # of a record in a file
    file: np.ndarray  # (N,) int32
    row: np.ndarray  # (N,) int64
    digest: str = ""  # tells them from those of other, or changed, pictures
    failures: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, index: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """`kept[rows]`: (B,) int64 -> (B, len(PARTS), num_features) float32.

        `kept[rows, parts]`: (B,) and (B,) int64 -> (B, num_features), one part of each.

        Raises:
            UserError: a file has been deleted, or cut off.
        """
        if isinstance(index, tuple):
            return self._read("features", *index)
        return self._read("features", index)

    def maps(self, rows: torch.Tensor) -> torch.Tensor:
        """(B,) int64 -> (B, 512, 14, 14) float32: what the last block works on; see `extract`."""
        return self._read("maps", rows)

    def _read(
        self, name: str, rows: torch.Tensor, parts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The field `name` of some records in float32; of features, one part of each if asked.

        They are read, not mapped: how much of a mapped file counts as this process's memory is
        for the system to say, and may come to the whole set.
        """
        field_type, offset = self.dtype.fields[name]
        kind, shape = field_type.subdtype
        start = self.row[rows.numpy()] * self.dtype.itemsize + offset
        if parts is not None:
            shape = shape[1:]
            start += parts.numpy() * (shape[0] * kind.itemsize)
        values = np.empty((len(rows), *shape), kind)
        target = values.view(np.uint8).reshape(len(rows), -1)  # their bytes
        files = self.file[rows.numpy()]
        for number in np.unique(files):
            path = self.paths[number]
            try:
                with open(path, "rb", buffering=0) as file:
                    for place in np.flatnonzero(files == number):
                        file.seek(start[place])
                        if file.readinto(target[place]) < target.shape[1]:
                            raise UserError(f"{path}: kept features have been cut off")
            except OSError as error:
                raise UserError(f"{path}: kept features are gone: {error.strerror}") from error
        return torch.from_numpy(values.astype(np.float32))


class FeatureStore:
    """A folder of append-only files of records: key, features, perhaps maps, checksum.

    Each process that computes features writes a file of its own, so that none needs a lock. What
    a cut-off or damaged file holds beyond its whole and unchanged records is as if not there.
    """

    def __init__(
        self, folder: str | os.PathLike, num_features: int, maps: tuple[int, ...] | None = None
    ):
        self.folder = Path(folder)
        values = [("features", "<f2", (len(PARTS), num_features))]
        if maps:
            values.append(("maps", "<f2", maps))
        self.dtype = np.dtype([("key", f"V{KEY_BYTES}"), *values, ("checksum", "<u4")])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.paths = sorted(self.folder.glob("*.features"))
        except OSError as error:
            raise self._unusable(error) from error
        self._file = None
        self._written = 0

    def find(self, keys: Sequence[bytes]) -> Features:
        """Where the features of these keys are kept; file -1 for those that are not."""
        wanted = {key: number for number, key in enumerate(keys)}
        file, row = np.full(len(keys), -1, np.int32), np.zeros(len(keys), np.int64)
        try:
            for number, path in enumerate(self.paths):
                for place, record in enumerate(_records(path, self.dtype.itemsize)):
                    at = wanted.get(record[:KEY_BYTES])
                    if at is not None and _checksum(record) == record[-4:]:
                        file[at], row[at] = number, place
        except OSError as error:
            raise self._unusable(error) from error
        first = [wanted[key] for key in keys]  # the same picture may be asked for twice
        return Features(self.paths, self.dtype, file[first], row[first])

    def append(self, keys: Sequence[bytes], *values: np.ndarray) -> tuple[int, range]:
        """Write features (B, len(PARTS), num_features), and maps (B, ...) where they are kept.

        Returns:
            The file's number, and their rows in it.
        """
        records = np.zeros(len(keys), self.dtype)
        for name, value in zip(self.dtype.names[1:-1], values, strict=True):
            records[name] = value
        for record, key in zip(records, keys, strict=True):
            record["key"] = np.void(key)
            record["checksum"] = np.frombuffer(_checksum(record.tobytes()), "<u4")[0]
        try:
            if self._file is None:
                path = self.folder / f"{uuid.uuid4().hex}.features"
                self._file = open(path, "xb", buffering=0)
                self.paths.append(path)
            data = memoryview(records.tobytes())
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise self._unusable(error) from error
        self._written += len(keys)
        return len(self.paths) - 1, range(self._written - len(keys), self._written)

    def close(self) -> None:
        """Close the file that was written to, if any."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _unusable(self, error: OSError) -> UserError:
        return UserError(
            f"{self.folder}: cannot keep features there: {error.strerror}; "
            "name another folder with --cache_dir"
        )


def _records(path: Path, size: int) -> Iterator[bytes]:
    """The records of a file; one at its end that was cut off is none."""
    with open(path, "rb") as file:
        while len(record := file.read(size)) == size:
            yield record


def _checksum(record: bytes) -> bytes:
    return zlib.crc32(memoryview(record)[:-4]).to_bytes(4, "little")


def default_cache_folder() -> Path:
    """`image-classifier` in the user's cache folder: XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "image-classifier")


class Batch(NamedTuple):
    """Some views, or what became of them."""

    indices: list[int]  # their numbers in the list of all views
    content: tuple[torch.Tensor, ...]  # (N, 3, 224, 224) uint8; or features and maps, float16
    failures: dict[int, str]  # by number: why a view's picture could not be decoded


def extract(
    backbone: Backbone,
    root: str,
    views: Sequence[View],
    *,
    means: Sequence[float],
    stds: Sequence[float],
    cache: str | os.PathLike,
    device: torch.device,
    precision: torch.dtype,
    workers: int,
    maps: bool = False,
    strict: bool = False,
) -> Features | None:
    """The features of every view, computed where the folder `cache` does not have them yet.

    With `maps`, what the backbone's last block works on is kept too: 200 KB more a view.

    Views of one picture should follow one another: it is then decoded once for all of them.

    Under torchrun, every process has to call this. The first one's backbone, views and precision
    count; the others compute their share and hand it to the first, which alone looks into the
    cache, writes it and gets the features. The others get None.

    Raises:
        UserError: the cache cannot be written, or another process has ended; or there is a
            failure and `strict` is set.
    """
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    found, work = None, []
    if rank == 0:
        setting = (
            f"{LAYOUT} {PARTS} {RESIZE} {CROP} {CROP_SCALE} {list(means)} {list(stds)} {precision} "
            f"{backbone.stages} {device.type} {os.path.abspath(root)} {backbone.digest()} {maps}"
        )
        folder = Path(cache, hashlib.sha256(setting.encode()).hexdigest()[:16])
        shape = backbone.maps_shape(CROP) if maps else None
        store = FeatureStore(folder, backbone.num_features, shape)
        keys = [_key(root, *view) for view in views]
        found = store.find(keys)
        found.digest = hashlib.sha256(b"".join([setting.encode(), *keys])).hexdigest()
        missing = np.flatnonzero(found.file < 0).tolist()
        for path, group in itertools.groupby(missing, key=lambda index: views[index][0]):
            work.append((path, [(index, views[index][1]) for index in group]))
    if size > 1:
        work, precision = _from_first_process(backbone, work, precision)
    if not work:
        return found

    pictures = max(1, BATCH_SIZES[device.type] // len(work[0][1]))  # in a batch
    loader = DataLoader(
        _Pictures(root, work[rank::size]),
        batch_size=pictures,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_leave_signals,
        generator=torch.Generator(),  # so that torch's own is left alone
        pin_memory=device.type == "cuda",
    )
    backbone = fast_copy(backbone, device, precision)
    batches = _compute(backbone, loader, means, stds, device, maps)
    if size > 1:
        share = math.ceil(len(work) / size)  # the largest of all processes
        batches = _gather(batches, math.ceil(share / pictures))
    if rank > 0:
        for _ in batches:
            pass
        return None
    done = len(views) - len(missing)
    for batch in progress(batches, len(views), "features", done):
        found.failures.update({views[index][0]: why for index, why in batch.failures.items()})
        some = [keys[index] for index in batch.indices]
        file, rows = store.append(some, *(values.numpy() for values in batch.content))
        found.file[batch.indices], found.row[batch.indices] = file, rows
        if strict and found.failures:
            raise UserError(f"{next(iter(found.failures.values()))} (--strict)")
    store.close()
    return found


def _key(root: str, path: str, view: int) -> bytes:
    """What tells a picture's view from any other, and from that of the same file once changed."""
    full = os.path.abspath(os.path.join(root, path))
    try:
        status = os.stat(full)
        version = f"{status.st_size} {status.st_mtime_ns}"
    except OSError:  # decoding it will say more
        version = "missing"
    return hashlib.sha256(os.fsencode(f"{view} {version} {full}")).digest()[:KEY_BYTES]


class _Pictures(Dataset):
    """Decodes pictures: each item is a Batch with the views of one."""

    def __init__(self, root: str, work: list[tuple[str, list[tuple[int, int]]]]):
        self.root, self.work = root, work

    def __len__(self) -> int:
        return len(self.work)

    def __getitem__(self, number: int) -> Batch:
        path, views = self.work[number]
        indices = [index for index, _ in views]
        try:
            content = load_views(self.root, path, [view for _, view in views])
            return Batch(indices, (content,), {})
        except UserError as error:
            nothing = torch.empty(0, 3, CROP, CROP, dtype=torch.uint8)
            return Batch([], (nothing,), dict.fromkeys(indices, str(error)))


def _leave_signals(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM, which come to all processes, to the one that started this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _collate(batches: list[Batch]) -> Batch:
    """One batch out of several."""
    failures = {index: why for batch in batches for index, why in batch.failures.items()}
    indices = [index for batch in batches for index in batch.indices]
    content = zip(*(batch.content for batch in batches), strict=True)
    return Batch(indices, tuple(map(torch.cat, content)), failures)


def _compute(
    backbone: Backbone, loader: DataLoader, means, stds, device: torch.device, maps: bool
) -> Iterator[Batch]:
    """Run the backbone over batches of views; yields batches of features, with maps if asked.

    Raises:
        UserError: the GPU's memory does not suffice for a single view.
    """
    most = BATCH_SIZES[device.type]  # that fit into memory
    for batch in loader:
        views, done = batch.content[0], []
        while len(views) or not done:
            try:
                with torch.inference_mode():
                    some = normalize(views[:most].to(device, non_blocking=True), means, stds)
                    content = backbone.features_and_maps(some)[: 2 if maps else 1]
                    done.append([values.half().cpu() for values in content])
            except torch.OutOfMemoryError as error:
                if most == 1:
                    raise UserError("not enough GPU memory; use --device cpu") from error
                most = max(1, min(most, len(views)) // 2)
                warn(f"not enough GPU memory: going on with {most} views at a time")
                continue
            views = views[most:]
        yield batch._replace(content=tuple(map(torch.cat, zip(*done, strict=True))))


# ---------------------------------------------------------------- convolutions

# Of F(4 x 4, 3 x 3), "Fast Algorithms for Convolutional Neural Networks" (Lavin & Gray 2016): the
# transforms of a tile of 6 x 6 inputs, of a kernel, and back to 4 x 4 outputs.
_TILE = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
_TILE += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
_KERNEL = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]  # / 24
_OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


class WinogradConv2d(nn.Module):
    """A 3 x 3 convolution, padded by 1, that needs a quarter of the multiplications.

    Pictures are computed one by one, so that the others of a batch do not change a bit of one.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        kernel, tile, output = (torch.tensor(x).float() for x in (_KERNEL, _TILE, _OUTPUT))
        kernels = torch.einsum("ia,ocab,jb->ijco", kernel / 24, conv.weight, kernel / 24)
        self.kernels = kernels.flatten(0, 1).contiguous()  # (36, in, out)
        self.to_tile, self.to_output = torch.kron(tile, tile), torch.kron(output, output)
        self.bias = conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in, H, W) -> (N, out, H, W), both float32 and channels_last."""
        n, channels, height, width = x.shape
        rows, columns = math.ceil(height / 4), math.ceil(width / 4)
        edges = (0, 0, 1, 4 * columns - width + 1, 1, 4 * rows - height + 1)
        x = pad(x.permute(0, 2, 3, 1), edges)
        y = x.new_empty(n, rows, 4, columns, 4, len(self.bias))
        for picture, result in zip(x, y, strict=True):
            tiles = picture.unfold(0, 6, 4).unfold(1, 6, 4)  # (rows, columns, in, 6, 6)
            tiles = self.to_tile @ tiles.permute(3, 4, 0, 1, 2).reshape(36, -1)
            products = torch.bmm(tiles.view(36, -1, channels), self.kernels)
            outputs = (self.to_output @ products.flatten(1)).view(4, 4, rows, columns, -1)
            result.copy_(outputs.permute(2, 0, 3, 1, 4))
        y = y.view(n, 4 * rows, 4 * columns, -1)[:, :height, :width]
        return y.add_(self.bias).permute(0, 3, 1, 2)


def fast_copy(backbone: Backbone, device: torch.device, precision: torch.dtype) -> Backbone:
    """A copy of a backbone to run on many views: its features agree up to rounding.

    A CPU that computes in float32 gets Winograd convolutions where they are faster than torch's:
    from 128 channels on (benchmarks/choices.py). They want 230 MB more memory, and time to
    prepare, so that they do not pay for one picture.
    """
    backbone = copy.deepcopy(backbone).to(device, precision, memory_format=torch.channels_last)
    if device.type == "cpu" and precision == torch.float32:
        for place, layer in enumerate(backbone.features):
            if isinstance(layer, nn.Conv2d) and layer.in_channels >= 128:
                backbone.features[place] = WinogradConv2d(layer)
    return backbone


# ---------------------------------------------------------------- several processes


@contextlib.contextmanager
def process_group() -> Iterator[int]:
    """Join torchrun's other processes, if there are any; gives this one's rank, 0 the first.

    gloo also on GPUs: what passes between processes is features, 24 KB a view, on their way to the
    first one's disk.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield 0
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _other_processes() -> Iterator[None]:
    """Turns the loss of another process into an error of one line."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            "another process of this run has ended; the features computed so far are kept: "
            "the same command goes on from there"
        ) from error


def _from_first_process(backbone: Backbone, work: list, precision: torch.dtype) -> tuple:
    """Give the first process's work, precision and, where there is work, weights to all."""
    with _other_processes():
        box = [work, precision]
        dist.broadcast_object_list(box)
        if box[0]:
            if dist.get_rank() > 0:
                backbone.to_empty(device="cpu")
            for tensor in backbone.state_dict().values():
                dist.broadcast(tensor, 0)
    return box[0], box[1]


def deal(items: Iterable, work: Callable[[Iterable], Iterable], hand: int) -> Iterator:
    """`work(items)`; under torchrun, the first process deals items out and gets all results.

    Args:
        items: of the first process; it gets the results in their order, the others get none.
        work: gives a result for each item, in their order.
        hand: how many items a process gets at a time.

    Raises:
        UserError: another process has ended.
    """
    if not dist.is_initialized():
        yield from work(items)
        return
    first, size, items = dist.get_rank() == 0, dist.get_world_size(), iter(items)
    while True:
        box = [None]
        if first:
            box = [[list(itertools.islice(items, hand)) for _ in range(size)]]
        with _other_processes():
            dist.broadcast_object_list(box)
        if not box[0][0]:
            return
        done, gathered = list(work(box[0][dist.get_rank()])), [None] * size if first else None
        with _other_processes():
            dist.gather_object(done, gathered)
        for results in gathered or ():
            yield from results


def _gather(batches: Iterator[Batch], steps: int) -> Iterator[Batch]:
    """In each step, hand every process's batch to the first one, which yields them."""
    first, size = dist.get_rank() == 0, dist.get_world_size()
    for _ in range(steps):
        batch, box = next(batches, None), [None] * size if first else None
        with _other_processes():
            dist.gather_object(batch, box)
        if first:
            yield _collate([batch for batch in box if batch is not None])

"""The outside world: the data folder, pictures, category names, the device, and what a user types.

Knows nothing of the model.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import glob
import hashlib
import json
import math
import os
import re
import shutil
import signal
import socket
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

SPLITS = ("train", "valid", "test")
RESIZE, CROP = 256, 224  # pixels; torchvision's VGG16_Weights.IMAGENET1K_V1.transforms()
MEANS = [0.485, 0.456, 0.406]  # of ImageNet's red, green and blue, range 0-1; same source
STDS = [0.229, 0.224, 0.225]
PRECISIONS = ("auto", "float32", "bfloat16", "float16")  # of a backbone; "auto" chooses
CATEGORY_NAMES = "cat_to_name.json"  # where names are looked for, if no other file is named
PATIENCE = 20  # seconds that a host may take to answer
CROP_SCALE = (0.5, 1.0)  # share of a picture's area that a random view shows
LONGEST = 64  # times its short side, that a plain view looks at


class UserError(Exception):
    """What a user can put right: shown as one line, without a traceback."""


# ---------------------------------------------------------------- the data folder


@dataclass(frozen=True)
class DataFolder:
    """The pictures of a data folder, by split.

    `class_to_idx` numbers the categories of `train` in string order ("10" comes before "2"); the
    numbers hold in every split. `paths[split]` are file paths relative to `root`, with forward
    slashes; `labels[split]` are the numbers of their categories.
    """

    root: str
    class_to_idx: dict[str, int]
    paths: dict[str, list[str]]
    labels: dict[str, list[int]]


def read_data_folder(data_dir: str | os.PathLike) -> DataFolder:
    """List the pictures of a data folder; see `list_pictures`.

    Raises:
        UserError: a folder or split is missing or empty, a category of `train` has no picture,
            or another split has a category that `train` lacks.
    """
    root, found = Path(data_dir), list_pictures(data_dir)
    class_to_idx = {category: index for index, category in enumerate(found["train"])}
    paths, labels = {}, {}
    for split, categories in found.items():
        for category, pictures in categories.items():
            if category not in class_to_idx:
                raise UserError(
                    f"{root}: train has no category {category!r}, but {split} has; "
                    "add it to train or move it away"
                )
            if split == "train" and not pictures:
                raise UserError(
                    f"{root}: no picture for train in category {category!r}; add some, or remove it"
                )
        paths[split] = [path for pictures in categories.values() for path in pictures]
        labels[split] = [class_to_idx[c] for c, pictures in categories.items() for _ in pictures]
        if not paths[split]:
            raise UserError(
                f"{root}: no pictures for {split}; add some, or make folders train, valid and test"
            )
        missing = [category for category in class_to_idx if not categories.get(category)]
        if missing:
            warn(f"{root}: {split} lacks {len(missing)} categories: {shorten(missing)}")
    return DataFolder(str(root), class_to_idx, paths, labels)


def list_pictures(data_dir: str | os.PathLike) -> dict[str, dict[str, list[str]]]:
    """The pictures' paths, relative to `data_dir`, by split and category.

    All that is not hidden and no folder counts as a picture: whether it is one shows later.
    `val` and `validation` mean valid. Where `valid` or `test` is missing, a tenth of train's
    pictures take its place, and where there are no splits at all, the sub-folders are categories,
    and all their pictures train's to begin with. Which ones are taken follows from each
    picture's content alone (see `split_of`). Nothing on disk changes.

    Raises:
        UserError: a folder is missing, cannot be read or has no folders in it.
    """
    root = Path(data_dir)
    if not os.path.isdir(root):
        raise UserError(f"--data_dir {data_dir}: no such folder")
    folders = {}
    for name in ("train", "valid", "validation", "val", "test"):
        if os.path.isdir(root / name):
            split = "valid" if name.startswith("val") else name
            if split in folders:
                raise UserError(f"{root}: has both {folders[split]} and {name}; keep one")
            folders[split] = name
    if folders and "train" not in folders:
        raise UserError(f"{root / 'train'}: no such folder, though there is {shorten(folders)}")
    found = {split: _list_categories(root, f"{name}/") for split, name in folders.items()}
    if not found:
        found = {"train": _list_categories(root, "")}
    missing = [split for split in SPLITS if split not in found]
    for split in missing:
        found[split] = {category: [] for category in found["train"]}
    if missing:
        for category, pictures in found["train"].items():
            found["train"][category] = []
            for path in pictures:
                split = split_of(root / path)
                found[split if split in missing else "train"][category].append(path)
        counts = [f"{sum(map(len, found[s].values()))} {s}" for s in SPLITS]
        warn(f"{root}: no {' or '.join(missing)} folder: split by content: {', '.join(counts)}")
    return {split: found[split] for split in SPLITS}


def list_labelled(root: str | os.PathLike, class_to_idx: dict[str, int]) -> list[tuple[str, int]]:
    """The paths of a labelled folder's pictures, each with the index of its category.

    Args:
        root: has a sub-folder a category; or it is a data folder, whose test split is meant.

    Raises:
        UserError: there is no picture, or a category that `class_to_idx` lacks.
    """
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such folder")
    if os.path.isdir(Path(root, "train")) and os.path.isdir(Path(root, "test")):
        root = Path(root, "test")
    found = _list_categories(Path(root), "")
    unknown = [category for category in found if category not in class_to_idx]
    if unknown:
        raise UserError(f"{root}: the checkpoint does not know {shorten(unknown)}")
    labelled = [
        (os.path.join(root, path), class_to_idx[category])
        for category, paths in found.items()
        for path in paths
    ]
    if not labelled:
        raise UserError(f"{root}: no pictures in its categories")
    return labelled


def find_pictures(inputs: Iterable[str]) -> Iterator[str]:
    """The paths that `--input` means, one by one; whether they are pictures shows later.

    A folder means all files in it and below, in string order, but what is hidden. Folders that are
    links are not gone into, since they may lead to where one came from. A pattern, "photos/*.jpg"
    or "**/*.png", means what matches, in string order; "-" a list on standard input, a line each.
    """
    for word in inputs:
        if word == "-":
            if hasattr(sys.stdin, "reconfigure"):
                sys.stdin.reconfigure(errors="surrogateescape")
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        elif os.path.isdir(word):
            yield from _below(word)
        elif is_pattern(word):
            found = sorted(glob.glob(word, recursive=True))
            for path in found or [word]:
                yield from _below(path) if os.path.isdir(path) else [path]
        else:
            yield word


def is_pattern(word: str) -> bool:
    """Whether it is a pattern, and no file's name."""
    return glob.has_magic(word) and not os.path.lexists(word)


def _below(folder: str) -> Iterator[str]:
    """The files in a folder and below; one that cannot be looked into stands for itself."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(
                (entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink())
                for entry in found
            )
    except OSError:
        yield folder
        return
    for name, is_folder, is_link in entries:
        path = os.path.join(folder, name)
        if name[0] != "." and not (is_link and os.path.isdir(path)):
            yield from _below(path) if is_folder else [path]


def _list_categories(root: Path, prefix: str) -> dict[str, list[str]]:
    """The paths of the files in each sub-folder of `root/prefix`, both in string order."""
    categories = {}
    try:
        with os.scandir(root / prefix) as entries:
            folders = [e.name for e in entries if _is_folder(e) and e.name[0] != "."]
        for folder in sorted(folders):
            with os.scandir(root / prefix / folder) as files:
                names = sorted(f.name for f in files if f.name[0] != "." and not _is_folder(f))
            categories[folder] = [f"{prefix}{folder}/{name}" for name in names]
    except OSError as error:
        raise UserError(f"{error.filename or root / prefix}: {error.strerror}") from error
    if not categories:
        raise UserError(f"{root / prefix}: no category folders in it")
    return categories


def _is_folder(entry: os.DirEntry) -> bool:
    """Without an error where a link leads to itself, and without a stat where there is no link."""
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def split_of(path: str | os.PathLike) -> str:
    """The split that a picture belongs to by its content: 8 of 10 to train, one each to the others.

    Only the picture itself counts: others that come or go move it nowhere, and the same picture
    under two names is in one split. (So shares are 80/10/10 on average only: a rule that keeps them
    exact has to move pictures when others come.)
    """
    try:
        size = file_size(path)
        with open(path, "rb") as file:
            content = file.read(2**16) + str(size).encode()
    except (OSError, UserError):  # decoding it will say why
        content = b""
    place = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64  # 0-1
    return "train" if place < 0.8 else "valid" if place < 0.9 else "test"


def file_size(path: str | os.PathLike) -> int:
    """A file's size in bytes.

    Raises:
        UserError: it is missing, empty, or something else, such as a pipe, that may never end.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: not a file")
    if not status.st_size:
        raise UserError(f"{path}: empty")
    return status.st_size


def sha256_of(path: str | os.PathLike) -> str:
    """The sha256 of a file, in hexadecimal."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while some := file.read(2**20):
            sha256.update(some)
    return sha256.hexdigest()


def foresee(data: DataFolder) -> dict[str, str]:
    """What a stat of each file tells before the long work starts.

    Pictures of valid and test that are in train, too, are warned of. Only files that are as large
    as one of another split are read for that.

    Returns:
        Why a file cannot be a picture (missing, empty, a pipe), by path.
    """
    failures, leaks, by_size = {}, [], {}
    for split in SPLITS:
        for path in data.paths[split]:
            try:
                size = file_size(os.path.join(data.root, path))
                by_size.setdefault(size, []).append((split, path))
            except UserError as error:
                failures[path] = str(error)
    for places in by_size.values():
        if places[0][0] == "train" != places[-1][0]:
            seen = {}  # path in train, by content
            for split, path in places:
                try:
                    content = sha256_of(os.path.join(data.root, path))
                except OSError as error:
                    failures[path] = f"{data.root}/{path}: cannot read it: {error.strerror}"
                    continue
                if split == "train":
                    seen[content] = path
                elif content in seen:
                    leaks.append(f"{path} ({seen[content]})")
    if leaks:
        warn(
            f"{data.root}: {len(leaks)} pictures of valid or test are in train, too: accuracy on "
            f"them is memory, not learning: {shorten(leaks)}"
        )
    return failures


def leave_out(data: DataFolder, failures: dict[str, str], strict: bool = False) -> DataFolder:
    """The data folder without the pictures that cannot be read; each of them is warned of.

    Args:
        failures: why, by path.

    Raises:
        UserError: a category of train, or another split, has no picture left; or there are
            failures and `strict` is set.
    """
    for why in failures.values():
        if strict:
            raise UserError(f"{why} (--strict)")
        warn(f"{why}; left out")
    paths, labels = {}, {}
    for split in SPLITS:
        places = zip(data.paths[split], data.labels[split], strict=True)
        left = [(path, label) for path, label in places if path not in failures]
        paths[split], labels[split] = [path for path, _ in left], [label for _, label in left]
        if not left:
            raise UserError(f"{split}: none of its pictures can be read")
    left = set(labels["train"])
    for category, index in data.class_to_idx.items():
        if index not in left:
            raise UserError(f"train/{category}: none of its pictures can be read")
    return DataFolder(data.root, data.class_to_idx, paths, labels)


class Finding(NamedTuple):
    """Something that `inspect_pictures` noticed about one picture, or about one category."""

    finding: str
    split: str
    category: str
    path: str
    detail: str


def inspect_pictures(root: str, found: dict[str, dict[str, list[str]]]) -> list[Finding]:
    """Decode all pictures, and look for what may spoil a training.

    Args:
        found: from `list_pictures`.

    Returns:
        Each category's number of "pictures", and those that are "unreadable", the "same picture"
        as an earlier one, "below 224 pixels", "long" (over 3 times as long as wide) or in a "mode"
        that is not RGB. The "unknown category" of a split is one that train lacks, an "empty
        category" one without pictures in train: training refuses both.
    """
    findings, first = [], {}
    places = [(s, c, path) for s, cs in found.items() for c in cs for path in cs[c]]
    for split, categories in found.items():
        for category, pictures in categories.items():
            findings.append(Finding("pictures", split, category, "", str(len(pictures))))
            if category not in found["train"]:
                findings.append(Finding("unknown category", split, category, "", "not in train"))
            elif split == "train" and not pictures:
                findings.append(Finding("empty category", split, category, "", "no picture"))
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(places), 1000):  # as many are decoded ahead at most
            some = places[start : start + 1000]
            seen = pool.map(lambda place: _inspect(root, place[2]), some)
            for place, (content, odd) in zip(some, seen, strict=True):
                findings += [Finding(what, *place, detail) for what, detail in odd]
                other = first.setdefault(content, place)
                if content and other != place:
                    detail = other[2] if other[0] == place[0] else f"in another split: {other[2]}"
                    findings.append(Finding("same picture", *place, detail))
    return findings


def _inspect(root: str, path: str) -> tuple[str, list[tuple[str, str]]]:
    """A picture's content, as sha256, and what is odd about it."""
    path = os.path.join(root, path)
    try:
        load_image(path)
    except UserError as error:
        return "", [("unreadable", str(error).removeprefix(f"{path}: "))]
    with Image.open(path) as image:
        (width, height), mode = image.size, image.mode
    odd = []
    if min(width, height) < CROP:
        odd.append((f"below {CROP} pixels", f"{width} x {height}"))
    if max(width, height) > 3 * min(width, height):
        odd.append(("long", f"{width} x {height}"))
    if mode != "RGB":
        odd.append(("mode", mode))
    return sha256_of(path), odd


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Let no host take more than PATIENCE seconds to answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def download_flowers(data_dir: str | os.PathLike, split: str = "course") -> None:
    """Fetch Oxford-102 (Nilsback & Zisserman 2008), unless `data_dir` is there already.

    torchvision fetches and verifies it in `oxford-102.download` beside `data_dir`, which serves
    both splits and may be deleted afterwards. The pictures are then linked as
    `<data_dir>/{train,valid,test}/<1..102>/image_NNNNN.jpg`, by Oxford's labels.

    Args:
        split: "official" for the paper's 1020/1020/6149 pictures, or "course" for 80/10/10 per
            cent of each category.

    Raises:
        UserError: it cannot be fetched or written.
    """
    root = Path(data_dir)
    store, partial = root.parent / "oxford-102.download", root.with_name(f"{root.name}.partial")
    if root.exists():
        return print(f"{root} is there already: nothing to download")
    from torchvision.datasets import Flowers102

    # Here, it was left behind by a run that was stopped, and torchvision would take it for whole.
    shutil.rmtree(store / "flowers-102" / "jpg", ignore_errors=True)
    pictures = []  # (split, path, label from 0)
    try:
        with patience():
            for name in ("train", "val", "test"):
                official = "valid" if name == "val" else name
                data = Flowers102(store, name, download=True, loader=str)
                pictures += [(official, *data[index]) for index in range(len(data))]
    except (OSError, RuntimeError, ImportError) as error:
        raise UserError(
            f"cannot fetch Oxford-102: {error}; put 102flowers.tgz, imagelabels.mat and setid.mat "
            f"of https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ into {store / 'flowers-102'}"
        ) from error
    if split == "course":
        pictures = _course_split(pictures)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for place, path, label in pictures:
            target = partial / place / str(label + 1) / Path(path).name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:  # a file system without links
                shutil.copyfile(path, target)
        os.replace(partial, root)
    except OSError as error:
        raise UserError(f"{root}: cannot lay out Oxford-102: {error.strerror}") from error


def _course_split(pictures: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """A tenth of each category for valid and for test, chosen by the files' names."""
    chosen = []
    for label in sorted({label for *_, label in pictures}):
        paths = [path for _, path, other in pictures if other == label]
        paths.sort(key=lambda path: hashlib.sha256(Path(path).name.encode()).digest())
        tenth = round(len(paths) / 10)
        for number, path in enumerate(paths):
            place = SPLITS[1 + number // tenth] if number < 2 * tenth else "train"
            chosen.append((place, path, label))
    return chosen


def load_category_names(path: str | os.PathLike | None = None) -> dict[str, str]:
    """Read a JSON file that maps category folders to names, such as `cat_to_name.json`.

    Args:
        path: None looks for CATEGORY_NAMES in the working folder; without it, there are no names.

    Raises:
        UserError: the file is missing, no JSON, or something else than an object of strings.
    """
    if path is None:
        path = CATEGORY_NAMES
        if not os.path.exists(path):
            return {}
    try:
        names = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the category names: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise UserError(f'{path}: expected one JSON object such as {{"1": "pink primrose"}}')
    return names


# ---------------------------------------------------------------- pictures


def load_image(path: str | os.PathLike) -> Image.Image:
    """Decode a picture: upright (EXIF) and in RGB. Training and prediction both read this way.

    What is in a file counts, not what it is called. Of several frames the first one is taken.
    Of a large JPEG, only what views need is computed ("draft mode"): a half, quarter or eighth of
    its sides, at least twice RESIZE. A photograph of 12 megapixels takes a quarter of the time.

    Raises:
        UserError: the file is missing or is no picture that Pillow can read.
    """
    file_size(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; an error still raises
            with Image.open(path) as image:
                if image.format == "EPS":  # Pillow would run Ghostscript on it
                    raise OSError("EPS is a program, not a picture")
                image.draft(None, (2 * RESIZE, 2 * RESIZE))
                return _to_rgb(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path}: not a picture (or of a format that is not known)") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror or error}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: too large: {error}") from error
    except Exception as error:  # a decoder's own complaint about a damaged file
        raise UserError(f"{path}: damaged picture: {shorten([str(error)])}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes in RGB: transparency on white, more than 8 bits scaled to 8.

    (`convert` alone clips them.) Whole numbers are taken for 16 bits, others for shares of 1, else
    of 255, else of 65535; where values do not fit into that, the picture's own range counts.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.nan_to_num(np.array(image, np.float32), posinf=0, neginf=0)
        low, high = values.min(), values.max()
        fulls = (1, 255, 65535) if image.mode == "F" else (65535,)
        if low >= 0 and high <= fulls[-1]:
            low, high = 0, next(full for full in fulls if high <= full)
        values[values == image.info.get("transparency")] = high
        values = (values - low) * (255 / max(high - low, 1e-30))
        image = Image.fromarray(values.round().astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def load_thumbnail(path: str | os.PathLike) -> Image.Image:
    """A picture for people to look at, of 512 pixels at most; see `load_image`."""
    image = load_image(path)
    image.thumbnail((512, 512))
    return image


def plain_view(image: Image.Image) -> torch.Tensor:
    """Resize the short side to 256 pixels and cut out the centre: (3, 224, 224) uint8."""
    longest = LONGEST * min(image.size)
    if max(image.size) > longest:  # a line of 1 x 60,000 pixels would become 256 x 15 million
        image = F.center_crop(image, [min(side, longest) for side in image.size[::-1]])
    return F.pil_to_tensor(F.center_crop(F.resize(image, RESIZE), CROP))


def random_view(image: Image.Image, seed: int) -> torch.Tensor:
    """Cut out a random part, scaled and perhaps mirrored: (3, 224, 224) uint8.

    The same `seed` always gives the same part.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        box = RandomResizedCrop.get_params(image, CROP_SCALE, (3 / 4, 4 / 3))
        view = F.resized_crop(image, *box, (CROP, CROP))
        view = F.hflip(view) if torch.rand(1) < 0.5 else view
    return F.pil_to_tensor(view)


def load_views(root: str, path: str, views: Iterable[int]) -> torch.Tensor:
    """Decode `root/path` once and take some of its views: (len(views), 3, 224, 224) uint8.

    View 0 is the plain one, every other a random one. What is random follows from `path` and the
    number of the view alone, so that a view never changes.

    Raises:
        UserError: see `load_image`.
    """
    image, taken = load_image(os.path.join(root, path)), []
    for view in views:
        seed = int.from_bytes(hashlib.sha256(os.fsencode(f"{view} {path}")).digest()[:6], "big")
        taken.append(plain_view(image) if view == 0 else random_view(image, seed))
    return torch.stack(taken)


def normalize(
    views: torch.Tensor, means: Sequence[float] = MEANS, stds: Sequence[float] = STDS
) -> torch.Tensor:
    """(N, 3, H, W) uint8 -> float32: range 0-1, less the means, divided by the deviations."""
    return F.normalize(F.convert_image_dtype(views), list(means), list(stds))


# ---------------------------------------------------------------- the machine


def select_device(name: str) -> torch.device:
    """The device called "cpu" or "gpu" (CUDA, or Apple's MPS).

    Under torchrun, each process of a machine takes the GPU of its own local rank.

    Raises:
        UserError: "gpu" is asked for and there is none.
    """
    if name == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device(
            "cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
        )
    if torch.backends.mps.is_available():
        return torch.device("mps")
    raise UserError("--device gpu: torch finds neither a CUDA nor an MPS GPU; use --device cpu")


def select_precision(device: torch.device, name: str = "auto") -> torch.dtype:
    """The type to run a backbone in: the one that is named, or the fastest one that loses nothing.

    "auto" is bfloat16 where the processor or GPU computes in it natively, else float32.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        able = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
        native = able.get("avx512_bf16") or able.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def default_workers(device: torch.device) -> int:
    """How many decode: as many as cores, half as many where the backbone needs them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(16, max(1, cores // 2 if device.type == "cpu" else cores))


# ---------------------------------------------------------------- the command line


class ArgumentParser(argparse.ArgumentParser):
    """argparse, but a mistake gives one line, and flags are not abbreviated.

    (An abbreviation that works today is ambiguous as soon as another flag is added.)
    """

    def __init__(self, **kwargs):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=layout, **kwargs)

    def error(self, message: str):
        raise UserError(f"{message}; see --help")

    def parse_args(self, args: list[str] | None = None) -> argparse.Namespace:
        """Also takes `--means [0.485, 0.456, 0.406]` as a shell splits it: in several words."""
        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            if words and re.match(r"--(means|stds)(=|$)", words[-1]) and not word.startswith("--"):
                words[-1] += (" " if "=" in words[-1] else "=") + word
            else:
                words.append(word)
        return super().parse_args(words)


def triple(text: str) -> list[float]:
    """Three finite numbers, separated by commas or blanks, with or without brackets."""
    words = re.split(r"[,\s]+", text.strip("[]() "))
    numbers = [number(word) for word in words]
    if len(numbers) != 3 or max(map(abs, numbers)) > 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers such as {MEANS}")
    return numbers


def stds(text: str) -> list[float]:
    """Three standard deviations: finite numbers above 0; see `triple`."""
    numbers = triple(text)
    if min(numbers) < 1e-6:  # far above what a float32 takes for 0
        raise argparse.ArgumentTypeError(f"{text!r} has a number that is not above 0")
    return numbers


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def positive_number(text: str) -> float:
    """A finite number above 0."""
    if number(text) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return number(text)


def share(text: str) -> float:
    """A number from 0 up to, but not including, 1."""
    if not 0 <= number(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not at least 0 and below 1")
    return number(text)


def whole_number(minimum: int, maximum: int = 10**18) -> Callable[[str], int]:
    """A reader of whole numbers from `minimum` to `maximum`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\s*\d{1,19}\s*", text) or not minimum <= int(text) <= maximum:
            upper = f" to {maximum}" if maximum < 10**18 else " on"
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from {minimum}{upper}"
            )
        return int(text)

    return read


def count_or_text(text: str) -> int | str:
    """A whole number from 1 on, or what was typed instead: whoever knows the right one will say."""
    try:
        return whole_number(1)(text)
    except argparse.ArgumentTypeError:
        return text


def run_script(main, name: str, hint: str = "") -> None:
    """Call a script's `main`; a UserError becomes one line on stderr and exit status 2.

    So do Ctrl-C (status 130) and SIGTERM (143), whose line ends with `hint`. Where nobody reads
    standard output any more, it ends without a word (141).
    """
    if hasattr(sys.stdout, "reconfigure"):  # a name may have letters that a terminal has not
        sys.stdout.reconfigure(errors="backslashreplace")
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except UserError as error:
        sys.exit(_one_line_exit(f"{name}: error: {error}", 2))
    except KeyboardInterrupt:
        sys.exit(_one_line_exit(f"{name}: stopped{hint}", 130))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except _Terminated:
        sys.exit(_one_line_exit(f"{name}: terminated{hint}", 143))
    finally:
        signal.signal(signal.SIGTERM, before)


class _Terminated(BaseException):
    """SIGTERM has come."""


def _terminate(*_) -> None:
    raise _Terminated


def _one_line_exit(message: str, status: int) -> int:
    print(one_line(message), file=sys.stderr)
    return status


def one_line(text: str) -> str:
    """Text, of a file's name perhaps, so that it stays in its line and moves no cursor."""
    text = re.sub(r"\s*\n\s*", " ", text.strip())
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda c: ascii(c[0])[1:-1], text)


def warn(message: str) -> None:
    """Say something on stderr that does not stop the work."""
    print(f"warning: {one_line(message)}", file=sys.stderr)


def write_table(path: str | os.PathLike, rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file; of names that are no text, the odd bytes are escaped.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            csv.writer(file).writerows(rows)
    except OSError as error:
        raise UserError(f"{path}: cannot write it: {error.strerror}") from error


def save_figure(figure, path: str | os.PathLike) -> None:
    """Write a figure of `plots`; the ending says what kind of file it becomes: .png, .pdf, .svg.

    Raises:
        UserError: it cannot be written, or the ending is none of those.
    """
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or shorten([str(error)])
        raise UserError(f"{path}: cannot write it: {why}") from error


def shorten(words: Iterable[str], limit: int = 5) -> str:
    """The first few words of a list that may be long."""
    words = list(words)
    return ", ".join(w[:200] for w in words[:limit]) + (", ..." if len(words) > limit else "")


def progress(batches: Iterable, total: int, what: str, done: int = 0) -> Iterator:
    """Go through batches: a bar with the time left on a terminal, a line each tenth elsewhere.

    The `indices` and `failures` of a batch count towards `total`; `done` were finished before.
    """
    from tqdm import tqdm  # here, because a prediction does without

    start, first = time.monotonic(), done
    with tqdm(total=total, initial=done, desc=what, disable=not sys.stderr.isatty()) as bar:
        for batch in batches:
            yield batch
            step = len(batch.indices) + len(batch.failures)
            bar.update(step)
            if bar.disable and (done + step) * 10 // total > done * 10 // total:
                left = (time.monotonic() - start) / (done + step - first) * (total - done - step)
                print(f"{what}: {done + step}/{total}, {left:.0f} s left", file=sys.stderr)
            done += step

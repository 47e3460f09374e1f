"""Data loading and transforms: data folders, images, views and category names.

flowers/{train,valid,test}/<category>/*.jpg
-> DataFolder -> image, upright and RGB -> views (N, 3, size, size) uint8, size is 224 by default
"""

from __future__ import annotations

import collections
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from image_files.crops import center_crop, describe_center_crop, random_crop
from image_files.decoding import decode
from image_files.decoding import thumbnail as thumbnail
from image_files.digests import digest_files, digest_of_file
from image_files.folders import images_below, is_no_image, scan_folder
from image_files.names import load_names, look_alikes
from image_files.splits import divide
from system.messages import UserError, progress, shorten, warn

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "valid", "test")
SPLIT_FOLDERS = {  # names of the folders, in lower case
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation", "dev"),
    "test": ("test", "testing"),
}
SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}  # of a folder without splits
RESIZE, CROP = 256, 224  # pixels; torchvision's VGG16_Weights.IMAGENET1K_V1.transforms()
IMAGE_SIZES = range(64, 1025, 32)  # of views; half of a large one is a whole number of locations
MEANS = [0.485, 0.456, 0.406]  # of ImageNet's red, green and blue, range 0-1; same source
STDS = [0.229, 0.224, 0.225]
CATEGORY_NAMES = "cat_to_name.json"  # the default file of category names
CROP_SCALE = (0.5, 1.0)  # fraction of an image's area in a random view
CROP_RATIO = (3 / 4, 4 / 3)  # width to height of a random view
MAX_ASPECT = 64  # a plain view of a longer image is of its middle
# Raise it when decoding, color, crop or resize changes: stored features, checkpoints and ONNX files
# carry it, and what was made with another version is not used.
PREPROCESSING_VERSION = 1


# ---------------------------------------------------------------- data folders


@dataclass
class DataFolder:
    """The images of a data folder, by split.

    `class_to_idx` numbers the categories of `train` in string order ("10" comes before "2"); the
    indices are the same in every split. `paths[split]` are file paths relative to `root`, with
    forward slashes; `labels[split]` are the indices of their categories.

    Attributes:
        digests: of each file's content, by path; see `image_files.digests`.
        failures: why a file cannot be read, by path.
    """

    root: str
    class_to_idx: dict[str, int]
    paths: dict[str, list[str]]
    labels: dict[str, list[int]]
    digests: dict[str, str]
    failures: dict[str, str]


Images = dict[str, dict[str, list[str]]]  # paths, relative to the data folder, by split, category


def list_images(data_dir: str | os.PathLike) -> Images:
    """List the images of a data folder by split and category, as its folders say.

    Every file in a category's folder or below counts as an image, unless it is hidden or its name
    says that it is none (IGNORED_SUFFIXES): decoding shows whether it is one. Without folders for
    the splits, all images are train's; see `divide`. Other files and folders are warned of.

    Raises:
        UserError: a folder is missing, cannot be read or contains no folders; or the folders of the
            splits are elsewhere, or more than one for a split.
    """
    root = Path(data_dir)
    if not os.path.isdir(root):
        raise UserError(f"--data_dir {data_dir}: no such folder")
    names, files = scan_folder(root)
    folders = _split_folders(root, names)
    if not folders:
        categories = _list_categories(root, "", names, files)
        for name, paths in categories.items():
            below = sorted({path.split("/")[1] for path in paths if path.count("/") > 1})
            if _split_folders(root / name, below):
                raise UserError(
                    f"{root}: the folders of the splits are one level deeper; "
                    f"type --data_dir {root / name}"
                )
        return {"train": categories}
    if "train" not in folders:
        raise UserError(
            f"{root / 'train'}: no such folder, but there is {shorten(folders.values())}"
        )
    others = [name for name in names if name not in folders.values()]
    if others:
        warn(f"{root}: {len(others)} folders beside the splits are ignored: {shorten(others)}")
    _warn_of_files(root, files)
    return {
        split: _list_categories(root, f"{name}/", *scan_folder(root / name))
        for split, name in folders.items()
    }


def paths_of(images: Images) -> Iterator[str]:
    """Yield the paths of all images."""
    for categories in images.values():
        for paths in categories.values():
            yield from paths


def _split_folders(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the name of the folder of each split among those in `root`, whatever its case.

    Raises:
        UserError: there are two folders for one split.
    """
    folders: dict[str, str] = {}
    for name in names:
        for split, others in SPLIT_FOLDERS.items():
            if name.lower() in others:
                if split in folders:
                    raise UserError(f"{root}: has both {folders[split]} and {name}; keep only one")
                folders[split] = name
    return folders


def _list_categories(
    root: Path, prefix: str, folders: Sequence[str], files: Sequence[str]
) -> dict[str, list[str]]:
    """List the paths of the images in each folder of `root/prefix`, in string order.

    Args:
        folders, files: what is in `root/prefix`, from `scan_folder`.
    """
    if not folders:
        raise UserError(f"{root / prefix}: no category folders in it")
    _warn_of_files(root / prefix, files)
    ignored: collections.Counter[str] = collections.Counter()
    categories = {
        folder: list(images_below(root, f"{prefix}{folder}", ignored)) for folder in folders
    }
    if ignored:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(ignored.items()))
        print(f"{root / prefix}: ignored files: {kinds}", file=sys.stderr)
    return categories


def _warn_of_files(folder: Path, files: Sequence[str]) -> None:
    """Warn of files that may be images, but are in no category."""
    files = [name for name in files if not is_no_image(name)]
    if files:
        where = "outside of the category folders are ignored"
        warn(f"{folder}: {len(files)} files {where}: {shorten(files)}")


class Scan(NamedTuple):
    """The images of a data folder, read once.

    Attributes:
        images: by split and category; all splits are there.
        digests, failures: see `DataFolder`.
    """

    images: Images
    digests: dict[str, str]
    failures: dict[str, str]


def read_images(
    data_dir: str | os.PathLike, images: Images, memo: str | os.PathLike | None = None
) -> Scan:
    """Read the files of `list_images` for their digests, and divide them if splits are missing.

    Every file is read once, unless the memo has its digest. Nothing on disk changes.

    Args:
        memo: a folder for the digests of files that do not change; see `image_files.digests`.
    """
    images = {split: dict(categories) for split, categories in images.items()}
    paths = list(paths_of(images))
    digests, failures = {}, {}
    files = digest_files(str(data_dir), paths, memo)
    for path, digest, error in progress(files, len(paths), "reading", size=lambda _: 1, delay=1):
        if error:
            failures[path] = error
        else:
            digests[path] = digest
    missing = [split for split in SPLITS if split not in images]
    if missing:
        for split in missing:
            images[split] = {}
        for category, group in images["train"].items():
            for split, divided in divide(group, digests, SHARES, ["train", *missing]).items():
                images[split][category] = divided
        counts = [f"{sum(map(len, images[split].values()))} {split}" for split in SPLITS]
        names = " or ".join(missing)
        warn(f"{data_dir}: no {names} folder: split by content: {', '.join(counts)}")
    return Scan({split: images[split] for split in SPLITS}, digests, failures)


def read_data_folder(
    data_dir: str | os.PathLike,
    memo: str | os.PathLike | None = None,
    images: Images | None = None,
) -> DataFolder:
    """Read the images of a data folder; see `read_images`, `list_images` and `find_problems`.

    Args:
        images: from `list_images`, if that was called already.
    """
    images = images or list_images(data_dir)
    for problem in find_problems(images):
        raise UserError(f"{data_dir}: {problem}")
    return number_categories(data_dir, read_images(data_dir, images, memo))


def number_categories(data_dir: str | os.PathLike, scan: Scan) -> DataFolder:
    """Return the data folder of images that were read; see `read_data_folder`."""
    images, digests, failures = scan
    for problem in find_problems(images):
        raise UserError(f"{data_dir}: {problem}")
    class_to_idx = {category: index for index, category in enumerate(images["train"])}
    paths, labels = {}, {}
    for split, categories in images.items():
        paths[split] = [path for group in categories.values() for path in group]
        labels[split] = [class_to_idx[c] for c, group in categories.items() for _ in group]
        absent = [category for category in class_to_idx if not categories.get(category)]
        if absent:
            warn(f"{data_dir}: {split} lacks {len(absent)} categories: {shorten(absent)}")
    for group, difference in look_alikes(class_to_idx):
        warn(f"{data_dir}: the categories {shorten(map(repr, group))} differ only in {difference}")
    return DataFolder(str(data_dir), class_to_idx, paths, labels, digests, failures)


def find_problems(images: Images) -> Iterator[str]:
    """Yield what training refuses: unknown or empty categories, and splits without images."""
    for split, categories in images.items():
        for category, group in categories.items():
            if category not in images["train"]:
                similar = [a for a in look_alikes([*images["train"], category]) if category in a[0]]
                hint = "".join(f" (only {g[0]!r}, which differs in {d})" for g, d in similar)
                yield (
                    f"train has no category {category!r}{hint}, but {split} has; "
                    "add it to train or move it away"
                )
            elif split == "train" and not group:
                yield f"no image for train in category {category!r}; add some, or remove it"
        if split == "train" and len(categories) == 1:
            yield f"only one category, {next(iter(categories))!r}; there have to be two at least"
        if not any(categories.values()):
            yield f"no images for {split}; add some, or make folders train, valid and test"


def list_labeled(
    root: str | os.PathLike, class_to_idx: dict[str, int], trained_on: str = ""
) -> list[tuple[str, int]]:
    """List the paths of a labeled folder's images, each with the index of its category.

    Args:
        root: has one sub-folder a category; or it is a data folder, whose test split is used.
        trained_on: the data folder of the training; if it is `root` itself, that is warned of.

    Raises:
        UserError: there is no image, or a category that `class_to_idx` lacks.
    """
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such folder")
    names, files = scan_folder(root)
    splits = _split_folders(Path(root), names)
    if "train" in splits and "test" in splits:
        root = Path(root, splits["test"])
        names, files = scan_folder(root)
    elif os.path.exists(trained_on) and os.path.samefile(root, trained_on):
        warn(f"{root}: the checkpoint was trained on it: the reported accuracy will be too high")
    images = _list_categories(Path(root), "", names, files)
    unknown = [category for category in images if category not in class_to_idx]
    if unknown:
        raise UserError(f"{root}: the checkpoint does not know {shorten(unknown)}")
    labeled = [
        (os.path.join(root, path), class_to_idx[category])
        for category, paths in images.items()
        for path in paths
    ]
    if not labeled:
        raise UserError(f"{root}: no images in its categories")
    return labeled


def load_category_names(path: str | os.PathLike | None = None) -> dict[str, str]:
    """Read a JSON file that maps category folders to names; see `image_files.names.load_names`.

    Args:
        path: None means CATEGORY_NAMES in the working folder, or no names if there is none.
    """
    if path is None and not os.path.exists(CATEGORY_NAMES):
        return {}
    return load_names(path or CATEGORY_NAMES)


# ---------------------------------------------------------------- images and views


def short_side(size: int) -> int:
    """Return the pixels of an image's short side, of which `size` in the center are the view."""
    return round(size * RESIZE / CROP)


def load_image(
    path: str | os.PathLike, report: Callable[[str], object] = warn, size: int = CROP
) -> Image.Image:
    """Decode an image: upright (EXIF) and in sRGB. Training and prediction both use this function.

    See `image_files.decoding.decode`. A large JPEG is decoded at a size of at least twice that
    of its views: a photograph of 12 megapixels takes a quarter of the time.

    Args:
        report: called with a line if something in the file had to be guessed.
        size: of the views that will be taken.

    Raises:
        UserError: the file is missing, or Pillow cannot read it.
    """
    return decode(path, 2 * short_side(size), report)


def load_plain_view(
    path: str | os.PathLike, size: int = CROP, report: Callable[[str], object] = warn
) -> np.ndarray:
    """Decode an image and return its plain view; see `load_image` and `plain_view`."""
    return plain_view(load_image(path, report, size), size)


def plain_view(image: Image.Image, size: int = CROP) -> np.ndarray:
    """Resize to `short_side` and cut out the center: (3, size, size) uint8."""
    return center_crop(image, short_side(size), size, MAX_ASPECT)


def preprocessing(image_size: int) -> dict[str, int]:
    """Return the numbers that say how an image becomes its plain view, for files and programs."""
    return {
        "preprocessing_version": PREPROCESSING_VERSION,
        "resize": short_side(
            image_size
        ),  # pixels of the short side, of which the center is cut out
        "image_size": image_size,  # pixels of the view's side
        "max_aspect": MAX_ASPECT,  # of an image whose sides have a larger ratio, the middle is used
    }


def describe_plain_view(size: int) -> str:
    """Say how an image becomes its plain view, to other programs."""
    return describe_center_crop(short_side(size), size, MAX_ASPECT)


def random_view(image: Image.Image, seed: int, size: int = CROP) -> np.ndarray:
    """Cut out a random rectangle, resized and perhaps mirrored: (3, size, size) uint8.

    The same `seed` always gives the same rectangle.
    """
    return random_crop(image, seed, size, CROP_SCALE, CROP_RATIO)


def load_views(
    root: str, path: str, digest: str, numbers: Iterable[int], size: int = CROP
) -> np.ndarray:
    """Decode `root/path` once and return some of its views: (len(numbers), 3, size, size) uint8.

    View 0 is the plain one, view 1 its mirror image, every other a random one, whose seed follows
    from the file's content and the number alone: a view is always the same.

    Args:
        digest: of the file's content.

    Raises:
        UserError: the content has changed; or see `load_image`.
    """
    file = os.path.join(root, path)
    image, views = load_image(file, size=size), []
    if digest_of_file(file) != digest:
        raise UserError(f"{file}: has changed since the start; run the command again")
    for number in numbers:
        seed = int.from_bytes(hashlib.sha256(f"{number} {digest}".encode()).digest()[:6], "big")
        view = plain_view(image, size) if number < 2 else random_view(image, seed, size)
        views.append(view[:, :, ::-1] if number == 1 else view)
    return np.stack(views)


def normalize(
    views: np.ndarray | torch.Tensor,
    means: Sequence[float] = MEANS,
    stds: Sequence[float] = STDS,
) -> torch.Tensor:
    """(N, 3, H, W) uint8 -> float32: range 0-1, minus the means, divided by the deviations."""
    import torch  # here, because predict.py runs without it

    values = torch.as_tensor(views).float() / 255
    mean, std = (values.new_tensor(three)[:, None, None] for three in (means, stds))
    return values.sub_(mean).div_(std)

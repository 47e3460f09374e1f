"""Data loading and transforms: data folders, images, views and category names.

flowers/{train,valid,test}/<category>/*.jpg
-> DataFolder -> image, upright and RGB -> views (N, 3, size, size) uint8, size is 224 by default
"""

from __future__ import annotations

import collections
import hashlib
import os
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from image_files.crops import center_crop, random_crop
from image_files.decoding import decode, open_file
from image_files.decoding import thumbnail as thumbnail
from image_files.digests import digest_files, digest_of
from image_files.folders import images_below, is_no_image, scan_folder
from image_files.names import look_alikes
from image_files.splits import divide
from system.devices import available_cores
from system.messages import UserError, counted, progress, shorten, warn
from system.pages import MAX_PAGE, data_url
from system.workers import map_ahead

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "valid", "test")
SPLIT_FOLDERS = {  # names of the folders, in lower case
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation", "dev"),
    "test": ("test", "testing"),
}
RESIZE, CROP = 256, 224  # pixels; torchvision's VGG16_Weights.IMAGENET1K_V1.transforms()
IMAGE_SIZES = range(64, 1025, 32)  # of views; half of a large one is a whole number of locations
MEANS = [0.485, 0.456, 0.406]  # of ImageNet's red, green and blue, range 0-1; same source
STDS = [0.229, 0.224, 0.225]
CROP_SCALE = (0.5, 1.0)  # fraction of an image's area in a random view
CROP_RATIO = (3 / 4, 4 / 3)  # width to height of a random view
MAX_ASPECT = 64  # a plain view of a longer image is of its middle
# Raise it when decoding, color, crop or resize changes: stored features, checkpoints and ONNX files
# carry it, and what was made with another version is not used.
PREPROCESSING_VERSION = 2


# ---------------------------------------------------------------- data folders


class ImageFile(NamedTuple):
    """An image of a data folder.

    Attributes:
        path: relative to the data folder, with forward slashes.
        digest: of the file's content, from `read_images`; "" if it cannot be read.
        error: why it cannot be read, or "".
    """

    split: str
    category: str
    path: str
    digest: str = ""
    error: str = ""


@dataclass(frozen=True)
class DataFolder:
    """The images of a data folder.

    Attributes:
        categories: of each split, in string order; some may have no images.
        images: of train, then of valid, then of test; in a split, by category and path.
    """

    root: str
    categories: dict[str, list[str]]
    images: list[ImageFile]

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Number the categories of train in string order: "10" comes before "2"."""
        return {category: index for index, category in enumerate(self.categories["train"])}

    def of(self, split: str) -> list[ImageFile]:
        """List the images of a split."""
        return [image for image in self.images if image.split == split]

    def all_paths(self) -> list[str]:
        """List the paths of all images."""
        return [image.path for image in self.images]

    def paths(self, split: str) -> list[str]:
        """List the paths of the images of a split."""
        return [image.path for image in self.of(split)]

    def labels(self, split: str) -> list[int]:
        """List the index of the category of each image of a split."""
        class_to_idx = self.class_to_idx
        return [class_to_idx[image.category] for image in self.of(split)]

    def counts(self) -> collections.Counter[tuple[str, str]]:
        """Count the images of each split and category."""
        return collections.Counter((image.split, image.category) for image in self.images)

    def errors(self) -> dict[str, str]:
        """Return why an image cannot be read, by its path."""
        return {image.path: image.error for image in self.images if image.error}

    def without(self, paths: Container[str]) -> DataFolder:
        """Return the data folder without the images that have these paths."""
        return replace(self, images=[image for image in self.images if image.path not in paths])


def list_images(data_dir: str | os.PathLike) -> DataFolder:
    """List the images of a data folder by split and category, as its folders say.

    Every file in a category's folder or below counts as an image, unless it is hidden or its name
    says that it is none (IGNORED_SUFFIXES): decoding shows whether it is one. Without folders for
    the splits, all images are train's until `read_images`. Other files and folders are warned of.

    Raises:
        UserError: a folder is missing, cannot be read or contains no folders; or the folders of the
            splits are elsewhere, or more than one for a split.
    """
    root = Path(data_dir)
    if not os.path.isdir(root):
        raise UserError(f"--data_dir {data_dir}: no such folder")
    names, files = scan_folder(root)
    folders = _split_folders(root, names)
    paths: dict[str, dict[str, list[str]]] = {}  # by split and category
    if not folders:
        paths["train"] = _list_categories(root, "", names, files)
        _check_level(root, paths["train"])
    elif "train" not in folders:
        raise UserError(
            f"{root / 'train'}: no such folder, but there is {shorten(folders.values())}"
        )
    else:
        _check_others(
            root, folders.values(), [name for name in names if name not in folders.values()]
        )
        _warn_of_files(root, files)
        for split in SPLITS:
            if split in folders:
                names, files = scan_folder(root / folders[split])
                paths[split] = _list_categories(root, f"{folders[split]}/", names, files)
    images = []
    for split, categories in paths.items():
        for category, group in categories.items():
            images += [ImageFile(split, category, path) for path in group]
    with_images = {image.category for image in images}
    empty = {category for split in paths for category in paths[split]} - with_images
    if empty and with_images:
        ignored = counted(len(empty), "folder is", "folders are")
        warn(f"{root}: {ignored} ignored, without images: {shorten(sorted(empty))}")
    categories = {split: [c for c in paths[split] if c in with_images] for split in paths}
    return DataFolder(str(data_dir), categories, images)


def _check_others(root: Path, splits: Iterable[str], others: Sequence[str]) -> None:
    """Raise UserError if folders beside those of the splits have images; warn of them if not.

    Otherwise, a category that is called "train" would be taken for the split.
    """
    with_images = []
    for name in others:
        if next(images_below(root, name, collections.Counter()), None) is not None:
            with_images.append(name)
    if with_images:
        raise UserError(
            f"{root}: has the folders of splits, {shorten(splits)}, and other folders with images, "
            f"{shorten(with_images)}; move the others away, or, if {shorten(splits)} are "
            "categories, rename them"
        )
    if others:
        ignored = counted(len(others), "folder is", "folders are")
        warn(f"{root}: {ignored} ignored, beside the splits: {shorten(others)}")


def _check_level(root: Path, categories: dict[str, list[str]]) -> None:
    """Raise UserError if a category has the folders of the splits.

    Args:
        categories: the paths of the images of each category in `root`.
    """
    for name, paths in categories.items():
        below = sorted({path.split("/")[1] for path in paths if path.count("/") > 1})
        if _split_folders(root / name, below):
            raise UserError(
                f"{root}: the folders of the splits are one level deeper; "
                f"type --data_dir {root / name}"
            )


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
    categories = {}
    for folder in folders:
        categories[folder] = list(images_below(root, f"{prefix}{folder}", ignored))
    if ignored:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(ignored.items()))
        print(f"{root / prefix}: ignored files: {kinds}", file=sys.stderr)
    return categories


def _warn_of_files(folder: Path, files: Sequence[str]) -> None:
    """Warn of files that may be images, but are in no category."""
    files = [name for name in files if not is_no_image(name)]
    if files:
        warn(
            f"{folder}: {counted(len(files), 'file is', 'files are')} ignored, outside of the "
            f"category folders: {shorten(files)}"
        )


def read_images(data: DataFolder, cache: str | os.PathLike | None = None) -> DataFolder:
    """Read the files of a data folder for their digests, and divide them if splits are missing.

    Every file is read once, unless its digest is stored. Nothing in the data folder changes.

    Args:
        data: from `list_images`.
        cache: a folder for the digests of files that do not change.
    """
    files = digest_files(data.root, data.all_paths(), cache)
    files = progress(files, len(data.images), "reading", size=lambda _: 1, delay=1)
    images = []
    for image, file in zip(data.images, files, strict=True):
        images.append(image._replace(digest=file.digest, error=file.error))
    data = replace(data, images=images)
    missing = [split for split in SPLITS if split not in data.categories]
    return _fill_splits(data, missing) if missing else data


def _fill_splits(data: DataFolder, missing: list[str]) -> DataFolder:
    """Take images of the missing splits from train, by their content."""
    digests: dict[str, dict[str, str]] = {category: {} for category in data.categories["train"]}
    for image in data.of("train"):
        digests[image.category][image.path] = image.digest
    splits: dict[str, str] = {}  # by path
    for of_category in digests.values():
        splits |= divide(of_category, missing)
    images = [image._replace(split=splits.get(image.path, image.split)) for image in data.images]
    images.sort(key=lambda image: SPLITS.index(image.split))
    categories = {split: data.categories.get(split, list(digests)) for split in SPLITS}
    data = DataFolder(data.root, categories, images)
    counts = ", ".join(f"{len(data.of(split))} {split}" for split in SPLITS)
    warn(f"{data.root}: no {' or '.join(missing)} folder: split by content: {counts}")
    return data


def read_data_folder(data_dir: str | os.PathLike) -> DataFolder:
    """List, read and check the images of a data folder; those that cannot be read are there, too.

    Raises:
        UserError: see `list_images` and `check_categories`.
    """
    data = read_images(list_images(data_dir))
    check_categories(data)
    return data


def check_categories(data: DataFolder) -> None:
    """Warn of categories that a split lacks, and of those whose names look alike.

    Raises:
        UserError: training refuses the data folder: the first of `find_problems`.
    """
    problem = next(find_problems(data), None)
    if problem:
        raise UserError(f"{data.root}: {problem}")
    counts = data.counts()
    for split in SPLITS:
        absent = [name for name in data.categories["train"] if not counts[split, name]]
        if absent:
            lacking = counted(len(absent), "category", "categories")
            warn(f"{data.root}: {split} lacks {lacking}: {shorten(absent)}")
    for group, difference in look_alikes(data.categories["train"]):
        warn(f"{data.root}: the categories {shorten(map(repr, group))} differ only in {difference}")


def find_problems(data: DataFolder) -> Iterator[str]:
    """Yield what training refuses: unknown or empty categories, and splits without images."""
    counts = data.counts()
    train = data.class_to_idx
    for split, categories in data.categories.items():
        for category in categories:
            if category not in train:
                yield (
                    f"train has no category {category!r}{_hint(category, train)}, but {split} has; "
                    "add it to train or move it away"
                )
            elif split == "train" and not counts[split, category]:
                yield f"no image for train in category {category!r}; add some, or remove it"
        if split == "train" and len(categories) == 1:
            yield f"only one category, {categories[0]!r}; there have to be two at least"
        if not data.of(split):
            yield f"no images for {split}; add some, or make folders train, valid and test"


def _hint(category: str, train: Iterable[str]) -> str:
    """Return the category of train that looks like one that train lacks, in parentheses; or ""."""
    for group, difference in look_alikes([*train, category]):
        if category in group:
            return f" (only {group[0]!r}, which differs in {difference})"
    return ""


def exclude_images(
    data: DataFolder, errors: Mapping[str, str], *, strict: bool = False
) -> DataFolder:
    """Return the data folder without the images that cannot be read; each is warned of.

    Args:
        errors: why an image cannot be read, by path.
        strict: raise an error instead of the first warning.

    Raises:
        UserError: a category of train, or another split, has no image left; or there are errors
            and `strict` is set.
    """
    for error in errors.values():
        if strict:
            raise UserError(f"{error} (--strict)")
        warn(f"{error}; left out")
    data = data.without(errors)
    for split in SPLITS:
        if not data.of(split):
            raise UserError(f"{split}: none of its images can be read")
    counts = data.counts()
    for category in data.categories["train"]:
        if not counts["train", category]:
            raise UserError(f"train/{category}: none of its images can be read")
    return data


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
    labeled = []
    for category, paths in images.items():
        labeled += [(os.path.join(root, path), class_to_idx[category]) for path in paths]
    if not labeled:
        raise UserError(f"{root}: no images in its categories")
    return labeled


# ---------------------------------------------------------------- images and views


def short_side(size: int) -> int:
    """Return the pixels of an image's short side, of which `size` in the center are the view."""
    return round(size * RESIZE / CROP)


def load_image(
    path: str | os.PathLike, report: Callable[[str], object] = warn, size: int = CROP
) -> Image.Image:
    """Decode an image: upright (EXIF) and in sRGB. Training and prediction both use this function.

    A large JPEG is decoded at a size of at least twice that
    of its views: a photograph of 12 megapixels takes a quarter of the time.

    Args:
        report: called with a line if something in the file had to be guessed.
        size: of the views that will be taken.

    Raises:
        UserError: the file is missing, or Pillow cannot read it.
    """
    with open_file(path) as file:
        return decode_image(file, path, size, report)


def embed_images(paths: Sequence[str], side: int, needed: int) -> list[str]:
    """Return the URLs of small copies of images, for a page: of the first ones, as space permits.

    Args:
        side: pixels of the longer side at most.
        needed: so many are returned whatever their size; then others until MAX_PAGE bytes.

    Raises:
        UserError: see `load_image`.
    """

    def embed(path: str) -> str:
        return data_url(load_image(path, lambda line: None, side // 2), side)

    workers = available_cores()
    urls: list[str] = []
    size = 0
    embedded = map_ahead(embed, paths, workers, 2 * workers)
    for url in progress(embedded, len(paths), "page", size=lambda _: 1, delay=1):
        size += len(url)
        if len(urls) >= needed and size > MAX_PAGE:
            break
        urls.append(url)
    return urls


def decode_image(
    file: BinaryIO, name: str | os.PathLike, size: int, report: Callable[[str], object] = warn
) -> Image.Image:
    """Decode an open file, for views of `size` pixels, as `load_image` does.

    Args:
        file: from `image_files.decoding.open_file`.
        name: of the file, for messages.
        report: called with a line if something in the file had to be guessed.

    Raises:
        UserError: the file is not an image, or is damaged.
    """
    return decode(file, name, 2 * short_side(size), report)


def load_plain_view(
    path: str | os.PathLike, size: int = CROP, report: Callable[[str], object] = warn
) -> np.ndarray:
    """Decode an image and return its plain view, (3, size, size) uint8."""
    return plain_view(load_image(path, report, size), size)


def plain_view(image: Image.Image, size: int = CROP) -> np.ndarray:
    """Resize to `short_side` and cut out the center: (3, size, size) uint8."""
    return center_crop(image, short_side(size), size, MAX_ASPECT)


def preprocessing(image_size: int) -> dict[str, int]:
    """Return the numbers that say how an image becomes its plain view, for files and programs."""
    return {
        "preprocessing_version": PREPROCESSING_VERSION,
        "resize": short_side(image_size),  # pixels of the short side; the center is cut out
        "image_size": image_size,  # pixels of the view's side
        "max_aspect": MAX_ASPECT,  # of an image whose sides have a larger ratio, the middle is used
    }


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
    name = os.path.join(root, path)
    with open_file(name) as file:
        if digest_of(file) != digest:
            raise UserError(f"{name}: has changed since the start; run the command again")
        image = decode_image(file, name, size)
    views = []
    for number in numbers:
        if number == 0:
            view = plain_view(image, size)
        elif number == 1:
            view = plain_view(image, size)[:, :, ::-1]
        else:
            seed = hashlib.sha256(f"{number} {digest}".encode()).digest()[:6]
            view = random_view(image, int.from_bytes(seed, "big"), size)
        views.append(view)
    return np.stack(views)


def normalize(
    views: np.ndarray | torch.Tensor,
    means: Sequence[float] = MEANS,
    stds: Sequence[float] = STDS,
) -> torch.Tensor:
    """(N, 3, H, W) uint8 -> float32: range 0-1, minus the means, divided by the deviations."""
    import torch  # here, because predict.py runs without it

    values = torch.as_tensor(views).float() / 255
    mean = values.new_tensor(means)[:, None, None]  # (3, 1, 1)
    std = values.new_tensor(stds)[:, None, None]
    return values.sub_(mean).div_(std)

"""Data loading and transforms: data folders, images, views and category names.

flowers/{train,valid,test}/<category>/*.jpg
-> DataFolder -> image, upright and RGB -> views (N, 3, 224, 224) uint8
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

from support.arguments import UserError, shorten, warn
from support.decoding import decode
from support.files import check_regular_file

SPLITS = ("train", "valid", "test")
SPLIT_FOLDERS = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "test": "test",
}
RESIZE, CROP = 256, 224  # pixels; torchvision's VGG16_Weights.IMAGENET1K_V1.transforms()
MEANS = [0.485, 0.456, 0.406]  # of ImageNet's red, green and blue, range 0-1; same source
STDS = [0.229, 0.224, 0.225]
CATEGORY_NAMES = "cat_to_name.json"  # the default file of category names
CROP_SCALE = (0.5, 1.0)  # fraction of an image's area in a random view
CROP_RATIO = (3 / 4, 4 / 3)  # width to height of a random view
MAX_ASPECT = 64  # a plain view of a longer image is of its middle
THUMBNAIL = 512  # pixels of the longer side

# How a plain view is made, for programs that use an exported model without this module.
PREPROCESSING = (
    "Turn the image upright (EXIF). Convert it to 8-bit sRGB by its color profile, transparency "
    f"on white. Resize it, bilinear with antialiasing: the short side to {RESIZE} pixels, the long "
    f"side to {RESIZE} * long / short, rounded down. Cut out {CROP} x {CROP} pixels; the first row "
    f"is (height - {CROP}) / 2 and the first column (width - {CROP}) / 2, rounded to the nearest "
    "integer, halves to the even one. Pass them as uint8 (0-255), channels first: "
    f"(N, 3, {CROP}, {CROP}). Do not normalize: the model does."
)


# ---------------------------------------------------------------- data folders


@dataclass(frozen=True)
class DataFolder:
    """The images of a data folder, by split.

    `class_to_idx` numbers the categories of `train` in string order ("10" comes before "2"); the
    indices are the same in every split. `paths[split]` are file paths relative to `root`, with
    forward slashes; `labels[split]` are the indices of their categories.
    """

    root: str
    class_to_idx: dict[str, int]
    paths: dict[str, list[str]]
    labels: dict[str, list[int]]


def read_data_folder(data_dir: str | os.PathLike) -> DataFolder:
    """List the images of a data folder; see `list_images`.

    Raises:
        UserError: a folder or split is missing or empty, a category of `train` has no image,
            or another split has a category that `train` lacks.
    """
    root, images = Path(data_dir), list_images(data_dir)
    class_to_idx = {category: index for index, category in enumerate(images["train"])}
    paths, labels = {}, {}
    for split, categories in images.items():
        for category, category_paths in categories.items():
            if category not in class_to_idx:
                raise UserError(
                    f"{root}: train has no category {category!r}, but {split} has; "
                    "add it to train or move it away"
                )
            if split == "train" and not category_paths:
                raise UserError(
                    f"{root}: no image for train in category {category!r}; add some, or remove it"
                )
        paths[split] = [path for group in categories.values() for path in group]
        labels[split] = [class_to_idx[c] for c, group in categories.items() for _ in group]
        if not paths[split]:
            raise UserError(
                f"{root}: no images for {split}; add some, or make folders train, valid and test"
            )
        missing = [category for category in class_to_idx if not categories.get(category)]
        if missing:
            warn(f"{root}: {split} lacks {len(missing)} categories: {shorten(missing)}")
    return DataFolder(str(root), class_to_idx, paths, labels)


def list_images(data_dir: str | os.PathLike) -> dict[str, dict[str, list[str]]]:
    """List the paths of images, relative to `data_dir`, by split and category.

    Every file that is not hidden counts as an image: decoding shows whether it is one. `val` and
    `validation` mean valid. If `valid` or `test` is missing, a tenth of train's images are used
    instead; if there are no splits at all, the sub-folders are categories, and all their images
    are divided. Which images are taken follows from each image's content alone (see `split_of`).
    Nothing on disk changes.

    Raises:
        UserError: a folder is missing, cannot be read or contains no folders.
    """
    root = Path(data_dir)
    if not os.path.isdir(root):
        raise UserError(f"--data_dir {data_dir}: no such folder")
    folders: dict[str, str] = {}
    for name, split in SPLIT_FOLDERS.items():
        if os.path.isdir(root / name):
            if split in folders:
                raise UserError(f"{root}: has both {folders[split]} and {name}; keep only one")
            folders[split] = name
    if folders and "train" not in folders:
        raise UserError(f"{root / 'train'}: no such folder, but there is {shorten(folders)}")
    images = {split: _list_categories(root, f"{name}/") for split, name in folders.items()}
    if not images:
        images = {"train": _list_categories(root, "")}
    _split_train(root, images)
    return {split: images[split] for split in SPLITS}


def _split_train(root: Path, images: dict[str, dict[str, list[str]]]) -> None:
    """Move images of train to the splits that are missing."""
    missing = [split for split in SPLITS if split not in images]
    if not missing:
        return
    for split in missing:
        images[split] = {category: [] for category in images["train"]}
    for category, paths in images["train"].items():
        images["train"][category] = []
        for path in paths:
            split = split_of(root / path)
            images[split if split in missing else "train"][category].append(path)
    counts = [f"{sum(map(len, images[split].values()))} {split}" for split in SPLITS]
    warn(f"{root}: no {' or '.join(missing)} folder: split by content: {', '.join(counts)}")


def split_of(path: str | os.PathLike) -> str:
    """Return the split of an image by its content: 8 of 10 are train's, one each the others'.

    Only the image itself counts: other images that are added or removed do not move it, and two
    copies of an image are in one split. (So shares are 80/10/10 on average only: a rule that makes
    them exact has to move images when others are added.)
    """
    try:
        size = check_regular_file(path).st_size
        with open(path, "rb") as file:
            content = file.read(2**16) + str(size).encode()
    except (OSError, UserError):  # decoding it will report why
        content = b""
    position = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64  # 0-1
    return "train" if position < 0.8 else "valid" if position < 0.9 else "test"


def list_labeled(root: str | os.PathLike, class_to_idx: dict[str, int]) -> list[tuple[str, int]]:
    """List the paths of a labeled folder's images, each with the index of its category.

    Args:
        root: has one sub-folder a category; or it is a data folder, whose test split is used.

    Raises:
        UserError: there is no image, or a category that `class_to_idx` lacks.
    """
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such folder")
    if os.path.isdir(Path(root, "train")) and os.path.isdir(Path(root, "test")):
        root = Path(root, "test")
    images = _list_categories(Path(root), "")
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


def find_images(inputs: Iterable[str]) -> Iterator[str]:
    """Yield the paths that `--input` means; decoding shows whether they are images.

    A folder means all files in it and below, in string order, except hidden ones. Folders that are
    links are skipped, since they may lead back to where they are. A pattern, "photos/*.jpg" or
    "**/*.png", means the files that match, in string order; "-" a list on standard input, one path
    a line.
    """
    for word in inputs:
        if word == "-":
            if hasattr(sys.stdin, "reconfigure"):
                sys.stdin.reconfigure(errors="surrogateescape")
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        elif os.path.isdir(word):
            yield from _files_below(word)
        elif is_pattern(word):
            for path in sorted(glob.glob(word, recursive=True)) or [word]:
                yield from _files_below(path) if os.path.isdir(path) else [path]
        else:
            yield word


def is_pattern(word: str) -> bool:
    """Return whether a word is a pattern, and not the name of an existing file."""
    return glob.has_magic(word) and not os.path.lexists(word)


def _files_below(folder: str) -> Iterator[str]:
    """Yield the files in a folder and below; a folder that cannot be read is yielded itself."""
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(
                (entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink())
                for entry in scanned
            )
    except OSError:
        yield folder
        return
    for name, is_folder, is_link in entries:
        path = os.path.join(folder, name)
        if name[0] != "." and not (is_link and os.path.isdir(path)):
            yield from _files_below(path) if is_folder else [path]


def _list_categories(root: Path, prefix: str) -> dict[str, list[str]]:
    """List the paths of the files in each sub-folder of `root/prefix`, both in string order."""
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
    """Return whether an entry is a folder: no error for circular links, no stat without a link."""
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def load_category_names(path: str | os.PathLike | None = None) -> dict[str, str]:
    """Read a JSON file that maps category folders to names, such as `cat_to_name.json`.

    Args:
        path: None means CATEGORY_NAMES in the working folder, or no names if there is none.

    Raises:
        UserError: the file is missing, is not JSON, or not an object of strings.
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


# ---------------------------------------------------------------- images and views


def load_image(path: str | os.PathLike, report: Callable[[str], object] = warn) -> Image.Image:
    """Decode an image: upright (EXIF) and in sRGB. Training and prediction both use this function.

    See `support.decoding.decode`. A large JPEG is decoded at a size of at least twice RESIZE: a
    photograph of 12 megapixels takes a quarter of the time.

    Args:
        report: called with a line if something in the file had to be guessed.

    Raises:
        UserError: the file is missing, or Pillow cannot read it.
    """
    return decode(path, 2 * RESIZE, report)


def thumbnail(image: Image.Image) -> Image.Image:
    """Return a copy of an image of at most THUMBNAIL pixels, for people to look at."""
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def plain_view(image: Image.Image) -> torch.Tensor:
    """Resize the short side to 256 pixels and cut out the center: (3, 224, 224) uint8."""
    longest = MAX_ASPECT * min(image.size)
    if max(image.size) > longest:  # a line of 1 x 60,000 pixels would become 256 x 15 million
        image = F.center_crop(image, [min(side, longest) for side in image.size[::-1]])
    return F.pil_to_tensor(F.center_crop(F.resize(image, [RESIZE]), [CROP]))


def random_view(image: Image.Image, seed: int) -> torch.Tensor:
    """Cut out a random rectangle, resized and perhaps mirrored: (3, 224, 224) uint8.

    The same `seed` always gives the same rectangle.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        box = RandomResizedCrop.get_params(image, list(CROP_SCALE), list(CROP_RATIO))
        view = F.resized_crop(image, *box, [CROP, CROP])
        view = F.hflip(view) if torch.rand(1) < 0.5 else view
    return F.pil_to_tensor(view)


def load_views(root: str, path: str, numbers: Iterable[int]) -> torch.Tensor:
    """Decode `root/path` once and return some of its views: (len(numbers), 3, 224, 224) uint8.

    View 0 is the plain one, every other a random one. Its seed follows from `path` and the number
    alone, so that a view is always the same.

    Raises:
        UserError: see `load_image`.
    """
    image, views = load_image(os.path.join(root, path)), []
    for number in numbers:
        digest = hashlib.sha256(os.fsencode(f"{number} {path}")).digest()
        seed = int.from_bytes(digest[:6], "big")
        views.append(plain_view(image) if number == 0 else random_view(image, seed))
    return torch.stack(views)


def normalize(
    views: torch.Tensor, means: Sequence[float] = MEANS, stds: Sequence[float] = STDS
) -> torch.Tensor:
    """(N, 3, H, W) uint8 -> float32: range 0-1, minus the means, divided by the deviations."""
    return F.normalize(F.convert_image_dtype(views), list(means), list(stds))

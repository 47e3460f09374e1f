"""The download of Oxford-102 (Nilsback & Zisserman 2008) and its two splits."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from system.downloads import NETWORK_ERRORS, network_timeout
from system.messages import UserError

NUM_CATEGORIES = 102


class LabeledImage(NamedTuple):
    """An image of the archive; the label begins at 0."""

    split: str
    path: str
    label: int


def download_oxford102(
    data_dir: str | os.PathLike,
    split: str = "course",
) -> None:
    """Download Oxford-102, unless `data_dir` exists.

    torchvision downloads and verifies it in `oxford-102.download` beside `data_dir`, which serves
    both splits and may be deleted afterwards. The images are then linked as
    `<data_dir>/{train,valid,test}/<1..102>/image_NNNNN.jpg`, by Oxford's labels.

    Args:
        split: "official" for the paper's 1020/1020/6149 images, or "course" for 80/10/10 per cent
            of each category.

    Raises:
        UserError: it cannot be downloaded or written.
    """
    root = Path(data_dir)
    if root.exists():
        print(f"{root} exists already: nothing to download")
        return
    store = root.parent / "oxford-102.download"
    images = _download(store)
    if split == "course":
        images = _course_split(images)
    _link(images, root, store / "linked")


def _download(store: Path) -> list[LabeledImage]:
    """Download the archive into `store`; returns all images in the official split."""
    from torchvision.datasets import Flowers102

    # If an interrupted run left this folder, torchvision would take it for complete.
    shutil.rmtree(store / "flowers-102" / "jpg", ignore_errors=True)
    images = []
    try:
        with network_timeout():
            for split, name in (("train", "train"), ("valid", "val"), ("test", "test")):
                for path, label in Flowers102(store, name, download=True, loader=str):
                    images.append(LabeledImage(split, path, label))
    except (*NETWORK_ERRORS, RuntimeError, ImportError) as error:
        raise UserError(
            f"cannot download Oxford-102: {error}; put 102flowers.tgz, imagelabels.mat and "
            "setid.mat of https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ into "
            f"{store / 'flowers-102'}"
        ) from error
    return images


def _course_split(images: list[LabeledImage]) -> list[LabeledImage]:
    """Take a tenth of each category for valid and for test, chosen by the files' names."""
    divided = []
    for label in sorted({image.label for image in images}):
        group = [image for image in images if image.label == label]
        group.sort(key=lambda image: hashlib.sha256(Path(image.path).name.encode()).digest())
        tenth = round(len(group) / 10)
        for number, image in enumerate(group):
            split = "train"
            if number < tenth:
                split = "valid"
            elif number < 2 * tenth:
                split = "test"
            divided.append(image._replace(split=split))
    return divided


def _link(images: list[LabeledImage], root: Path, partial: Path) -> None:
    """Link the images as folders of splits and categories: in `partial`, which becomes `root`."""
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for image in images:
            target = partial / image.split / str(image.label + 1) / Path(image.path).name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(image.path, target)
            except OSError:  # a file system without links
                shutil.copyfile(image.path, target)
        os.replace(partial, root)
    except OSError as error:
        raise UserError(f"{root}: cannot write Oxford-102: {error.strerror}") from error

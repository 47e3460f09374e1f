"""The download of Oxford-102 (Nilsback & Zisserman 2008) and its two splits."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from system.downloads import NETWORK_ERRORS, network_timeout
from system.messages import UserError, warn

NUM_CATEGORIES = 102
Labeled = tuple[str, str, int]  # split, path, label from 0


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
        return print(f"{root} exists already: nothing to download")
    images = _download(root.parent / "oxford-102.download")
    if split == "course":
        images = _course_split(images)
    _link(images, root)


def _download(store: Path) -> list[Labeled]:
    """Download the archive into `store`; returns all images in the official split."""
    from torchvision.datasets import Flowers102
    from torchvision.datasets.utils import check_integrity

    # If an interrupted run left this folder, torchvision would take it for complete.
    shutil.rmtree(store / "flowers-102" / "jpg", ignore_errors=True)
    for name, md5 in Flowers102._file_dict.values():
        path = store / "flowers-102" / name
        if path.exists() and not check_integrity(str(path), md5):
            warn(f"{path}: damaged or incomplete; it is deleted and downloaded again")
            path.unlink()
    images: list[Labeled] = []
    try:
        with network_timeout():
            for name in ("train", "val", "test"):
                split = "valid" if name == "val" else name
                data = Flowers102(store, name, download=True, loader=str)
                images += [(split, *data[index]) for index in range(len(data))]
    except (*NETWORK_ERRORS, RuntimeError, ImportError) as error:
        raise UserError(
            f"cannot download Oxford-102: {error}; put 102flowers.tgz, imagelabels.mat and "
            "setid.mat of https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ into "
            f"{store / 'flowers-102'}"
        ) from error
    return images


def _course_split(images: list[Labeled]) -> list[Labeled]:
    """Take a tenth of each category for valid and for test, chosen by the files' names."""
    chosen = []
    for label in sorted({label for *_, label in images}):
        paths = [path for _, path, other in images if other == label]
        paths.sort(key=lambda path: hashlib.sha256(Path(path).name.encode()).digest())
        tenth = round(len(paths) / 10)
        for number, path in enumerate(paths):
            split = ("valid", "test")[number // tenth] if number < 2 * tenth else "train"
            chosen.append((split, path, label))
    return chosen


def _link(images: list[Labeled], root: Path) -> None:
    """Link the images as folders of splits and categories, atomically."""
    partial = root.with_name(f"{root.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for split, path, label in images:
            target = partial / split / str(label + 1) / Path(path).name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:  # a file system without links
                shutil.copyfile(path, target)
        os.replace(partial, root)
    except OSError as error:
        raise UserError(f"{root}: cannot write Oxford-102: {error.strerror}") from error

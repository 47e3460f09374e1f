"""Cut a square of fixed size out of an image, as torchvision's transforms do.

torch and torchvision themselves are imported only for random crops: predict.py runs without them.
"""

import numpy as np
from PIL import Image, ImageOps


def center_crop(image: Image.Image, short: int, size: int, max_aspect: int) -> np.ndarray:
    """Resize the short side of an RGB image and cut out the center: (3, size, size) uint8.

    The long side becomes short * long / short side, rounded down. A cut begins at half of the
    difference of the lengths, rounded to the nearest integer, halves to the even one.

    Args:
        short: pixels of the short side before the cut.
        max_aspect: of an image whose sides have a larger ratio, the middle is used.
    """
    longest = max_aspect * min(image.size)
    if max(image.size) > longest:  # a line of 1 x 60,000 pixels would become 256 x 15 million
        image = _cut_center(image, min(image.width, longest), min(image.height, longest))
    width = int(short * image.width / min(image.size))
    height = int(short * image.height / min(image.size))
    return _channels_first(_cut_center(_resize(image, width, height), size, size))


def random_crop(
    image: Image.Image,
    seed: int,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Resize a random rectangle of an RGB image, perhaps mirrored: (3, size, size) uint8.

    Args:
        seed: the same one always gives the same rectangle.
        scale: least and largest fraction of the image's area.
        ratio: least and largest width to height.
    """
    import torch
    from torchvision.transforms import RandomResizedCrop

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        y, x, height, width = RandomResizedCrop.get_params(image, list(scale), list(ratio))
        is_mirrored = torch.rand(1) < 0.5
    image = _resize(image.crop((x, y, x + width, y + height)), size, size)
    return _channels_first(ImageOps.mirror(image) if is_mirrored else image)


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _cut_center(image: Image.Image, width: int, height: int) -> Image.Image:
    x = round((image.width - width) / 2)
    y = round((image.height - height) / 2)
    return image.crop((x, y, x + width, y + height))


def _channels_first(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

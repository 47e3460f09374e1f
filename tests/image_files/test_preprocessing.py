"""The views of a few odd images: if one changes, PREPROCESSING_VERSION has to rise."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_decoding import BGR, photo

import utils
from image_files.digests import digest_of_file

VERSION = 2  # of the digests below
REMEDY = (
    "the views of this image have changed, and so do features and predictions: raise "
    "PREPROCESSING_VERSION in utils.py, and write the new version and digests into this file"
)


def deep_gray(path: Path) -> None:
    """Write 16 bits of gray, one value of which is transparent."""
    values = np.add.outer(np.arange(200) * 150, np.arange(300) * 100).astype(np.uint16)
    Image.fromarray(values).save(path, transparency=int(values[150, 100]))


def palette_with_transparency(path: Path) -> None:
    """Write 16 colors, of which one is transparent and one half transparent."""
    colors = [(40 * i % 256, 90 * i % 256, 16 * i) for i in range(16)]
    image = Image.fromarray((np.add.outer(np.arange(150), np.arange(120)) // 9 % 16).astype("u1"))
    image.putpalette([value for color in colors for value in color])
    image.save(path, transparency=bytes([0, 128] + [255] * 14))


def rotated_by_the_camera(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo((300, 200)).save(path, exif=exif)


def strip(path: Path) -> None:
    Image.fromarray((np.arange(2000) % 251).astype(np.uint8)[None]).save(path)


def transparent_with_a_color_profile(path: Path) -> None:
    image = photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path, icc_profile=BGR)


def inks(path: Path) -> None:
    photo((257, 301)).convert("CMYK").save(path, "TIFF")


def large(path: Path) -> None:
    """Write more pixels than are converted at once."""
    photo().resize((4200, 4100), Image.Resampling.NEAREST).quantize(16).save(path)


DIGESTS = {
    large: "b63598b53e5c62b2",
    deep_gray: "cfa904b2527a509d",
    palette_with_transparency: "7eca9ff6b0a9f5bc",
    rotated_by_the_camera: "e081f5c3e9ac5955",
    strip: "1304524e8c9af55b",
    transparent_with_a_color_profile: "caf1b20b3c044fd5",
    inks: "214ab0d72df5515e",
}


@pytest.mark.parametrize("write", DIGESTS, ids=lambda write: write.__name__)
def test_views_change_with_the_version_only(tmp_path, write):
    path = tmp_path / "image.png"
    write(path)
    image = utils.load_image(path)
    views = [utils.plain_view(image), utils.plain_view(image, 96), utils.random_view(image, 5)]
    views.append(utils.load_views(str(tmp_path), path.name, digest_of_file(path), [1])[0])
    digest = hashlib.sha256(b"".join(view.tobytes() for view in views)).hexdigest()[:16]
    assert (utils.PREPROCESSING_VERSION, digest) == (VERSION, DIGESTS[write]), REMEDY

"""Decodes image files: upright (EXIF), in 8-bit sRGB, in every format that Pillow reads."""

import contextlib
import functools
import importlib
import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps

from image_files.file_types import describe_file, file_type
from system.files import check_regular_file
from system.messages import UserError, shorten

# Tags of TIFF 6.0.
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
MAXIMUM_TAGS = (341, 281)
MINIMUM_TAGS = (340, 280)
WHITE_IS_ZERO, SIGNED = 0, 2
FLOAT_MAXIMA = (1, 255, 65535)  # of float images without tags
INTEGER_MAXIMA = (255, 65535, 2**31 - 1)  # of 32-bit integers without tags
CLIPPED = 1e-3  # fraction of pixels that may be above the maximum
NEARLY = 16  # of 255: an image whose pixels are all closer to black, or to white, is reported
SRGB_TOLERANCE = 3  # of 255: a profile that changes no color by more is taken for sRGB
THUMBNAIL = 512  # pixels of the longer side
MAX_IN_MEMORY = 2**28  # bytes of a file that is read at once: 256 MB
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")  # chunks that may be too large for Pillow, or damaged

Report = Callable[[str], object]
Tags = Mapping[int, Any]


def open_file(path: str | os.PathLike) -> BinaryIO:
    """Open a file that may be an image: its content in memory, so that it is read once.

    A file of more than MAX_IN_MEMORY bytes is read from the disk whenever it is needed.

    Raises:
        UserError: it is missing, empty, or no regular file.
    """
    size = check_regular_file(path).st_size
    try:
        file = open(path, "rb")
        if size > MAX_IN_MEMORY:
            return file
        with file:
            return io.BytesIO(file.read())
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from error


def decode(file: BinaryIO, name: str | os.PathLike, min_side: int, report: Report) -> Image.Image:
    """Decode an image file to RGB.

    Of several frames the first one is used. A large JPEG is decoded at a half, quarter or eighth of
    its size ("draft mode"), but its sides stay at least `min_side` pixels.

    Args:
        file: from `open_file`.
        name: of the file, for messages.
        report: called with a line that names the file if something had to be guessed.

    Raises:
        UserError: the file is not an image, or is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual metadata; an error still raises
            with open_image(file, name, report) as image:
                if image.format == "EPS":  # Pillow would run Ghostscript on it
                    raise OSError("EPS is a program, not an image")
                pixels = _load(image, file, min_side)
                tags = dict(getattr(image, "tag_v2", {}))
                return _to_srgb(_upright(pixels), tags, lambda line: report(f"{name}: {line}"))
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name}: {describe_file(file)}") from error
    except OSError as error:
        raise UserError(f"{name}: cannot read it: {error.strerror or error}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: too large: {error}") from error
    except Exception as error:  # a decoder's error about a damaged file
        raise UserError(f"{name}: damaged image: {shorten([str(error)])}") from error


# ---------------------------------------------------------------- files with good pixels


def open_image(file: BinaryIO, name: str | os.PathLike, report: Report) -> Image.Image:
    """Open an image file; its pixels are not decoded yet.

    Args:
        name: of the file, for messages.
        report: called with a line if its color profile cannot be read.
    """
    try:
        return Image.open(file)
    except (Image.UnidentifiedImageError, ValueError):  # the latter of limits for compressed text
        if file_type(file) == "HEIC" and _register_heif():
            return Image.open(file)
        content = _read(file)
        if not content.startswith(PNG_SIGNATURE):
            raise
    with contextlib.suppress(Image.UnidentifiedImageError, ValueError):
        return Image.open(io.BytesIO(_without(content, PNG_TEXT)))
    image = Image.open(io.BytesIO(_without(content, (*PNG_TEXT, b"iCCP"))))
    if b"iCCP" in content:
        report(f"{name}: its color profile cannot be read, and is ignored")
    return image


def _read(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _load(image: Image.Image, file: BinaryIO, min_side: int) -> Image.Image:
    """Decode the pixels of an image that `open_image` opened."""
    try:
        return _decode_pixels(image, min_side)
    except OSError:
        if image.format != "JPEG":
            raise
        return _decode_without_end(_read(file), min_side)


def _decode_pixels(image: Image.Image, min_side: int) -> Image.Image:
    """Decode the pixels of an opened image, of a JPEG in draft mode; returns the image."""
    image.draft(None, (min_side, min_side))  # type: ignore[arg-type]
    image.load()
    return image


def _register_heif() -> bool:
    """Let Pillow read HEIC, if the package pillow-heif is installed."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def _without(png: bytes, names: Sequence[bytes]) -> bytes:
    """Return a PNG file without its chunks of these names."""
    chunks = [PNG_SIGNATURE]
    position = len(PNG_SIGNATURE)
    while position < len(png):
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        if png[position + 4 : position + 8] not in names:
            chunks.append(png[position:end])
        position = end
    return b"".join(chunks)


def _decode_without_end(jpeg: bytes, min_side: int) -> Image.Image:
    """Decode a JPEG that lacks its end-of-image marker, if all pixels are there.

    If data are missing, what is appended changes the pixels.

    Raises:
        OSError: pixels are missing.
    """
    end = b"\xff\xd9"
    data = jpeg.rstrip(b"\xff")
    image = _decode_pixels(Image.open(io.BytesIO(data + end)), min_side)
    filler = b"\x55\xaa\x33" * 1000
    other = _decode_pixels(Image.open(io.BytesIO(data + filler + end)), min_side)
    if image.tobytes() != other.tobytes():
        raise OSError("image file is truncated")
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Return an image as its EXIF orientation says, or unchanged if its EXIF data are invalid."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises a dozen types for garbage; the pixels are decoded already
        return image


# ---------------------------------------------------------------- values and colors


def _to_srgb(image: Image.Image, tags: Tags, report: Report) -> Image.Image:
    """Convert any of Pillow's modes to RGB: transparency on white, by its color profile."""
    profile = image.info.get("icc_profile")
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bits(image, tags, report)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    if profile:
        try:
            transform = _transform(profile, image.mode)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            report("its color profile is invalid or of another color space, and is ignored")
            transform = None
        if transform:
            return ImageCms.applyTransform(image, transform) or image
    return image.convert("RGB")


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of a color profile to sRGB; None if it changes no color visibly.

    Raises:
        ImageCms.PyCMSError, OSError: the profile is invalid, or not for this mode.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    target = ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(source, target, mode, "RGB")
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    channels = len(Image.new(mode, (1, 1)).getbands())
    grid = np.stack(np.meshgrid(*[levels] * channels), -1).reshape(9, -1, channels)
    colors = Image.fromarray(
        np.ascontiguousarray(grid.squeeze(-1) if channels == 1 else grid), mode
    )
    converted = ImageCms.applyTransform(colors, transform)
    change = np.abs(np.asarray(colors.convert("RGB"), int) - np.asarray(converted, int))
    return transform if change.max() > SRGB_TOLERANCE else None


def _to_8_bits(image: Image.Image, tags: Tags, report: Report) -> Image.Image:
    """Convert integers of more than 8 bits, or floats, to mode L by the range of their values.

    Raises:
        ValueError: no pixel is finite.
    """
    values = np.array(image, np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("no finite pixel")
    values = np.nan_to_num(values, nan=finite.min(), posinf=finite.max(), neginf=finite.min())
    low, high = _value_range(image.mode, tags, finite, report)
    is_transparent = values == image.info.get("transparency")
    values = ((values - low) * (255 / (high - low))).clip(0, 255)
    if _number(tags.get(PHOTOMETRIC)) == WHITE_IS_ZERO:
        values = 255 - values
    values[is_transparent] = 255
    if values.max() < NEARLY or values.min() > 255 - NEARLY:
        color = "black" if values.max() < NEARLY else "white"
        report(f"comes out nearly {color}")
    return Image.fromarray(values.round().astype(np.uint8))


def _value_range(mode: str, tags: Tags, values: np.ndarray, report: Report) -> tuple[float, float]:
    """Return the values of black and white: from the tags, from the type, or guessed.

    Args:
        values: (N,) all finite values.
    """
    high = next((_number(tags[tag]) for tag in MAXIMUM_TAGS if tag in tags), None)
    low = next((_number(tags[tag]) for tag in MINIMUM_TAGS if tag in tags), 0.0)
    if high is not None and low is not None and high > low:
        return low, high
    if values.min() < 0:
        report("has negative values: its darkest value becomes black, its brightest white")
        return values.min(), max(values.max(), values.min() + 1e-30)
    bits = int(_number(tags.get(BITS, 16)) or 16)
    if mode == "F":
        return 0, _smallest(FLOAT_MAXIMA, values)
    if bits <= 16:
        is_signed = _number(tags.get(SAMPLE_FORMAT, 1)) == SIGNED
        maximum = 2 ** (bits - is_signed) - 1
        if tags and bits == 16 and values.max() <= 256 and values.max() > 1:
            report("has 16 bits, but values up to 256 only: they are taken for 8 bits")
            return 0, 255
        return 0, maximum
    maximum = _smallest(INTEGER_MAXIMA, values)
    report(f"has integers of {bits} bits: white is assumed to be {maximum}")
    return 0, maximum


def _smallest(maxima: tuple[float, ...], values: np.ndarray) -> float:
    """Return the smallest maximum that nearly all values are within, or else their maximum."""
    for maximum in maxima:
        if (values > maximum).mean() <= CLIPPED:
            return maximum
    return values.max()


def _number(value) -> float | None:
    """Return the first of a tag's numbers, if it is one."""
    value = value[0] if isinstance(value, tuple) and value else value
    return float(value) if isinstance(value, (int, float)) else None


def thumbnail(image: Image.Image) -> Image.Image:
    """Return a copy of an image of at most THUMBNAIL pixels, for people to look at."""
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image

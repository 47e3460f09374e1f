"""Decodes image files: upright (EXIF), in 8-bit sRGB, in every format that Pillow reads."""

import contextlib
import functools
import importlib
import io
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageOps

from image_files.file_types import CONVERT, describe_file, file_type
from system.files import check_regular_file
from system.messages import UserError, shorten

# Tags of TIFF 6.0, and of EXIF.
SUBFILE_TYPE, BITS, PHOTOMETRIC, ORIENTATION, SAMPLE_FORMAT = 254, 258, 262, 274, 339
TILE_SIDES = (322, 323)
MAXIMUM_TAGS = (341, 281)
MINIMUM_TAGS = (340, 280)
REDUCED, WHITE_IS_ZERO, SIGNED = 1, 0, 2
FLOAT_MAXIMA = (1, 255, 65535)  # of float images without tags
INTEGER_MAXIMA = (255, 65535, 2**31 - 1)  # of 32-bit integers without tags
CLIPPED = 1e-3  # fraction of pixels that may be above the maximum
NEARLY = 16  # of 255: an image whose pixels are all closer to black, or to white, is reported
SRGB_TOLERANCE = 3  # of 255: a profile that changes no color by more is taken for sRGB
THUMBNAIL = 512  # pixels of the longer side
MAX_IN_MEMORY = 2**26  # bytes of a file that is read at once: 64 MB
# Together with a program of 0.3 GB, nothing that is decoded takes more than 1.2 GB.
MAX_DECODED = 8 * 10**8  # bytes for the pixels of an image, and for its decoder
# Bytes a pixel at the peak of decoding (benchmarks/decoding_memory.py).
DECODED_BYTES = {"PNG": 4, "WEBP": 16, "JPEG2000": 20, "AVIF": 10, "HEIF": 12}
OTHER_BYTES = 8  # progressive JPEG with four channels, TIFF in one strip
LARGE = 2**24  # pixels; a larger image is reduced before its colors are converted
MAX_NARROW = 2**26  # pixels of an image whose short side is too short to be reduced
MAX_NARROW_DEEP = 2**24  # if a sample has more than 8 bits
BAND = 2**22  # pixels that are reduced at once
MAX_IN_PYTHON = 2**22  # pixels of a format that Pillow decodes in Python: some 8 seconds
JPEGS = ("JPEG", "MPO")
MAX_SCANNED = 2**32  # pixels times scans of a JPEG: some 6 seconds
START_OF_SCAN = b"\xff\xda"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_BITS = 24  # offset of the byte with the bits of a sample
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
    its size ("draft mode"); another image of more than LARGE pixels is reduced by a whole number.
    The sides stay at least `min_side` pixels.

    Args:
        file: from `open_file`.
        name: of the file, for messages.
        report: called with a line that names the file if something had to be guessed.

    Raises:
        UserError: the file is not an image, is damaged, or would take too much memory or time.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual metadata; an error still raises
            with open_image(file, name, report) as image:
                tags = dict(getattr(image, "tag_v2", {}))
                _check_size(image, file, min_side, tags)
                _check_content(image, tags)
                pixels = _load(image, file, min_side)
                if image.format == "PNG" and "transparency" in image.info:
                    pixels = _apply_transparent_color(pixels, file, name)
                pixels = _reduce(pixels, min_side)
                return _to_srgb(_upright(pixels), tags, lambda line: report(f"{name}: {line}"))
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name}: {describe_file(file)}") from error
    except OSError as error:
        raise UserError(f"{name}: cannot read it: {error.strerror or error}") from error
    except Image.DecompressionBombError as error:
        reason = str(error).partition(", could be")[0]  # a warning of Pillow's about attacks
        raise UserError(f"{name}: too large: {reason}") from error
    except Exception as error:  # a decoder's error about a damaged file
        raise UserError(f"{name}: damaged image: {shorten([str(error)])}") from error


# ---------------------------------------------------------------- limits


def _check_content(image: Image.Image, tags: Tags) -> None:
    """Raise OSError if what Pillow would read is not the image that a person sees."""
    if image.format == "EPS":  # Pillow would run Ghostscript on it
        raise OSError("EPS is a program, not an image")
    if int(_number(tags.get(SUBFILE_TYPE)) or 0) & REDUCED:
        raise OSError(
            f"only a preview of {image.width} x {image.height} pixels can be read, as of a "
            f"camera's RAW file: {CONVERT}"
        )


def _check_size(image: Image.Image, file: BinaryIO, min_side: int, tags: Tags) -> None:
    """Check that decoding an image takes at most 1 GB, and some seconds.

    Raises:
        Image.DecompressionBombError: it would take more.
    """
    pixels = image.width * image.height
    tile_sides = [_number(tags.get(tag)) or 0 for tag in TILE_SIDES]
    pixels = max(pixels, int(tile_sides[0] * tile_sides[1]))  # all of a tile is decoded
    most = MAX_DECODED // DECODED_BYTES.get(image.format or "", OTHER_BYTES)
    if _is_deep(image) and (min(image.size) < 2 * min_side or "transparency" in image.info):
        most = min(most, MAX_NARROW_DEEP)
    elif min(image.size) < 2 * min_side:  # it cannot be reduced
        most = min(most, MAX_NARROW)
    if any(codec in Image.DECODERS for codec, *_ in getattr(image, "tile", [])):
        most = min(most, MAX_IN_PYTHON)
    if pixels > most:
        raise Image.DecompressionBombError(
            f"{image.width:,} x {image.height:,} pixels; of an image like this, {most / 1e6:.0f} "
            "million are read at most"
        )
    if image.format in JPEGS and pixels > MAX_SCANNED // 2**16:
        scans = _read(file).count(START_OF_SCAN)
        if pixels * scans > MAX_SCANNED:
            raise Image.DecompressionBombError(
                f"{image.width:,} x {image.height:,} pixels in {scans} scans"
            )


def _is_deep(image: Image.Image) -> bool:
    """Return whether an image has more than 8 bits a sample, as Pillow decodes it."""
    return image.mode == "F" or image.mode.startswith("I")


def _reduce(image: Image.Image, min_side: int) -> Image.Image:
    """Return a large image at a fraction of its size: means of factor x factor pixels.

    Rows are converted band by band, so that there is no second copy of all pixels.
    """
    factor = min(image.size) // min_side
    if image.width * image.height <= LARGE or factor < 2:
        return image
    mode = image.mode
    if image.has_transparency_data and not _is_deep(image):
        mode = "RGBA"
    elif mode.startswith("I"):
        mode = "I"
    elif mode not in ("L", "RGB", "CMYK", "F"):
        mode = "RGB"
    rows = max(1, BAND // (image.width * factor)) * factor
    width, height = (math.ceil(side / factor) for side in image.size)
    reduced = Image.new(mode, (width, height))
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        reduced.paste(band.convert(mode).reduce(factor), (0, top // factor))
    reduced.info = {n: v for n, v in image.info.items() if n != "transparency" or mode != "RGBA"}
    with contextlib.suppress(Exception):  # see `_upright`
        reduced.getexif()[ORIENTATION] = image.getexif()[ORIENTATION]
    return reduced


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
    """Return the content of a file, of a large one its first MAX_IN_MEMORY bytes."""
    file.seek(0)
    return file.read(MAX_IN_MEMORY)


def _load(image: Image.Image, file: BinaryIO, min_side: int) -> Image.Image:
    """Decode the pixels of an image that `open_image` opened."""
    try:
        return _decode_pixels(image, min_side)
    except OSError:
        if image.format not in JPEGS or file.seek(0, os.SEEK_END) > MAX_IN_MEMORY:
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
    """Return a PNG file without its chunks of these names, up to the first that has none."""
    shorter = bytearray(PNG_SIGNATURE)
    position = len(PNG_SIGNATURE)
    while (name := png[position + 4 : position + 8]).isalpha():
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        if name not in names:
            shorter += png[position:end]
        position = end
    return bytes(shorter)


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


def _apply_transparent_color(
    image: Image.Image, file: BinaryIO, name: str | os.PathLike
) -> Image.Image:
    """Return a PNG with its transparent color in the values that its pixels have.

    The file has the color with its own bits a sample: of 2 bits, Pillow makes 1 to 85, and of 16
    bits, it reads the upper 8 only.
    """
    color = image.info["transparency"]
    file.seek(PNG_BITS)
    bits = file.read(1)[0]
    if image.mode in ("1", "L") and bits < 8:
        image.info["transparency"] = color * 255 // (2**bits - 1)
    elif image.mode == "RGB" and bits == 16:
        lower: Any = open_image(file, name, lambda line: None)
        codec, extents, offset, _ = lower.tile[0]
        lower.tile = [(codec, extents, offset, "RGB;16L")]
        lower.load()
        channels = [*image.split(), *lower.split()]
        values = [value >> 8 for value in color] + [value & 255 for value in color]
        opaque = Image.new("L", image.size)
        for channel, value in zip(channels, values, strict=True):
            different = channel.point([255 * (level != value) for level in range(256)])
            opaque = ImageChops.lighter(opaque, different)
        image.putalpha(opaque)
        del image.info["transparency"]
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says, and return it; not if its EXIF is invalid."""
    # Pillow raises a dozen types for garbage; the pixels are decoded already.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


# ---------------------------------------------------------------- values and colors


def _to_srgb(image: Image.Image, tags: Tags, report: Report) -> Image.Image:
    """Convert any of Pillow's modes to RGB: transparency on white, by its color profile."""
    profile = image.info.get("icc_profile")
    if _is_deep(image):
        image = _to_8_bits(image, tags, report)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
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
    return image if image.mode == "RGB" else image.convert("RGB")


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

"""image_files/decoding.py: what pixels mean, formats, good pixels with invalid metadata, colors."""

import io
import os
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TIMEOUT, draw, not_root
from PIL import Image, ImageCms

from image_files import decoding
from image_files.decoding import decode, open_file
from system.messages import UserError

SIDE = 64
RAMP = np.add.outer(np.arange(SIDE), np.arange(SIDE)) * 2  # (64, 64), 0-252, as seen by people


def read(path: Path, min_side: int = 512) -> tuple[np.ndarray, list[str]]:
    """Decode an image: its pixels as int, and the reported lines."""
    lines: list[str] = []
    with open_file(path) as file:
        return np.asarray(decode(file, path, min_side, lines.append)).astype(int), lines


def tiff(path: Path, data: bytes, bits: int, sample_format: int = 1, photometric: int = 1, **tags):
    """Write an uncompressed gray TIFF of 64 x 64 pixels; `tags` are t341=... for tag 341."""
    entries = {256: (3, SIDE), 257: (3, SIDE), 258: (3, bits), 259: (3, 1), 262: (3, photometric)}
    entries |= {277: (3, 1), 278: (3, SIDE), 279: (4, len(data)), 339: (3, sample_format)}
    entries |= {int(name[1:]): (3, value) for name, value in tags.items()}
    entries[273] = (4, 8 + 2 + 12 * (len(entries) + 1) + 4)
    directory = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<I" if kind == 4 else "<Hxx", value)
        for tag, (kind, value) in sorted(entries.items())
    )
    header = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)
    path.write_bytes(header + data)


def packed_12(values: np.ndarray) -> bytes:
    """Pack 12-bit values, two in three bytes, the high bits first."""
    pairs = values.reshape(-1, 2).astype(np.uint32)
    return b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs.tolist())


TIFFS = {
    "12 bits, packed": lambda p: tiff(p, packed_12(RAMP * 16 + 8), 12),
    "16 bits": lambda p: tiff(p, (RAMP * 257).astype("<u2").tobytes(), 16),
    "16 bits, white is zero": lambda p: tiff(
        p, (65535 - RAMP * 257).astype("<u2").tobytes(), 16, photometric=0
    ),
    "16 bits, signed": lambda p: tiff(p, (RAMP * 128).astype("<i2").tobytes(), 16, 2),
    "12 of 16 bits by its tag": lambda p: tiff(
        p, (RAMP * 16).astype("<u2").tobytes(), 16, t281=4080
    ),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_gray_values_mean_what_the_tags_say(tmp_path, kind):
    TIFFS[kind](tmp_path / "a.tif")
    pixels, lines = read(tmp_path / "a.tif")
    assert np.abs(pixels - RAMP[..., None]).max() <= 2 and lines == []


@pytest.mark.parametrize("maximum", [1, 255])
def test_a_pixel_above_the_range_is_clipped_and_changes_no_other(tmp_path, maximum):
    values = RAMP * (maximum / 255)
    values[0, 0] = maximum * 1.01
    tiff(tmp_path / "a.tif", values.astype("<f4").tobytes(), 32, 3)
    pixels, _ = read(tmp_path / "a.tif")
    assert pixels[0, 0].tolist() == [255] * 3
    assert np.abs(pixels - RAMP[..., None])[1:].max() <= 1


def test_where_no_tag_says_the_range_it_is_guessed_and_reported(tmp_path):
    tiff(tmp_path / "a.tif", RAMP.astype("<i4").tobytes(), 32, 2)
    pixels, [line] = read(tmp_path / "a.tif")
    assert np.abs(pixels - RAMP[..., None]).max() <= 1
    assert str(tmp_path / "a.tif") in line and "255" in line
    tiff(tmp_path / "b.tif", RAMP.astype("<u2").tobytes(), 16)
    pixels, [line] = read(tmp_path / "b.tif")
    assert np.abs(pixels - RAMP[..., None]).max() <= 1 and "b.tif" in line


@pytest.mark.parametrize(("offset", "word"), [(0, "black"), (62000, "white")])
def test_an_image_that_is_nearly_black_or_white_is_reported(tmp_path, offset, word):
    Image.fromarray((RAMP * 12 + offset).astype(np.uint16)).save(tmp_path / "a.png")
    pixels, [line] = read(tmp_path / "a.png")
    assert abs(pixels.max() - (252 * 12 + offset) / 257) <= 1  # not rescaled
    assert "a.png" in line and f"nearly {word}" in line


def test_values_that_are_not_finite_are_ignored_unless_all_are(tmp_path):
    values = RAMP / 255
    values[0, :3] = np.nan, np.inf, -np.inf
    tiff(tmp_path / "a.tif", values.astype("<f4").tobytes(), 32, 3)
    pixels, _ = read(tmp_path / "a.tif")
    assert np.abs(pixels - RAMP[..., None])[1:].max() <= 1
    tiff(tmp_path / "b.tif", np.full((SIDE, SIDE), np.nan, "<f4").tobytes(), 32, 3)
    with pytest.raises(UserError, match="no finite pixel"):
        read(tmp_path / "b.tif")


# ---------------------------------------------------------------- formats and modes


# What each value of EXIF's tag 0x0112 means, as steps from the upright to the stored image: mirror
# it horizontally (0 or 1 times), then rotate it counterclockwise by 90 degrees (0 to 3 times).
ORIENTATIONS = {1: (0, 0), 2: (1, 0), 3: (0, 2), 4: (1, 2), 5: (1, 1), 6: (0, 1), 7: (1, 3)}
ORIENTATIONS[8] = (0, 3)


@pytest.mark.parametrize("number", ORIENTATIONS)
def test_every_orientation_is_turned_upright(tmp_path, number):
    upright = np.array(draw(2, 7, 64, 48))
    mirror, rotations = ORIENTATIONS[number]
    stored = np.rot90(upright[:, ::-1] if mirror else upright, rotations)
    exif = Image.Exif()
    exif[0x0112] = number
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png")[0], upright)


RGB = np.array(draw(2, 3, 40, 30))
GRAY = RGB[..., 1]
DEEP = (np.arange(1200).reshape(30, 40) * 54 + 100).astype(np.uint16)  # 100 to 64,846
ALPHA = np.linspace(0, 255, 1200).astype(np.uint8).reshape(30, 40)


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blend gray or RGB pixels with a white background."""
    pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)
    opacity = alpha[..., None] / 255
    return pixels * opacity + 255 * (1 - opacity)


def save(pixels, mode=None, **options):
    """Return a function that saves pixels, or an image, with the options of `Image.save`."""

    def save_to(path):
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        (image.convert(mode) if mode else image).save(path, **options)

    return save_to


def palette() -> Image.Image:
    """Return RGB with a palette of 16 colors."""
    return Image.fromarray(RGB).quantize(16)


def paletted(transparent: dict[int, int]) -> np.ndarray:
    """Return the pixels of `palette()` on white, with the alpha of these entries."""
    image = palette()
    alpha = np.full(256, 255, np.uint8)
    alpha[list(transparent)] = list(transparent.values())
    return on_white(np.array(image.convert("RGB")), alpha[np.array(image)])


SECOND_FRAME = {"save_all": True, "append_images": [Image.fromarray(255 - RGB)]}

UPSIDE_DOWN = Image.Exif()
UPSIDE_DOWN[0x0112] = 3

# Format and mode: a function that writes the file, the expected pixels, their largest difference.
FORMATS = {
    "png L, transparent": (
        save(GRAY, format="png", transparency=int(GRAY[0, 0])),
        np.where(GRAY == GRAY[0, 0], 255, GRAY),
        0,
    ),
    "png 1": (save(GRAY > 128, format="png"), (GRAY > 128) * 255, 0),
    "png RGBA": (save(np.dstack([RGB, ALPHA]), format="png"), on_white(RGB, ALPHA), 1),
    "png P": (save(palette(), format="png"), paletted({}), 0),
    "png P, alpha": (
        save(palette(), format="png", transparency=bytes([255, 9, 200, 0])),
        paletted({1: 9, 2: 200, 3: 0}),
        1,
    ),
    "png I;16, transparent": (
        save(DEEP, format="png", transparency=int(DEEP[3, 4])),
        np.where(DEEP == DEEP[3, 4], 255, DEEP / 257),
        1,
    ),
    "gif, two frames": (save(palette(), format="gif", **SECOND_FRAME), paletted({}), 0),
    "gif, transparent": (save(palette(), format="gif", transparency=3), paletted({3: 0}), 0),
    "webp, two frames": (save(RGB, format="webp", lossless=True, **SECOND_FRAME), RGB, 0),
    "bmp RGB": (save(RGB, format="bmp"), RGB, 0),
    "tiff RGB": (save(RGB, format="tiff", compression="tiff_lzw"), RGB, 0),
    "tiff, upside down": (save(RGB[::-1, ::-1], format="tiff", exif=UPSIDE_DOWN), RGB, 0),
    "tiff I;16B": (save(DEEP.astype(">u2"), format="tiff"), DEEP / 257, 1),
    "tiff I": (save(DEEP.astype(np.int32), format="tiff"), DEEP / 257, 1),
    "tiff I, 32 bits": (
        save(DEEP.astype(np.int32) * 30_000 - 10**9, format="tiff"),
        (DEEP - 100) / (DEEP.max() - 100) * 255,
        1,
    ),
    "tiff CMYK": (save(RGB, "CMYK", format="tiff"), RGB, 1),
    "tiff LAB": (save(RGB, "LAB", format="tiff"), RGB, 20),
    "ppm, 16 bits": (
        lambda path: path.write_bytes(b"P5 40 30 65535\n" + DEEP.astype(">u2").tobytes()),
        DEEP / 257,
        1,
    ),
    "jpeg RGB": (save(RGB, format="jpeg", quality=98, subsampling=0), RGB, 12),
    "jpeg CMYK, as Adobe": (save(RGB, "CMYK", format="jpeg", quality=98), RGB, 20),
}


@pytest.mark.parametrize("case", FORMATS)
def test_every_format_and_mode_becomes_rgb_whatever_the_name(tmp_path, case):
    write, expected, tolerance = FORMATS[case]
    path = tmp_path / "image.txt"
    write(path)
    expected = np.broadcast_to(np.float64(expected).reshape(30, 40, -1), (30, 40, 3))
    pixels, _ = read(path)
    assert pixels.shape == (30, 40, 3)
    assert abs(pixels - expected.round()).max() <= tolerance


NOT_MEANS = ("png I;16, transparent", "tiff I, 32 bits")  # their values follow from all pixels
REDUCED = [case for case in FORMATS if "jpeg" not in case and case not in NOT_MEANS]


@pytest.mark.parametrize("case", REDUCED)
def test_a_large_image_is_reduced_before_its_colors_are_converted(tmp_path, monkeypatch, case):
    """Pixels are means of 2 x 2 pixels; with a part of the rows at a time."""
    write, expected, tolerance = FORMATS[case]
    write(tmp_path / "image")
    expected = np.broadcast_to(np.float64(expected).reshape(30, 40, -1), (30, 40, 3))
    means = expected.reshape(15, 2, 20, 2, 3).mean((1, 3))
    monkeypatch.setattr(decoding, "LARGE", 1199)
    monkeypatch.setattr(decoding, "BAND", 320)
    pixels, _ = read(tmp_path / "image", min_side=15)
    assert pixels.shape == (15, 20, 3)
    assert abs(pixels - means).max() <= tolerance + 5
    assert read(tmp_path / "image", min_side=16)[0].shape == (30, 40, 3)


def test_a_decompression_bomb_is_refused(tmp_path):
    """The header of a small file declares 100,000 x 100,000 pixels."""
    path = tmp_path / "bomb.png"
    draw(0, 0).save(path)
    png = path.read_bytes()
    header = chunk(b"IHDR", struct.pack(">II", 100_000, 100_000) + png[24:29])
    path.write_bytes(png[:8] + header + png[33:])
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: too large: .* pixels$"):
        read(path)


PEAK = """
import sys
import utils
try:
    utils.load_plain_view(sys.argv[1])
    print("read")
except utils.UserError as error:
    print(error)
lines = open("/proc/self/status").read().splitlines()
print(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
"""


def png_of_zeros(path: Path, side: int, bits: int, color_type: int) -> None:
    """Write a PNG of side x side pixels that are all 0."""
    channels = {0: 1, 6: 4}[color_type]
    row = bytes(1 + side * channels * bits // 8)
    compressor = zlib.compressobj(1)
    pixels = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    header = struct.pack(">IIBBBBB", side, side, bits, color_type, 0, 0, 0)
    path.write_bytes(png_of([(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]))


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Return a PNG of these chunks."""
    return decoding.PNG_SIGNATURE + b"".join(chunk(name, data) for name, data in chunks)


def chunk(name: bytes, data: bytes, flipped: int = 0) -> bytes:
    """Return a chunk of a PNG; bits of its checksum may be flipped."""
    checksum = zlib.crc32(name + data) ^ flipped
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


LARGE_FILES = {
    "16 bits": (lambda path: png_of_zeros(path, 13_300, 16, 0), "read"),
    "RGBA": (lambda path: png_of_zeros(path, 10_000, 8, 6), "read"),
    "WebP": (
        lambda path: Image.new("RGB", (8000, 8000)).save(path, "WEBP", quality=1, method=0),
        "too large: 8,000 x 8,000 pixels; of an image like this, 50 million",
    ),
    "a PNG that goes on with zeros": (
        lambda path: path.write_bytes(decoding.PNG_SIGNATURE + bytes(10**8)),
        "not an image",
    ),
}


@pytest.mark.parametrize("case", LARGE_FILES)
def test_no_image_takes_more_than_a_gigabyte(tmp_path, case):
    if not Path("/proc/self/status").exists():
        pytest.skip("this system has no /proc, which says how much memory a process took")
    write, expected = LARGE_FILES[case]
    write(tmp_path / "image")
    command = [sys.executable, "-c", PEAK, tmp_path / "image"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    line, kilobytes = done.stdout.splitlines()
    assert expected in line
    assert int(kilobytes) * 1024 < 1.0e9


def test_a_jpeg_of_many_scans_is_refused(tmp_path):
    """Each costs as much time as all pixels, and the last one may be as short as 59 bytes."""
    photo((300, 300)).convert("L").save(tmp_path / "a.jpg", progressive=True)
    assert read(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    last = content[content.rfind(decoding.START_OF_SCAN) : -2]
    (tmp_path / "a.jpg").write_bytes(content[:-2] + last * 50_000 + content[-2:])
    with pytest.raises(UserError, match="too large: 300 x 300 pixels in 5.... scans"):
        read(tmp_path / "a.jpg")


def test_the_end_of_a_file_that_is_no_image_is_not_read(tmp_path):
    photo((400, 300)).save(tmp_path / "a.jpg")
    os.truncate(tmp_path / "a.jpg", 2 * 10**9)  # which take no place on the disk
    with open_file(tmp_path / "a.jpg") as file:
        tracemalloc.start()
        decode(file, "a.jpg", 96, [].append)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2 * decoding.MAX_IN_MEMORY


def test_a_tile_that_is_larger_than_the_image_counts(tmp_path):
    tiff(tmp_path / "a.tif", bytes(SIDE**2), 8, t322=20_000, t323=20_000)
    with pytest.raises(UserError, match="too large: 64 x 64 pixels"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["qoi", "ppm"])
def test_what_pillow_decodes_in_python_is_smaller(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    header = b"qoif" + struct.pack(">II", 3000, 3000) + b"\3\0"
    path.write_bytes(header if suffix == "qoi" else b"P3 3000 3000 255 1 2 3")
    with pytest.raises(UserError, match="too large: 3,000 x 3,000 pixels; .* 4 million"):
        read(path)


def test_a_preview_is_not_taken_for_the_photograph(tmp_path):
    photo().save(tmp_path / "a.nef", "TIFF", tiffinfo={254: 1})
    with pytest.raises(UserError, match="only a preview of 150 x 120 pixels can be read, as of a"):
        read(tmp_path / "a.nef")


def packed(values: np.ndarray, bits: int) -> bytes:
    """Return samples (height, width, channels) as the rows of a PNG: with filter 0, compressed."""
    rows = []
    for row in values.reshape(len(values), -1).tolist():
        digits = "".join(f"{value:0{bits}b}" for value in row)
        rows.append(bytes(1) + int(digits, 2).to_bytes(len(digits) // 8, "big"))
    return zlib.compress(b"".join(rows))


@pytest.mark.parametrize(
    ("bits", "color_type"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)]
)
def test_the_transparent_color_of_a_png_has_the_files_bits(tmp_path, bits, color_type):
    """Of 16 bits, one color differs from it in the lower 8 only."""
    channels = 3 if color_type else 1
    most = 2**bits - 1
    values = np.random.default_rng(0).integers(0, most + 1, (16, 16, channels))
    values[8:] = values[0, 0]
    values[9, 9, 0] ^= 1
    header = struct.pack(">IIBBBBB", 16, 16, bits, color_type, 0, 0, 0)
    color = struct.pack(f">{channels}H", *values[0, 0])
    chunks = [(b"IHDR", header), (b"tRNS", color), (b"IDAT", packed(values, bits)), (b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(png_of(chunks))
    pixels, _ = read(tmp_path / "a.png")
    is_transparent = (values == values[0, 0]).all(-1, keepdims=True)
    expected = np.broadcast_to(np.where(is_transparent, 255, values * 255 / most), (16, 16, 3))
    assert not is_transparent[9, 9] and is_transparent.sum() >= 127
    assert abs(pixels - expected).max() <= 1


def test_a_program_in_postscript_is_not_executed(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n\n{}loop")
    with pytest.raises(UserError, match="image.jpg: cannot read it: EPS is a program, not an"):
        read(path)


@pytest.mark.parametrize("case", [case for case in FORMATS if "two frames" not in case])
def test_a_truncated_image_is_refused(tmp_path, case):
    write, path = FORMATS[case][0], tmp_path / "image"
    write(path)
    content = path.read_bytes()
    for size in range(0, len(content) * 3 // 4, len(content) // 12):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: "):
            read(path)


def test_an_image_that_may_not_be_read_is_named(locked_folder):
    path = locked_folder / "mine.png"
    draw(0, 0).save(path)
    path.chmod(0)
    locked_folder.chmod(0o755)
    try:
        with pytest.raises(UserError, match="mine.png: cannot read it: Permission"), not_root():
            read(path)
    finally:
        path.unlink()


# ---------------------------------------------------------------- good pixels


def photo(size: tuple[int, int] = (150, 120)) -> Image.Image:
    """Draw an image of soft colors, which JPEG changes little."""
    x = np.linspace(0, 1, size[0])[None, :, None]
    y = np.linspace(0, 1, size[1])[:, None, None]
    waves = np.sin(x * [5, 9, 2] + y * [3, 1, 8]) * 110 + 128
    return Image.fromarray(waves.round().astype(np.uint8))


LARGE_TEXT = b"key\0\0" + zlib.compress(bytes(3 * 2**20))
PNGS = {
    "3 MB of compressed text": (b"zTXt", LARGE_TEXT),
    "3 MB of compressed color profile": (b"iCCP", LARGE_TEXT),
    "EXIF data of garbage": (b"eXIf", b"Exif\0\0garbage" + bytes(range(200))),
    "EXIF data of text": (b"eXIf", b"no TIFF header here"),
    "text with another checksum": (b"tEXt", b"key\0text", 1),
    "a color profile with another checksum": (b"iCCP", b"key\0\0" + zlib.compress(bytes(99)), 1),
    "a color profile of garbage": (b"iCCP", b"key\0\0" + zlib.compress(b"garbage" * 30)),
}


@pytest.mark.parametrize("kind", PNGS)
def test_good_pixels_with_invalid_metadata_are_read(tmp_path, kind):
    photo().save(tmp_path / "a.png")
    png = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(png[:33] + chunk(*PNGS[kind]) + png[33:])
    pixels, lines = read(tmp_path / "a.png")
    assert (pixels == np.asarray(photo())).all()
    assert len(lines) == ("profile" in kind)


@pytest.mark.parametrize("is_progressive", [False, True])
@pytest.mark.parametrize("size", [(150, 120), (1700, 1300)])
def test_a_jpeg_without_its_end_is_read_if_all_pixels_are_there(tmp_path, is_progressive, size):
    file = io.BytesIO()
    photo(size).save(file, "JPEG", progressive=is_progressive)
    jpeg = file.getvalue()
    (tmp_path / "whole.jpg").write_bytes(jpeg)
    expected, _ = read(tmp_path / "whole.jpg")
    for missing in (1, 2):
        (tmp_path / "a.jpg").write_bytes(jpeg[:-missing])
        assert (read(tmp_path / "a.jpg")[0] == expected).all()
    for length in (len(jpeg) // 2, int(len(jpeg) * 0.9), len(jpeg) - 40):
        (tmp_path / "a.jpg").write_bytes(jpeg[:length])
        with pytest.raises(UserError, match="a.jpg"):
            read(tmp_path / "a.jpg")


# ---------------------------------------------------------------- colors

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# A color space whose first channel is blue, and whose last one is red.
BGR = SRGB.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_colors_are_those_of_the_profile(tmp_path, format):
    options = {"quality": 95, "subsampling": 0} if format == "JPEG" else {}
    options |= {"lossless": True} if format == "WEBP" else {}
    colors = np.asarray(photo())
    Image.fromarray(colors[..., ::-1]).save(tmp_path / "a", format, icc_profile=BGR, **options)
    pixels, lines = read(tmp_path / "a")
    assert np.abs(pixels - colors).mean() < 2 and lines == []
    photo().save(tmp_path / "b.png", icc_profile=SRGB)
    assert (read(tmp_path / "b.png")[0] == colors).all()  # not a bit has changed


def test_a_damaged_text_costs_no_color_profile(tmp_path):
    photo().save(tmp_path / "a.png", icc_profile=BGR)
    expected, _ = read(tmp_path / "a.png")
    assert (expected != np.asarray(photo())).any()
    png = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(png[:33] + chunk(b"tEXt", b"a\0bc", 1) + png[33:])
    pixels, lines = read(tmp_path / "b.png")
    assert (pixels == expected).all() and lines == []


def test_a_profile_of_another_color_space_is_ignored_and_reported(tmp_path):
    photo().convert("L").save(tmp_path / "a.png", icc_profile=BGR)
    pixels, [line] = read(tmp_path / "a.png")
    assert (pixels[..., 0] == np.asarray(photo().convert("L"))).all()
    assert "a.png" in line and "profile" in line

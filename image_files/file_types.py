"""What a file is, by its first bytes, if it is not an image that Pillow reads."""

from typing import BinaryIO

HEADER_BYTES = 512
UNKNOWN = "not an image (or of an unknown format)"
CONVERT = "convert it to JPEG or PNG"

# Offset, bytes in lower case, what the file is and what to do. The first that fits counts.
SIGNATURES: list[tuple[int, bytes, str]] = [
    (0, b"version https://git-lfs", "a Git LFS pointer, not the image: run `git lfs pull`"),
    (0, b"<!doctype html", "an HTML page, not an image: download the image itself"),
    (0, b"<html", "an HTML page, not an image: download the image itself"),
    (0, b"<?xml", f"an XML or SVG file, not an image of pixels: {CONVERT}"),
    (0, b"<svg", f"an SVG drawing, not an image of pixels: {CONVERT}"),
    (0, b"%pdf", "a PDF document, not an image: extract its images"),
    (0, b"pk\x03\x04", "a ZIP archive (or an office document), not an image: unpack it"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (4, b"ftypavi", f"an AVIF image: use a newer Pillow, or {CONVERT}"),
    (4, b"ftypcrx", f"a RAW photograph (CR3): {CONVERT}"),
    (4, b"ftyp", "a video (MP4 or QuickTime), not an image: extract its frames"),
    (4, b"jxl ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
]
PLUGINS = {
    "HEIC": "an HEIC image: `pip install pillow-heif`, or " + CONVERT,
    "JPEG XL": "a JPEG XL image: `pip install pillow-jxl-plugin`, or " + CONVERT,
}


def file_type(file: BinaryIO) -> str:
    """Return what a file is by its first HEADER_BYTES: "HEIC", or a sentence; "" if unknown."""
    file.seek(0)
    header = file.read(HEADER_BYTES)
    if header and not header.strip(b"\0"):
        return "only zeros: the file was not copied or downloaded completely"
    text = header.lstrip(b"\xef\xbb\xbf \t\r\n").lower()  # pages may begin with these
    for offset, signature, name in SIGNATURES:
        if text.startswith(signature, offset):
            return name
    if header and all(byte >= 32 or byte in b"\t\r\n" for byte in header):
        return "not an image, but a text file"
    return ""


def describe_file(file: BinaryIO) -> str:
    """Return what a file is that cannot be read as an image, and what to do."""
    name = file_type(file)
    return PLUGINS.get(name, name) or UNKNOWN

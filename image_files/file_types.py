"""What a file is, by its first bytes, if it is not an image that Pillow reads."""

from __future__ import annotations

import os

HEADER_BYTES = 512
UNKNOWN = "not an image (or of an unknown format)"
CONVERT = "convert it to JPEG or PNG"

# Offset, first bytes in lower case, what the file is and what to do. The first that fits counts.
SIGNATURES: list[tuple[int, bytes, str]] = [
    (0, b"version https://git-lfs", "a Git LFS pointer, not the image: run `git lfs pull`"),
    (0, b"<!doctype html", "an HTML page, not an image: download the image itself"),
    (0, b"<html", "an HTML page, not an image: download the image itself"),
    (0, b"<?xml", f"an XML or SVG file, not an image of pixels: {CONVERT}"),
    (0, b"<svg", f"an SVG drawing, not an image of pixels: {CONVERT}"),
    (0, b"%pdf", "a PDF document, not an image: extract its images"),
    (0, b"%!ps", f"a PostScript program, not an image: {CONVERT}"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftyphevc", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (4, b"ftypavif", f"an AVIF image: use a newer Pillow, or {CONVERT}"),
    (4, b"ftypavis", f"an AVIF image: use a newer Pillow, or {CONVERT}"),
    (4, b"ftypcrx", f"a RAW photograph (CR3): {CONVERT}"),
    (4, b"ftyp", "a video (MP4 or QuickTime), not an image: extract its frames"),
    (4, b"jxl ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x1ae\xdf\xa3", "a video (Matroska or WebM), not an image: extract its frames"),
    (8, b"avi ", "a video (AVI), not an image: extract its frames"),
    (0, b"pk\x03\x04", "a ZIP archive (or an office document), not an image: unpack it"),
    (0, b"rar!", "a RAR archive, not an image: unpack it"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive, not an image: unpack it"),
    (0, b"\x1f\x8b", "a gzip archive, not an image: unpack it"),
    (0, b"bzh", "a bzip2 archive, not an image: unpack it"),
    (0, b"\xfd7zxz", "an xz archive, not an image: unpack it"),
    (257, b"ustar", "a tar archive, not an image: unpack it"),
    (0, b"fujifilmccd-raw", f"a RAW photograph (RAF): {CONVERT}"),
    (0, b"iirs", f"a RAW photograph (ORF): {CONVERT}"),
    (0, b"iiu\x00", f"a RAW photograph (RW2): {CONVERT}"),
    (0, b"\x7felf", "a program, not an image"),
    (0, b"mz", "a program, not an image"),
    (0, b"sqlite format 3", "a database, not an image"),
    (0, b"8bps", f"a Photoshop file that cannot be read: {CONVERT}"),
]
PLUGINS = {
    "HEIC": "an HEIC image: `pip install pillow-heif`, or " + CONVERT,
    "JPEG XL": "a JPEG XL image: `pip install pillow-jxl-plugin`, or " + CONVERT,
}


def file_type(path: str | os.PathLike) -> str:
    """Return what a file is by its first HEADER_BYTES: "HEIC", or a sentence; "" if unknown."""
    with open(path, "rb") as file:
        header = file.read(HEADER_BYTES)
    if header and not header.strip(b"\0"):
        return "only zeros: the file was not copied or downloaded completely"
    text = header.lower()
    start = text.lstrip(b"\xef\xbb\xbf \t\r\n")[:32]  # of HTML and SVG
    for offset, signature, name in SIGNATURES:
        if text[offset : offset + len(signature)] == signature:
            return name
        if signature[:1] == b"<" and start.startswith(signature):
            return name
    if header and all(byte >= 32 or byte in b"\t\r\n" for byte in header):
        return "not an image, but a text file"
    return ""


def describe_file(path: str | os.PathLike) -> str:
    """Return what a file is that cannot be read as an image, and what to do."""
    name = file_type(path)
    return PLUGINS.get(name, name) or UNKNOWN

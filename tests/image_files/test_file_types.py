"""image_files/file_types.py: what a file is that is not an image, by its first bytes."""

import gzip
import io
import tarfile
import zipfile

import pytest

from image_files.decoding import decode
from image_files.file_types import UNKNOWN, describe_file
from system.messages import UserError


def box(brand: bytes) -> bytes:
    """Return the first box of an ISO media file."""
    return b"\0\0\0\x18ftyp" + brand + bytes(12)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", b"x")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    return file.getvalue()


FILES = {
    "HEIC": (box(b"heic"), ["HEIC", "pillow-heif"]),
    "HEIF": (box(b"mif1"), ["HEIC", "pillow-heif"]),
    "JPEG XL": (b"\xff\x0a" + bytes(range(50)), ["JPEG XL", "pillow-jxl"]),
    "JPEG XL, boxed": (b"\0\0\0\x0cJXL \r\n\x87\n" + box(b"jxl "), ["JPEG XL"]),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid x\n",
        ["Git LFS", "git lfs pull"],
    ),
    "HTML": (b"\xef\xbb\xbf\n <!DOCTYPE HTML><html>", ["HTML"]),
    "HTML without doctype": (b"<html><body>404", ["HTML"]),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', ["SVG", "convert"]),
    "PDF": (b"%PDF-1.7\n%", ["PDF"]),
    "MP4": (box(b"isom"), ["video"]),
    "WebM": (b"\x1aE\xdf\xa3" + bytes(range(40)), ["video"]),
    "AVI": (b"RIFF\0\0\0\0AVI LIST", ["video"]),
    "ZIP": (zipped(), ["ZIP archive", "unpack"]),
    "gzip": (gzip.compress(b"x"), ["gzip archive"]),
    "tar": (tarred(), ["tar archive"]),
    "RAW, Canon": (box(b"crx "), ["RAW"]),
    "RAW, Fujifilm": (b"FUJIFILMCCD-RAW 0201", ["RAW"]),
    "zeros": (bytes(5000), ["only zeros"]),
    "text": (b"just some text, with a line end\n", ["text file"]),
    "unknown": (bytes(range(1, 200)), [UNKNOWN]),
    "empty": (b"", ["empty"]),
}


@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_image_is_called_by_its_name(tmp_path, kind):
    content, words = FILES[kind]
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        decode(path, 512, print)
    assert str(error.value).startswith(f"{path}: ")
    for word in words:
        assert word in str(error.value)


def test_only_the_beginning_is_read(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(1, 200)) * 10 + b"%PDF")
    assert describe_file(tmp_path / "a") == UNKNOWN

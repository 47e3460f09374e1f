"""image_files/file_types.py: what a file is that is not an image, by its first bytes."""

import pytest

from image_files.decoding import decode, open_file
from image_files.file_types import UNKNOWN
from system.messages import UserError


def box(brand: bytes) -> bytes:
    """Return the first box of an ISO media file."""
    return b"\0\0\0\x18ftyp" + brand + bytes(12)


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
    "ZIP": (b"PK\3\4" + bytes(30), ["ZIP archive", "unpack"]),
    "RAW, Canon": (box(b"crx "), ["RAW"]),
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
        with open_file(path) as file:
            decode(file, path, 512, print)
    assert str(error.value).startswith(f"{path}: ")
    for word in words:
        assert word in str(error.value)

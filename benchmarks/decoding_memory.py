"""Measure the memory that decoding takes, in bytes a pixel, by format.

    python benchmarks/decoding_memory.py

Of Pillow alone, and of the program. The image is of soft random colors. Each file is decoded in a
process of its own, whose peak of memory Linux reports (VmHWM), less what the imports took. The
limits of image_files/decoding.py follow from the first column.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import sys
import utils
from PIL import Image


def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


before = peak()
if sys.argv[2] == "pillow":
    Image.open(sys.argv[1]).load()
else:
    utils.load_image(sys.argv[1])
print(peak() - before)
"""


def save(mode: str = "RGB", **options) -> Callable[[Image.Image, Path], None]:
    """Return a function that saves an image in this mode."""
    return lambda image, path: image.convert(mode).save(path, **options)


def save_gray(kind: type) -> Callable[[Image.Image, Path], None]:
    """Return a function that saves an image as gray values of this type."""

    def write(image: Image.Image, path: Path) -> None:
        Image.fromarray(np.asarray(image.convert("L")).astype(kind)).save(path)

    return write


ONE_STRIP = {"format": "TIFF", "compression": "tiff_lzw", "strip_size": 2**31 - 1}
FILES = {
    "PNG": save(format="PNG", compress_level=1),
    "PNG, RGBA": save("RGBA", format="PNG", compress_level=1),
    "PNG, 16 bits": lambda image, path: save_gray(np.uint16)(image, path.with_suffix(".png")),
    "JPEG": save(format="JPEG", subsampling=0),
    "JPEG, progressive": save(format="JPEG", subsampling=0, progressive=True),
    "JPEG, progressive, CMYK": save("CMYK", format="JPEG", subsampling=0, progressive=True),
    "TIFF": save(format="TIFF"),
    "TIFF, one strip": save(**ONE_STRIP),
    "TIFF, float": lambda image, path: save_gray(np.float32)(image, path.with_suffix(".tif")),
    "WebP": save(format="WEBP", quality=50, method=0),
    "JPEG 2000": save(format="JPEG2000"),
    "AVIF": save(format="AVIF", speed=10),
    "GIF": save("P", format="GIF"),
    "BMP": save(format="BMP"),
}


def measure(path: Path, what: str) -> float:
    """Return the peak of memory while a file is decoded, in bytes, by "pillow" or "program"."""
    command = [sys.executable, "-c", PROGRAM, str(path), what]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=6000, help="pixels (%(default)s)")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (args.side // 20, args.side // 20, 3), dtype=np.uint8)
    image = Image.fromarray(colors).resize((args.side, args.side))
    results = {}
    print(f"{'file':24} {'Pillow':>7} {'program':>8}   bytes a pixel")
    with tempfile.TemporaryDirectory() as folder:
        for name, write in FILES.items():
            path = Path(folder, "image.img")
            write(image, path)
            [path] = Path(folder).iterdir()
            values = [measure(path, what) / args.side**2 for what in ("pillow", "program")]
            path.unlink()
            results[name] = [round(value, 1) for value in values]
            print(f"{name:24} {values[0]:7.1f} {values[1]:8.1f}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()

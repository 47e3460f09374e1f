"""Pages: an HTML template with the style and script that all pages share, and data, in one file."""

import base64
import io
import json
import math
import os
from pathlib import Path
from typing import Any

from PIL import Image

from system.files import write_atomically

FOLDER = Path(__file__).parent
JPEG_QUALITY = 70
MAX_PAGE = 5_000_000  # bytes of images in a page, as far as it can do with fewer


def write_page(path: str | os.PathLike, template: Path, data: Any, **texts: str) -> None:
    """Write a page atomically, which needs no other file and opens without a server.

    Args:
        template: an HTML file. In it, `/*STYLE*/` and `/*SCRIPT*/` become what all pages share,
            and `/*DATA*/` becomes `data`.
        data: for JSON; a number that is not finite becomes null.
        texts: name -> text without "<" that replaces `/*NAME*/`.

    Raises:
        UserError: the file cannot be written.
    """
    page = template.read_text(encoding="utf-8")
    page = page.replace("/*STYLE*/", (FOLDER / "page.css").read_text(encoding="utf-8"))
    page = page.replace("/*SCRIPT*/", (FOLDER / "page.js").read_text(encoding="utf-8"))
    for name, text in texts.items():
        page = page.replace(f"/*{name.upper()}*/", text)
    # The last replacement: in it are names of files, which may be like one of these marks.
    page = page.replace("/*DATA*/", to_script(data))
    write_atomically(path, lambda file: file.write(page.encode()))


def to_script(data: Any) -> str:
    """Return data as a JavaScript value that may stand in a script element.

    A "<", which could end the element, is written as an escape, and so are all letters but ASCII.
    """
    return json.dumps(finite(data), allow_nan=False).replace("<", "\\u003c")


def percent(fraction: float) -> str:
    """Return a fraction as the pages show it, with a space at which no line breaks."""
    return f"{100 * fraction:.1f}\u00a0%"


def finite(data: Any) -> Any:
    """Return data for JSON with None for each number that is not finite, which JSON lacks."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def data_url(image: Image.Image, side: int) -> str:
    """Return an RGB image, its longer side at most `side` pixels, as the URL of a JPEG."""
    image = image.copy()
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"

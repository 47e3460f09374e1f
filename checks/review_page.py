"""The page on which a person decides about findings: by looking and clicking, in a browser."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from checks.findings import ELSEWHERE, Finding
from image_files.decoding import open_file, open_image
from image_files.names import display_names
from system.devices import available_cores
from system.files import escape
from system.messages import progress
from system.outputs import Output, path_beside
from system.pages import data_url, write_page
from system.workers import map_ahead
from utils import DataFolder, ImageFile, decode_image

TEMPLATE = Path(__file__).with_name("review.html")
KINDS = {  # in the order of the page, with what it says about the numbers of a finding
    "duplicate": "",
    "suspect label": "The numbers are probabilities, by a network that did not see the image.",
    "near-duplicate": "A distance of 0 is an equal image; unrelated images have about 1.4.",
    "outlier": "A low novelty means that the image resembles none of the categories.",
}
MAX_ITEMS = 500  # of a kind
SIDE = 320  # pixels of an image's longer side


def output_of(table: str) -> Output:
    """Return the page that --check_labels writes beside its table."""
    return Output("--check_labels", path_beside(table, "html"), "page")


def write_review_page(
    path: str | os.PathLike, data: DataFolder, findings: Iterable[Finding], names: Mapping[str, str]
) -> None:
    """Write the page of the findings that are about labels or copies.

    Args:
        data: the images that the findings are about.
        names: category folder -> name.

    Raises:
        UserError: the page cannot be written, or an image is no longer there.
    """
    categories = sorted({image.category for image in data.images})
    index = {category: number for number, category in enumerate(categories)}
    items = []
    images: dict[str, int] = {}  # path -> its number on the page
    for kind, of_kind in _by_kind(findings).items():
        for rank, finding in enumerate(of_kind[:MAX_ITEMS], 1):
            paths = [path for path in (finding.other_path, finding.path) if path]
            guesses = (finding.suggested, finding.second_guess, finding.third_guess)
            items.append(
                {
                    "kind": kind,
                    "rank": rank,
                    "count": min(len(of_kind), MAX_ITEMS),
                    "images": [images.setdefault(path, len(images)) for path in paths],
                    "detail": f"{escape(finding.detail)}. {KINDS[kind]}",
                    "guesses": [index[guess] for guess in guesses if guess],
                }
            )
    by_path = {image.path: image for image in data.images}
    page = {
        "about": f"{escape(data.root)}: {len(items)} findings, at most {MAX_ITEMS} of a kind",
        "categories": [
            {"folder": escape(category), "name": escape(name)}
            for category, name in zip(categories, display_names(categories, names), strict=True)
        ],
        "images": _describe_all(data.root, [by_path[path] for path in images], index),
        "items": items,
    }
    write_page(path, TEMPLATE, page)


def _by_kind(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Return the findings of KINDS; of copies only those in another split or category."""
    by_kind: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
    for finding in findings:
        is_harmless = finding.finding == "duplicate" and not finding.detail.startswith(ELSEWHERE)
        if finding.finding in by_kind and not is_harmless:
            by_kind[finding.finding].append(finding)
    by_kind["duplicate"].sort(key=lambda finding: "category" not in finding.detail.split(":")[0])
    return by_kind


def _describe_all(
    root: str, images: Sequence[ImageFile], index: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Return what the page shows of images; index: category -> its number on the page."""

    def describe(image: ImageFile) -> dict[str, Any]:
        name = os.path.join(root, image.path)
        with open_file(name) as file:
            pixels = decode_image(file, name, SIDE // 2, lambda line: None)
            with open_image(file, name, lambda line: None) as header:
                width, height = header.size
        return {
            "path": escape(image.path),
            "split": image.split,
            "label": index[image.category],
            "digest": image.digest,
            "width": width,
            "height": height,
            "source": data_url(pixels, SIDE),
        }

    workers = available_cores()
    described = map_ahead(describe, images, workers, 2 * workers)
    return list(progress(described, len(images), "page", size=lambda _: 1, delay=1))

"""Figures of suspect labels and of near-duplicates, beside the table of findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from checks.findings import Finding
from system.files import save_figure
from training.report import load_thumbnails

MAX_SUSPECTS, MAX_PAIRS = 24, 12  # in a gallery


class Gallery(NamedTuple):
    """Images to be drawn: their paths, as many titles, and a title of all."""

    title: str
    paths: list[str]
    titles: list[str]


def galleries(findings: Sequence[Finding], names: Mapping[str, str]) -> dict[str, Gallery]:
    """Return the first suspect labels, and near-duplicates in two splits or categories.

    Args:
        names: category folder -> name.

    Returns:
        "suspects" and "near-duplicates", as far as there are such findings.
    """
    suspects = [f for f in findings if f.finding == "suspect label"][:MAX_SUSPECTS]
    pairs = [
        f for f in findings if f.finding == "near-duplicate" and f.detail.startswith("in another ")
    ]
    pairs = pairs[:MAX_PAIRS]
    both = {
        "suspects": Gallery(
            "Suspect labels: the label, and the prediction of a network that did not see the image",
            [f.path for f in suspects],
            [
                f"{f.rank}. {names[f.category]} {f.probability:.0%}\n"
                f"{names[f.suggested]} {f.suggested_probability:.0%}"
                for f in suspects
            ],
        ),
        "near-duplicates": Gallery(
            "Near-duplicates in two splits or in two categories",
            [path for f in pairs for path in (f.other_path, f.path)],
            [f"{f.rank}. distance {f.distance:.2f}" for f in pairs for _ in range(2)],
        ),
    }
    return {name: gallery for name, gallery in both.items() if gallery.paths}


def write_galleries(table: str, root: str, galleries: Mapping[str, Gallery]) -> None:
    """Write the figure of each gallery beside a table, and print their paths."""
    for name, gallery in galleries.items():
        path = Path(table).with_suffix(f".{name}.png")
        save_figure(draw_gallery(root, gallery), path)
        print(f"saved {path}")


def draw_gallery(root: str, gallery: Gallery):
    """Draw images in `root` with their titles and paths."""
    from evaluation import plots

    title, paths, titles = gallery
    images = load_thumbnails(root, paths)
    return plots.image_grid(images, titles, title=title, captions=paths, width=2.2)

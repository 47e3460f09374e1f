"""Figures of suspect labels and of near-duplicates, beside the table of findings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from checks.findings import Finding
from system.files import save_figure
from system.outputs import Output, path_beside
from training.report import load_thumbnails

MAX_SUSPECTS = 24  # in a gallery
MAX_PAIRS = 12
GALLERIES = ("suspects", "near-duplicates")


def outputs_of(table: str) -> list[Output]:
    """List the figures that --check_labels writes beside its table."""
    figures = [path_beside(table, f"{name}.png") for name in GALLERIES]
    return [Output("--check_labels", figure, "figure") for figure in figures]


@dataclass
class Gallery:
    """Images to be drawn: their paths, as many titles, and a title of all."""

    title: str
    paths: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)


def galleries(findings: Sequence[Finding], names: Mapping[str, str]) -> dict[str, Gallery]:
    """Return the first suspect labels, and near-duplicates in two splits or categories.

    Args:
        names: category folder -> name.

    Returns:
        "suspects" and "near-duplicates", as far as there are such findings.
    """
    from evaluation.plots import title_of  # here, because it takes a second

    suspects = Gallery(
        "Suspect labels: the label, and the prediction of a head that did not see the image"
    )
    pairs = Gallery("Near-duplicates in two splits or in two categories")
    for f in findings:
        if f.finding == "suspect label" and len(suspects.paths) < MAX_SUSPECTS:
            suspects.paths.append(f.path)
            title = title_of(names[f.category], names[f.suggested], f.suggested_probability or 0)
            suspects.titles.append(f"{f.rank}. {title}")
        is_pair = f.finding == "near-duplicate" and f.detail.startswith("in another ")
        if is_pair and len(pairs.paths) < 2 * MAX_PAIRS:
            pairs.paths += [f.other_path, f.path]
            pairs.titles += [f"{f.rank}. distance {f.distance:.2f}"] * 2
    both = zip(GALLERIES, (suspects, pairs), strict=True)
    return {name: gallery for name, gallery in both if gallery.paths}


def write_galleries(table: str, root: str, galleries: Mapping[str, Gallery]) -> None:
    """Write the figure of each gallery beside a table, and print their paths."""
    for name, gallery in galleries.items():
        path = path_beside(table, f"{name}.png")
        save_figure(draw_gallery(root, gallery), path)
        print(f"saved {path}")


def draw_gallery(root: str, gallery: Gallery):
    """Draw images in `root` with their titles and paths."""
    from evaluation import plots

    return plots.image_grid(
        load_thumbnails(root, gallery.paths),
        gallery.titles,
        title=gallery.title,
        captions=gallery.paths,
        width=2.2,
    )

"""Every picture that the project draws: from arrays and plain values to a matplotlib Figure.

    plots.confusion_matrix(labels, answers, names).savefig("confusion_matrix.png")

No pyplot: no window, no display, nothing is kept between calls. An image is a Pillow picture or a
uint8 array, (H, W, 3) or (H, W). Sizes are inches, of text points. Colour-blind people can tell
the colours apart. Knows nothing of the other modules.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

BLUE, ORANGE, GREY = "#0173b2", "#de8f05", "0.4"  # the first two of seaborn's "colorblind"
CALIBRATION_BINS = 15  # as in model.py; Guo et al. 2017
Picture = Image.Image | np.ndarray


def learning_curves(history: Sequence[dict], best_epoch: int) -> Figure:
    """Losses and validation accuracy over the epochs, the best epoch marked.

    Args:
        history: a dict an epoch, with "epoch" (from 1), "train_loss" (with label smoothing),
            "valid_loss" (both cross entropy) and "valid_accuracy" (fraction 0-1).
        best_epoch: the one that is kept.

    Raises:
        ValueError: `best_epoch` is not in the history.
    """
    columns = {key: [row[key] for row in history] for key in history[0]}
    epochs, accuracies = columns["epoch"], columns["valid_accuracy"]
    best = accuracies[epochs.index(best_epoch)]
    figure = _figure(10, 4)
    loss, accuracy = figure.subplots(1, 2)
    style = "o-" if len(history) < 30 else "-"
    # Smoothing makes train's loss the higher one: without that word it would look odd.
    loss.plot(epochs, columns["train_loss"], style, color=BLUE, label="train, labels smoothed")
    loss.plot(epochs, columns["valid_loss"], style, color=ORANGE, label="valid")
    accuracy.plot(epochs, accuracies, style, color=ORANGE, label="valid")
    for ax in (loss, accuracy):
        ax.axvline(best_epoch, color=GREY, linestyle="--", label=f"best epoch: {best_epoch}")
        ax.set(xlabel="epoch", xlim=(0.5, len(history) + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.legend(fontsize="small")
    loss.set(title="Loss (cross entropy): lower is better", ylim=(0, None))
    # Ten points at least from bottom to top, so that a small change does not look like a large one.
    lowest = min(0.9, math.floor(10 * min(accuracies)) / 10)
    accuracy.set(title=f"Accuracy on valid: {best:.1%} in the best epoch", ylim=(lowest, 1.005))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def confusion_matrix(labels: np.ndarray, answers: np.ndarray, names: Sequence[str]) -> Figure:
    """How many images of each category (row) were taken for each one (column).

    Numbers are images, where they fit: up to 30 categories. Colours are shares of the row, so that
    a category of few images shows as well as one of many. Names can be read up to 200 categories.

    Args:
        labels, answers: (N,) integers, the true and the predicted index into `names`.
        names: (num_classes,) of the categories.

    Raises:
        IndexError: a label or an answer has no name.
    """
    n = len(names)
    counts = np.zeros((n, n), int)
    np.add.at(counts, (labels, answers), 1)
    side = np.interp(n, [2, 5, 17, 102, 200], [3.6, 6, 8.5, 14.5, 28])
    size = min(10, 50 * side / n)  # points; 72 would be as high as a row
    down = [_fold(name, 30, 1) for name in names]
    across = [_fold(name, int(12 * side / n), 4) for name in names] if n <= 5 else down
    room = 0.6 * size / 72 * max(map(len, down))
    figure = _figure(1.06 * side + room + 1.5, side + (room if n > 5 else 0.5) + 1.2)
    ax = figure.subplots()
    shares = counts / counts.sum(1, keepdims=True).clip(1)  # a row without images stays 0
    # By the root of shares, so that one mistake among many images shows, too. The figure's size
    # makes cells nearly square: a fixed aspect can make the layout cut labels off.
    drawn = ax.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
    bar = figure.colorbar(drawn, aspect=30, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    bar.set_label("share of the true category's images", size=9 + side / 3)
    for lines in (ax.hlines, ax.vlines):
        lines(np.arange(n + 1) - 0.5, -0.5, n - 0.5, color="0.9", linewidth=0.5)
    for row, column in np.argwhere(counts) if n <= 30 else ():
        colour = "white" if shares[row, column] > 0.3 else "black"
        text = str(counts[row, column])
        ax.text(column, row, text, size=size, color=colour, ha="center", va="center")
    ax.set_yticks(range(n), down, size=size)
    ax.set_xticks(range(n), across, size=size, rotation=0 if n <= 5 else 90)
    ax.set_xlabel("predicted category", size=9 + side / 3)
    ax.set_ylabel("true category", size=9 + side / 3)
    title = f"Confusion matrix:\n{np.trace(counts)} of {len(labels)} images right"
    ax.set_title(title, size=10 + side / 2)
    return figure


def mistakes_gallery(
    images: Sequence[Picture],
    files: Sequence[str],
    true_names: Sequence[str],
    predicted_names: Sequence[str],
    probs: Sequence[float],
) -> Figure:
    """Images that were named wrong, in the order given; there may be none.

    Args:
        files, true_names, predicted_names: as many as images.
        probs: the probability (0-1) of each predicted name.

    Raises:
        ValueError: the arguments differ in length.
    """
    facts = zip(probs, predicted_names, true_names, files, images, strict=True)
    titles = [f"{prob:.0%} {predicted}\nbut it is {true}" for prob, predicted, true, *_ in facts]
    if titles:
        title = "The most confident mistakes"
        return image_grid(images, titles, title=title, captions=files, columns=4, width=3)
    figure = Figure((6, 1.5))
    figure.text(0.5, 0.5, "No mistakes: every image was named right", ha="center", va="center")
    return figure


def image_grid(
    images: Sequence[Picture],
    titles: Sequence[str],
    *,
    title: str = "",
    captions: Sequence[str] | None = None,
    columns: int = 6,
    width: float = 2,
) -> Figure:
    """Images in rows of `columns`, each `width` inches wide, between its title and its caption.

    Raises:
        ValueError: there are no images, or not as many titles or captions.
    """
    letters = int(11 * width)
    above = ["\n".join(_fold(line, letters) for line in text.split("\n")) for text in titles]
    below = [_fold(text, letters, 3) for text in captions or [""] * len(images)]
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    lines = max(text.count("\n") for text in above) + max(text.count("\n") for text in below) + 2
    figure = _figure(columns * width, rows * (width + 0.17 * lines) + 0.5)
    figure.suptitle(title)
    for place, content in enumerate(zip(images, above, below, strict=True), 1):
        _show(figure.add_subplot(rows, columns, place), *content)
    return figure


def prediction_bars(
    image: Picture, names: Sequence[str], probs: Sequence[float], caption: str = ""
) -> Figure:
    """An image beside bars of its most likely categories.

    Args:
        names, probs: (top_k,) of the categories, the likeliest first; probabilities are 0-1.
        caption: stands below the image, such as its file name.
    """
    figure = _figure(10, max(4, 1 + 0.4 * len(names)))
    left, right = figure.subplots(1, 2)
    _show(left, image, _fold(f"{names[0]}: {probs[0]:.1%}", 42), _fold(caption, 50, 3), size=12)
    _bars(right, names, probs, "{:.1%}")
    right.set(xlabel="probability", xlim=(0, 1.15), xticks=np.linspace(0, 1, 6))
    right.set_ylim(max(len(names), 4) - 0.5, -0.5)  # a single bar would be as high as the image
    right.xaxis.set_major_formatter(PercentFormatter(1))
    return figure


def category_counts(counts: Sequence[int], names: Sequence[str], title: str) -> Figure:
    """Bars of the number of images of each category, (num_classes,) each, the largest first."""
    order = np.argsort(np.negative(counts), kind="stable")
    pitch = np.interp(len(names), [5, 17, 102], [0.4, 0.3, 0.17])
    figure = _figure(8, 1.2 + pitch * len(names))
    ax = figure.subplots()
    _bars(ax, [names[i] for i in order], [counts[i] for i in order], "{:.0f}", min(10, 46 * pitch))
    ax.set_xlabel("images")
    ax.margins(x=0.1)
    figure.suptitle(f"{title}: {sum(counts)} images of {len(names)} categories")
    return figure


def heat_map(image: Picture, heat: np.ndarray, name: str) -> Figure:
    """An image, and the same image under a map of the places that spoke for a category.

    Args:
        heat: (h, w) float, 0-1, of a Grad-CAM (Selvaraju et al. 2017). It is stretched over the
            image, which therefore has to be the part that the network saw.
        name: of the category.
    """
    figure = _figure(10, 4.8)
    left, right = figure.subplots(1, 2)
    _show(left, image, "the image", size=12)
    grey = Image.fromarray(np.asarray(image)).convert("L")  # all colour is heat
    _show(right, grey, _fold(f"what speaks for {name}", 42), size=12)
    colours = colormaps["plasma"](np.linspace(0.2, 1, 256))
    colours[:, 3] = np.linspace(0, 0.95, 256)  # where there is no heat, nothing lies on it
    look = {"cmap": ListedColormap(colours), "vmin": 0, "vmax": 1, "interpolation": "bicubic"}
    drawn = right.imshow(heat, extent=right.images[0].get_extent(), **look)
    bar = figure.colorbar(drawn, ax=right, shrink=0.8, panchor=False, ticks=[0, 1])
    bar.ax.set_yticklabels(["nothing", "most"])
    return figure


def reliability_diagram(
    right: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    *,
    ece_before: float,
    ece_after: float,
    temperature: float,
) -> Figure:
    """How often answers are right against the probability that they were given, in 15 bins.

    Args:
        right: (N,) bool, of each answer.
        before, after: (N,) its probability (0-1) without and with the temperature.
        ece_before, ece_after: their expected calibration errors (fraction 0-1).
    """
    figure = _figure(6, 7.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], "--", color=GREY, label="perfect")
    for probs, ece, label, marker, colour in (
        (before, ece_before, "without temperature", "s", ORANGE),
        (after, ece_after, f"with temperature {temperature:.2f}", "o", BLUE),
    ):
        bins = (np.asarray(probs) * CALIBRATION_BINS).astype(int).clip(0, CALIBRATION_BINS - 1)
        counts = np.bincount(bins, minlength=CALIBRATION_BINS)
        sums = np.array([np.bincount(bins, values, CALIBRATION_BINS) for values in (probs, right)])
        x, y = sums[:, counts > 0] / counts[counts > 0]
        # A dot's size tells how many answers it stands for: the share of a few says little.
        sizes = 15 + 400 * counts[counts > 0] / len(right)
        top.scatter(x, y, sizes, colour, marker=marker, label=f"{label}: ECE {ece:.1%}")
        bottom.stairs(counts, np.linspace(0, 1, CALIBRATION_BINS + 1), color=colour, linewidth=2)
    top.set_title(f"Calibration of {len(right)} answers (large dots: many)")
    top.set_ylabel("share that is right")
    bottom.set(xlabel="probability of the answer", ylabel="answers")
    figure.legend(loc="outside lower center")  # within, it would hide dots
    for axis in (top.xaxis, top.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    return figure


def _figure(width: float, height: float) -> Figure:
    """An empty figure that makes room for its texts."""
    return Figure((width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


def _show(ax: Axes, image: Picture, above: str, below: str = "", size: float = 9) -> None:
    """Draw an image in the middle of a square, so that texts of neighbours are level."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    x, y, half = width / 2 - 0.5, height / 2 - 0.5, max(width, height) / 2
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    ax.set(xlim=(x - half, x + half), ylim=(y + half, y - half), xticks=[], yticks=[])
    ax.set(frame_on=False, anchor="N")
    ax.set_title(above, size=size)
    ax.set_xlabel(below, size=8, color=GREY)


def _bars(
    ax: Axes, names: Sequence[str], values: Sequence[float], fmt: str, size: float = 10
) -> None:
    """Horizontal bars from the top, each with its name and value."""
    import seaborn as sns  # here, because it takes a second, and most figures do without

    places = list(range(len(names)))  # not the names: two categories may share one
    sns.barplot(x=list(values), y=places, orient="h", color=BLUE, errorbar=None, ax=ax)
    ax.set_yticks(places, [_fold(name, 30) for name in names], size=size)
    ax.bar_label(ax.containers[0], fmt=fmt, padding=3, size=size)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right"]].set_visible(False)


def _fold(text: str, width: int, lines: int = 2) -> str:
    """Text on so many lines of so many characters; what is too much is left out of its middle.

    (The end of a file name often tells more.) A dollar sign stays one: matplotlib would take what
    is between two of them for a formula.
    """
    folded, keep = textwrap.wrap(text, width), min(len(text), width * lines)
    while len(folded) > lines:
        keep -= 1
        shorter = f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
        folded = textwrap.wrap(shorter, width)
    return "\n".join(folded).encode(errors="replace").decode().replace("$", r"\$")

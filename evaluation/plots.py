"""Every figure of the project: from arrays and plain values to a matplotlib Figure.

    plots.confusion_matrix(labels, predictions, names).savefig("confusion_matrix.png")

No pyplot: no window, no display, no state between calls. An image is a Pillow image or a uint8
array, (H, W, 3) or (H, W). Sizes are in inches, of text in points. Color-blind people can
distinguish the colors.
"""

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike
from PIL import Image

from evaluation.calibration import CALIBRATION_BINS, calibration_bins
from evaluation.metrics import confusion_counts

BLUE = "#0173b2"  # the first of seaborn's "colorblind"
ORANGE = "#de8f05"  # the second
GRAY = "0.4"
AnyImage = Image.Image | np.ndarray


def learning_curves(history: Sequence[dict], used_epoch: int) -> Figure:
    """Draw losses and validation accuracy over the epochs, with the one used marked.

    Args:
        history: a dict an epoch, with "epoch" (from 1), "train_loss" (with label smoothing),
            "valid_loss" (both cross entropy) and "valid_accuracy" (fraction 0-1).
        used_epoch: the one whose weights are used.

    Raises:
        ValueError: `used_epoch` is not in the history.
    """
    epochs = [row["epoch"] for row in history]
    train_losses = [row["train_loss"] for row in history]
    valid_losses = [row["valid_loss"] for row in history]
    accuracies = [row["valid_accuracy"] for row in history]
    used = accuracies[epochs.index(used_epoch)]
    figure = _figure(10, 4)
    loss, accuracy = figure.subplots(1, 2)
    style = "o-" if len(history) < 30 else "-"
    # Smoothing makes train's loss the higher one: the legend has to explain that.
    loss.plot(epochs, train_losses, style, color=BLUE, label="train, labels smoothed")
    loss.plot(epochs, valid_losses, style, color=ORANGE, label="valid")
    accuracy.plot(epochs, accuracies, style, color=ORANGE, label="valid")
    for ax in (loss, accuracy):
        ax.axvline(used_epoch, color=GRAY, linestyle="--", label=f"used: epoch {used_epoch}")
        ax.set(xlabel="epoch", xlim=(0.5, len(history) + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.legend(fontsize="small")
    loss.set(title="Loss (cross entropy): lower is better", ylim=(0, None))
    # Ten points at least from bottom to top, so that a small change does not look like a large one.
    lowest = min(0.9, math.floor(10 * min(accuracies)) / 10)
    accuracy.set(title=f"Accuracy on valid: {used:.1%}", ylim=(lowest, 1.005))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, names: Sequence[str]) -> Figure:
    """Draw how many images of each category (row) were predicted as each category (column).

    Up to 30 categories, cells have numbers of images. Colors are shares of the row, so that a
    category of few images is as visible as one of many. Names are legible up to 200 categories.

    Args:
        labels, predictions: (N,) integers, the true and the predicted index into `names`.
        names: (num_classes,) of the categories.

    Raises:
        IndexError: a label or a prediction has no name.
    """
    n = len(names)
    counts = confusion_counts(labels, predictions, n)
    side = np.interp(n, [2, 5, 17, 102, 200], [3.6, 6, 8.5, 14.5, 28])
    size = min(10, 50 * side / n)  # points; 72 would be as high as a row
    down = [_fold(name, 30, 1) for name in names]
    across = [_fold(name, int(12 * side / n), 4) for name in names] if n <= 5 else down
    margin = 0.6 * size / 72 * max(map(len, down))
    figure = _figure(1.06 * side + margin + 1.5, side + (margin if n > 5 else 0.5) + 1.2)
    ax = figure.subplots()
    shares = counts / counts.sum(1, keepdims=True).clip(1)  # a row without images stays 0
    # The square root of shares makes one mistake among many images visible. The figure's size makes
    # cells nearly square: with a fixed aspect, the layout may cut off labels.
    cells = ax.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
    bar = figure.colorbar(cells, aspect=30, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    bar.set_label("share of the true category's images", size=9 + side / 3)
    edges = np.arange(n + 1) - 0.5
    ax.hlines(edges, -0.5, n - 0.5, color="0.9", linewidth=0.5)
    ax.vlines(edges, -0.5, n - 0.5, color="0.9", linewidth=0.5)
    if n <= 30:
        for row, column in np.argwhere(counts):
            color = _readable_on(cells.to_rgba(shares[row, column]))
            text = str(counts[row, column])
            ax.text(column, row, text, size=size, color=color, ha="center", va="center")
    ax.set_yticks(range(n), down, size=size)
    ax.set_xticks(range(n), across, size=size, rotation=0 if n <= 5 else 90)
    ax.set_xlabel("predicted category", size=9 + side / 3)
    ax.set_ylabel("true category", size=9 + side / 3)
    title = f"Confusion matrix:\n{np.trace(counts)} of {counts.sum()} images correct"
    ax.set_title(title, size=10 + side / 2)
    return figure


def mistakes_gallery(
    images: Sequence[AnyImage],
    files: Sequence[str],
    true_names: Sequence[str],
    predicted_names: Sequence[str],
    probs: Sequence[float],
) -> Figure:
    """Draw images whose prediction is incorrect, in the order given; there may be none.

    Args:
        files, true_names, predicted_names: as many as images.
        probs: the probability (0-1) of each predicted name.

    Raises:
        ValueError: the arguments differ in length.
    """
    titles = [
        title_of(true, predicted, prob)
        for prob, predicted, true in zip(probs, predicted_names, true_names, strict=True)
    ]
    if titles:
        title = "The most confident mistakes"
        return image_grid(images, titles, title=title, captions=files, columns=4, width=3)
    figure = Figure((6, 1.5))
    figure.text(0.5, 0.5, "No mistakes: every prediction is correct", ha="center", va="center")
    return figure


def title_of(label: str, predicted: str, prob: float) -> str:
    """Return the title of an image in a grid: its label, and what is predicted; prob is 0-1.

    A name stays on one line, if it is not longer than a line.
    """
    label = label.replace(" ", "\xa0")
    predicted = predicted.replace(" ", "\xa0")
    return f"label {label}\npredicted {predicted}\xa0{prob:.0%}"


def image_grid(
    images: Sequence[AnyImage],
    titles: Sequence[str],
    *,
    title: str = "",
    captions: Sequence[str] | None = None,
    columns: int = 6,
    width: float = 2,
    crop: bool = True,
) -> Figure:
    """Draw images in rows of `columns`, each `width` inches wide, with a title and a caption.

    Args:
        crop: draw the square in the middle of each image, which is what the network sees.

    Raises:
        ValueError: there are no images, or not as many titles or captions.
    """
    letters = int(11 * width)
    above = ["\n".join(_fold(line, letters) for line in text.split("\n")) for text in titles]
    below = [_fold(text, letters, 3) for text in captions or [""] * len(images)]
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    lines = max(text.count("\n") for text in above) + 1
    if captions:
        lines += max(text.count("\n") for text in below) + 1
    figure = _figure(columns * width, rows * (width + 0.17 * lines) + (0.5 if title else 0.1))
    figure.suptitle(_fold(title, int(8 * columns * width), 6))
    for index, (image, text, caption) in enumerate(zip(images, above, below, strict=True)):
        ax = figure.add_subplot(rows, columns, index + 1)
        _show(ax, image, text, caption, crop=crop)
    return figure


def prediction_bars(
    image: AnyImage, names: Sequence[str], probs: Sequence[float], caption: str = ""
) -> Figure:
    """Draw an image beside bars of its most likely categories.

    Args:
        names, probs: (top_k,) of the categories, the most likely first; probabilities are 0-1.
        caption: text below the image, such as its file name.
    """
    figure = _figure(10, max(4, 1 + 0.4 * len(names)))
    photo, bars = figure.subplots(1, 2)
    _show(photo, image, _fold(f"{names[0]}: {probs[0]:.1%}", 42), _fold(caption, 50, 3), size=12)
    _bars(bars, names, probs, "{:.1%}")
    bars.set(xlabel="probability", xlim=(0, 1.15), xticks=np.linspace(0, 1, 6))
    bars.set_ylim(max(len(names), 4) - 0.5, -0.5)  # a single bar would be as high as the image
    bars.xaxis.set_major_formatter(PercentFormatter(1))
    return figure


def category_counts(counts: Sequence[int], names: Sequence[str], title: str) -> Figure:
    """Draw bars of the number of images of each category, (num_classes,), the largest first."""
    order = np.argsort(np.negative(counts), kind="stable")
    pitch = np.interp(len(names), [5, 17, 102], [0.4, 0.3, 0.17])
    figure = _figure(8, 1.2 + pitch * len(names))
    ax = figure.subplots()
    _bars(ax, [names[i] for i in order], [counts[i] for i in order], "{:.0f}", min(10, 46 * pitch))
    ax.set_xlabel("images")
    ax.margins(x=0.1)
    figure.suptitle(f"{title}: {sum(counts)} images of {len(names)} categories")
    return figure


def heat_map(image: AnyImage, heat: np.ndarray, name: str, share: float = 1.0) -> Figure:
    """Draw an image, and the same image under a heat map of the locations that support a category.

    Args:
        heat: (h, w) float, 0-1, such as of `model.heat_map`, of the square in the middle that the
            network sees.
        name: of the category.
        share: side of this square, as a share of the short side of the image.
    """
    gray = np.asarray(Image.fromarray(np.asarray(image)).convert("L"))  # all color is heat
    height, width = gray.shape
    aspect = min(max(height / width, 0.5), 1.5)
    figure = _figure(10, 4 * aspect + 0.8)
    plain, overlay = figure.subplots(1, 2)
    _show(plain, image, "the image", size=12, aspect=aspect)
    _show(overlay, gray, _fold(f"locations that support {name}", 42), size=12, aspect=aspect)
    colors = colormaps["plasma"](np.linspace(0.2, 1, 256))
    colors[:, 3] = np.linspace(0, 0.95, 256)  # transparent where there is no heat
    half = share * min(height, width) / 2
    x = (width - 1) / 2
    y = (height - 1) / 2
    square = Rectangle((x - half, y - half), 2 * half, 2 * half, fill=False, color="white")
    overlay.add_patch(square)
    layer = overlay.imshow(
        heat,
        extent=(x - half, x + half, y + half, y - half),
        cmap=ListedColormap(colors),
        vmin=0,
        vmax=1,
        interpolation="bicubic",
    )
    overlay.set(xlim=plain.get_xlim(), ylim=plain.get_ylim())  # which the layer has changed
    bar = figure.colorbar(layer, ax=overlay, shrink=0.8, panchor=False, ticks=[0, 1])
    bar.ax.set_yticklabels(["none", "most"])
    return figure


def reliability_diagram(
    correct: ArrayLike,
    before: ArrayLike,
    after: ArrayLike,
    *,
    ece_before: float,
    ece_after: float,
    temperature: float,
) -> Figure:
    """Draw the share of correct predictions against their probability, in bins.

    Args:
        correct: (N,) bool, whether each prediction equals the label.
        before, after: (N,) its probability (0-1) without and with the temperature.
        ece_before, ece_after: their expected calibration errors (fraction 0-1).
    """
    figure = _figure(6, 7.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], "--", color=GRAY, label="perfect")
    for probs, ece, label, marker, color in (
        (before, ece_before, "without temperature", "s", ORANGE),
        (after, ece_after, f"with temperature {temperature:.2f}", "o", BLUE),
    ):
        bins = calibration_bins(probs, correct)
        counts = bins.counts[bins.counts > 0]
        x = bins.probs[bins.counts > 0] / counts
        y = bins.correct[bins.counts > 0] / counts
        # A dot's size is the number of predictions: the share of a few means little.
        sizes = 15 + 400 * counts / counts.sum()
        top.scatter(x, y, sizes, color, marker=marker, label=f"{label}: ECE {ece:.1%}")
        edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
        bottom.stairs(bins.counts, edges, color=color, linewidth=2)
    top.set_title(f"Calibration of {counts.sum()} predictions (large dots: many)")
    top.set_ylabel("share that is correct")
    bottom.set(xlabel="probability of the prediction", ylabel="predictions")
    figure.legend(loc="outside lower center")  # inside, it would hide dots
    for axis in (top.xaxis, top.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    return figure


def novelty_histogram(
    novelty: ArrayLike, marked: Mapping[str, float], limit: float, name: str
) -> Figure:
    """Draw how many images have which novelty, on a logarithmic scale, with some images marked.

    Args:
        novelty: (N,), 0-1.
        marked: label -> novelty of single images.
        limit: an image with less is reported.
        name: of the N images.
    """
    lowest = 1e-7  # what is below is drawn here
    figure = _figure(8, 3.6)
    ax = figure.subplots()
    values = np.asarray(novelty).clip(lowest)
    ax.hist(values, bins=np.logspace(math.log10(lowest), 0, 43).tolist(), color=BLUE, label=name)
    for (label, value), color in zip(marked.items(), itertools.cycle((ORANGE, "black"))):
        ax.axvline(max(value, lowest), color=color, linewidth=3, label=f"{label}: {value:.2g}")
    ax.axvline(limit, color=GRAY, linestyle="--", label=f"reported if below {limit:g}")
    ax.set(xscale="log", xlabel="novelty", ylabel="images", xlim=(lowest / 1.5, 1.5))
    figure.legend(loc="outside right upper")
    return figure


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure whose layout makes space for its texts."""
    return Figure((width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


def _show(
    ax: Axes,
    image: AnyImage,
    above: str,
    below: str = "",
    *,
    size: float = 9,
    aspect: float = 1.0,
    crop: bool = False,
) -> None:
    """Draw an image in the middle of a space, so that texts of neighbors are level.

    Args:
        aspect: height to width of the space.
        crop: fill the space with the middle of the image.
    """
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    x = width / 2 - 0.5
    y = height / 2 - 0.5
    half_width = (min if crop else max)(width, height / aspect) / 2
    half_height = half_width * aspect
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    ax.set(xlim=(x - half_width, x + half_width), ylim=(y + half_height, y - half_height))
    ax.set(xticks=[], yticks=[])
    ax.set(frame_on=False, anchor="N")
    ax.set_title(above, size=size)
    ax.set_xlabel(below, size=8, color=GRAY)


def _readable_on(color: ArrayLike) -> str:
    """Return "black" or "white", whichever has more contrast on a color (red, green, blue, alpha).

    The rule is that of the Web Content Accessibility Guidelines 2.
    """
    channels = np.asarray(color)[:3]
    linear = np.where(channels <= 0.04, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    return "white" if luminance < 0.179 else "black"


def _bars(
    ax: Axes, names: Sequence[str], values: Sequence[float], fmt: str, size: float = 10
) -> None:
    """Draw horizontal bars from the top, each with its name and value."""
    rows = list(range(len(names)))  # not the names: two categories may share one
    bars = ax.barh(rows, values, color=BLUE)
    ax.invert_yaxis()
    ax.margins(y=0.2 / max(1, len(rows)))
    ax.set_yticks(rows, [_fold(name, 30) for name in names], size=size)
    ax.bar_label(bars, fmt=fmt, padding=3, size=size)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right"]].set_visible(False)


def _fold(text: str, width: int, lines: int = 2) -> str:
    """Wrap text into `lines` lines of `width` characters; a longer text loses its middle.

    (The end of a file name is often the most useful.) Dollar signs are escaped: matplotlib takes
    text between two of them for a formula.
    """
    folded = textwrap.wrap(text, width)
    keep = min(len(text), width * lines)
    while len(folded) > lines:
        keep -= 1
        shorter = f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
        folded = textwrap.wrap(shorter, width)
    return "\n".join(folded).encode(errors="replace").decode().replace("$", r"\$")

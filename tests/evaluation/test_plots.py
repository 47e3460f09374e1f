"""evaluation.plots: every figure shows the numbers that it was given, and its texts can be read."""

import json
from unittest.mock import patch

import numpy as np
import pytest
from conftest import ROOT, draw
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from evaluation import plots

OXFORD = list(json.loads((ROOT / "cat_to_name.json").read_text()).values())
LONG = "the long name of a category that somebody has made up, of 70 characters"
UNBROKEN = f"{'x' * 150}.jpg"
HISTORY = [
    {"epoch": 1, "train_loss": 2.0, "valid_loss": 1.5, "valid_accuracy": 0.5},
    {"epoch": 2, "train_loss": 1.2, "valid_loss": 0.7, "valid_accuracy": 0.9},
    {"epoch": 3, "train_loss": 1.1, "valid_loss": 0.8, "valid_accuracy": 0.8},
]


# ---------------------------------------------------------------- looking at a figure


@pytest.fixture
def look(tmp_path):
    """Save a figure as PNG; returns its pixels and its texts, which must not overlap."""

    def at(figure):
        texts = []

        def draw_figure(figure, renderer, plain=Figure.draw):
            texts.clear()  # a figure is drawn twice, to lay it out first
            plain(figure, renderer)

        def draw_text(text, renderer, plain=Text.draw):
            plain(text, renderer)
            if text.get_visible() and text.get_text().strip():
                texts.append((text.get_text(), text.get_window_extent(renderer)))

        with patch.object(Text, "draw", draw_text), patch.object(Figure, "draw", draw_figure):
            figure.savefig(tmp_path / "figure.png")
        boxes = np.array([box.extents for _, box in texts])  # left, bottom, right, top; pixels
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= figure.bbox.size).all()
        gaps = np.maximum(boxes[:, None, :2], boxes[None, :, :2]) >= np.minimum(
            boxes[:, None, 2:], boxes[None, :, 2:]
        )
        for first, second in np.argwhere(~gaps.any(2)):
            assert first == second, f"{texts[first][0]!r} overlaps {texts[second][0]!r}"
        with Image.open(tmp_path / "figure.png") as image:
            return np.asarray(image.convert("RGB")), [text for text, _ in texts]

    return at


def labels_of(axis):
    """Return the texts at an axis's ticks."""
    return [label.get_text().replace("\n", " ") for label in axis.get_ticklabels()]


def widths_of(ax):
    """Return the lengths of horizontal bars, from the top."""
    bars = sorted(ax.patches, key=lambda bar: bar.get_y())
    return [bar.get_width() for bar in (bars if ax.yaxis_inverted() else bars[::-1])]


# ---------------------------------------------------------------- learning curves


@pytest.mark.parametrize("epochs", [1, 3])
def test_learning_curves_show_the_history_and_mark_the_epoch_used(look, epochs):
    history = HISTORY[:epochs]
    used = max(1, epochs - 1)
    figure = plots.learning_curves(history, used)
    _, texts = look(figure)
    loss, accuracy = figure.axes
    columns = {key: [row[key] for row in history] for key in history[0]}
    lines = {"train_loss": loss.lines[0], "valid_loss": loss.lines[1]}
    lines["valid_accuracy"] = accuracy.lines[0]
    for key, line in lines.items():
        assert list(line.get_xdata()) == columns["epoch"]
        assert list(line.get_ydata()) == columns[key]
    for ax, names in ((loss, ["train, labels smoothed", "valid"]), (accuracy, ["valid"])):
        assert list(ax.lines[-1].get_xdata()) == [used, used]
        legend = [text.get_text() for text in ax.get_legend().get_texts()]
        assert legend == [*names, f"used: epoch {used}"]
        low, high = ax.get_ylim()
        assert all(low <= y <= high for line in ax.lines[:-1] for y in line.get_ydata())
    ticks = [text for text in texts if text.isdigit()]
    assert ticks and all(1 <= int(text) <= epochs or text == "0" for text in ticks)
    assert f"{columns['valid_accuracy'][used - 1]:.1%}" in accuracy.get_title()


# ---------------------------------------------------------------- confusion matrix


@pytest.mark.parametrize("num_classes", [2, 17, 102])
def test_the_confusion_matrix_counts_and_names(look, num_classes):
    names = OXFORD[:num_classes]
    rng = np.random.default_rng(num_classes)
    labels, others = rng.integers(0, num_classes, (2, 500))
    predictions = np.where(rng.random(500) < 0.8, labels, others)
    figure = plots.confusion_matrix(labels, predictions, names)
    _, texts = look(figure)
    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (labels, predictions), 1)
    ax, _ = figure.axes
    shares = ax.images[0].get_array()
    assert np.allclose(shares, counts / counts.sum(1, keepdims=True))
    assert labels_of(ax.yaxis) == names and labels_of(ax.xaxis) == names
    assert ax.yaxis_inverted()  # the first category is on top
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted category", "true category")
    assert any(f"{np.trace(counts)} of 500 images correct" in text for text in texts)
    numbers = {text.get_position()[::-1]: text.get_text() for text in ax.texts}
    cells = np.argwhere(counts).tolist() if num_classes <= 17 else []
    assert numbers == {(row, column): str(counts[row, column]) for row, column in cells}
    sizes = [tick.get_size() for tick in ax.get_xticklabels() + ax.get_yticklabels()]
    assert min(sizes) >= 7  # points; smaller is not legible
    assert ax.bbox.width == pytest.approx(ax.bbox.height, rel=0.15)  # cells are nearly square


@pytest.mark.parametrize("num_classes", [5, 17])
def test_long_names_and_categories_without_images_fit_a_confusion_matrix(look, num_classes):
    names = [LONG] * num_classes
    figure = plots.confusion_matrix(np.array([1, 1]), np.array([0, 1]), names)
    _, texts = look(figure)
    assert sum("…" in text for text in texts) >= num_classes
    shares = figure.axes[0].images[0].get_array()
    assert np.isfinite(np.ma.getdata(shares)).all()
    assert shares[1, :2].tolist() == [0.5, 0.5] and shares.sum() == 1


# ---------------------------------------------------------------- images


def test_without_mistakes_the_gallery_says_so(look):
    _, texts = look(plots.mistakes_gallery([], [], [], [], []))
    assert texts == ["No mistakes: every prediction is correct"]


@pytest.mark.parametrize("count", [1, 5])
def test_the_gallery_shows_each_mistake_with_its_texts(look, count):
    images = [draw(n % 4, n, 60 + 20 * (n % 3), 90) for n in range(count)]
    files = ["1/one.jpg", UNBROKEN, f"54/{LONG}, {LONG}.jpg", *[f"{n}.jpg" for n in range(12)]]
    true, predicted = [OXFORD[0], LONG, *OXFORD[1:]][:count], [OXFORD[-1], *OXFORD[40:]][:count]
    probs = [1 - 0.05 * n for n in range(count)]
    figure = plots.mistakes_gallery(images, files[:count], true, predicted, probs)
    look(figure)
    assert len(figure.axes) == count and "mistakes" in figure.get_suptitle()
    for n, ax in enumerate(figure.axes):
        assert np.array_equal(ax.images[0].get_array(), np.asarray(images[n]))
        title = ax.get_title().replace("\xa0", " ").replace("\n", " ")
        start, end = title.split(" predicted ")
        assert end == f"{predicted[n]} {probs[n]:.0%}"
        for text, full in ((start.removeprefix("label "), true[n]), (ax.get_xlabel(), files[n])):
            if len(full) < 32:
                assert text == full
            else:
                assert text[:9] == full[:9] and "…" in text and text[-9:] == full[-9:]


@pytest.mark.parametrize("count", [2, 17])
def test_a_grid_has_rows_of_images_below_their_titles(look, count):
    images = [draw(n % 4, n, 30 + 8 * (n % 3), 40) for n in range(count)]
    figure = plots.image_grid(images, OXFORD[:count], title="Flowers", columns=5)
    _, texts = look(figure)
    assert pyplot.get_fignums() == []  # no window is opened
    titles = [ax.get_title().replace("\n", " ") for ax in figure.axes]
    assert titles == OXFORD[:count] and "Flowers" in texts
    for n, ax in enumerate(figure.axes):
        cell = ax.get_subplotspec()
        assert (cell.rowspan.start, cell.colspan.start) == divmod(n, 5)
        assert ax.bbox.width == pytest.approx(ax.bbox.height, rel=0.02)
        assert np.array_equal(ax.images[0].get_array(), np.asarray(images[n]))


# ---------------------------------------------------------------- bars


@pytest.mark.parametrize("k", [1, 5])
def test_bars_are_as_long_as_probabilities(look, k):
    names = ["bishop of llandaff", LONG, "iris", "iris", "rose"][:k]
    probs = np.array([0.5, 0.2, 0.1, 0.05, 0.01][:k])
    figure = plots.prediction_bars(draw(0, 0), names, probs, f"test/1/{UNBROKEN}")
    _, texts = look(figure)
    photo, ax = figure.axes
    assert widths_of(ax) == pytest.approx(probs)
    for label, name in zip(labels_of(ax.yaxis), names, strict=True):
        assert label == name or (name == LONG and label[:9] == name[:9] and "…" in label)
    assert [text for text in texts if text in {f"{p:.1%}" for p in probs}] == [
        f"{p:.1%}" for p in probs
    ]
    assert ax.get_xlim() == (0, 1.15)
    assert photo.get_title() == "bishop of llandaff: 50.0%"
    assert photo.get_xlabel().startswith("test/1/xx")
    assert np.array_equal(photo.images[0].get_array(), np.asarray(draw(0, 0)))


def test_a_certain_prediction_and_unusual_names_fit(look):
    names = ["a $1 and $2 flower", "\udcff name", ""]
    figure = plots.prediction_bars(draw(0, 0), names, [1.0, 0.0, 0.0])
    _, texts = look(figure)
    assert texts.count("0.0%") == 2
    assert r"a \$1 and \$2 flower: 100.0%" in texts and "? name" in texts


@pytest.mark.parametrize("num_classes", [2, 102])
def test_counts_are_bars_from_the_largest_to_the_smallest(look, num_classes):
    counts = np.random.default_rng(0).integers(0, 60, num_classes).tolist()
    names = OXFORD[:num_classes]
    figure = plots.category_counts(counts, names, "train")
    _, texts = look(figure)
    pairs = sorted(zip(counts, names, strict=True), key=lambda pair: -pair[0])
    assert widths_of(figure.axes[0]) == [count for count, _ in pairs]
    assert labels_of(figure.axes[0].yaxis) == [name for _, name in pairs]
    assert [text.get_text() for text in figure.axes[0].texts] == [str(c) for c, _ in pairs]
    assert f"train: {sum(counts)} images of {num_classes} categories" in texts
    assert min(tick.get_size() for tick in figure.axes[0].get_yticklabels()) >= 7


# ---------------------------------------------------------------- heat map and calibration


def test_the_heat_is_where_the_map_has_it_and_is_smooth(look):
    heat = np.zeros((14, 14))
    heat[1:4, 9:13] = 1  # at the top right
    image = np.full((120, 160), 128, np.uint8)
    figure = plots.heat_map(image, heat, "iris")
    drawn, texts = look(figure)
    plain, overlay, bar = figure.axes
    assert np.array_equal(plain.images[0].get_array(), image) and len(plain.images) == 1
    assert "locations that support iris" in texts
    assert {"none", "most"} <= set(labels_of(bar.yaxis))
    # Pixels of the image (y, x) -> colors of the figure.
    y, x = np.mgrid[0:120, 0:160]
    pixels = overlay.transData.transform(np.stack([x, y], -1).reshape(-1, 2)).astype(int)
    assert pixels[0, 1] > pixels[-1, 1]  # upright
    assert np.divide(*np.ptp(pixels, axis=0)) == pytest.approx(160 / 120, rel=0.02)
    colors = drawn[len(drawn) - 1 - pixels[:, 1], pixels[:, 0]].reshape(120, 160, 3)
    assert (colors[100, 30] == 128).all()
    assert np.abs(colors[:, 5].astype(int) - 128).max() <= 1  # outside of the square
    colors = colors[3:-3, 24:137]  # within its frame
    heat = np.ptp(colors, axis=2).astype(int)  # the image is gray: color is heat
    top, left = np.unravel_index(heat.argmax(), heat.shape)
    assert 120 * 1 / 14 <= top + 3 <= 120 * 4 / 14
    assert 120 * 9 / 14 <= left + 4 <= 120 * 13 / 14
    assert heat[60:].max() < 5 and heat[top, left] > 100
    steps = np.abs(np.diff(heat[top, 2:-2]))
    assert steps.max() < np.ptp(heat) / 4  # without smoothing, one step is all of it


def test_the_reliability_diagram_shows_the_share_in_each_bin(look):
    correct = np.array([True, False, True, True, False])
    before, after = np.array([0.3, 0.31, 0.9, 1.0, 1.0]), np.array([0.5, 0.5, 0.5, 0.5, 0.9])
    eces = {"ece_before": 0.25, "ece_after": 0.125, "temperature": 2}
    figure = plots.reliability_diagram(correct, before, after, **eces)
    _, texts = look(figure)
    top, bottom = figure.axes
    assert np.array_equal(top.lines[0].get_data(), [[0, 1], [0, 1]])
    dots = [np.asarray(dots.get_offsets()) for dots in top.collections]
    assert dots[0] == pytest.approx(np.array([[0.305, 0.5], [0.9, 1], [1, 0.5]]))
    assert dots[1] == pytest.approx(np.array([[0.5, 0.75], [0.9, 0]]))
    assert np.argmax(top.collections[1].get_sizes()) == 0
    counts, edges, _ = bottom.patches[0].get_data()
    assert counts.tolist() == [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]
    assert np.allclose(edges, np.arange(16) / 15)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0] == "perfect" and legend[1] == "without temperature: ECE 25.0%"
    assert legend[2] == "with temperature 2.00: ECE 12.5%"
    assert "Calibration of 5 predictions (large dots: many)" in texts


def test_the_novelty_histogram_counts_images_and_marks_single_ones(look):
    novelty = [0.0, 0.0005, 0.02, 0.5, 0.6, 1.0]
    marked = {"the car": 0.0, "the rose": 0.25}
    figure = plots.novelty_histogram(novelty, marked, 0.003, "images of test")
    look(figure)
    [ax] = figure.axes
    bars = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in ax.patches]
    assert sum(height for *_, height in bars) == len(novelty)
    assert bars[0][2] == 1  # 0 is drawn at the lowest value
    assert sum(height for left, *_, height in bars if left > 0.1) == 3
    lines = [line.get_xdata()[0] for line in ax.lines]
    assert lines == pytest.approx([bars[0][0], 0.25, 0.003], rel=1e-6)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["images of test", "the car: 0", "the rose: 0.25", "reported if below 0.003"]

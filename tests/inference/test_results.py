"""inference.results: most_likely, the table of an image, and the summary of many."""

import io
import math
import sys

import numpy as np
import pytest
from conftest import table_rows
from test_formats import EXAMPLES

from inference import results
from inference.predictor import Predictor
from inference.results import Prediction, Result

CATEGORIES = ["1", "10", "2", "x y"]
PROBS = np.array([0.2, 0.5, 0.3, 0.0])
LIMIT = 0.0078125  # of novelty
# ---------------------------------------------------------------- one image


def most_likely(probs=PROBS, novelty=0.25, **settings) -> list[Prediction]:
    """Call `results.most_likely` with a model of four categories."""
    model = Predictor()
    model.categories = CATEGORIES
    model.names = {"2": "two"}
    model.novelty_limit = LIMIT
    return results.most_likely(model, probs, novelty, **settings)


def test_the_most_likely_categories_come_first():
    assert most_likely(top_k=2) == [
        Prediction("10", "10", 0.5, 0.25),
        Prediction("2", "two", pytest.approx(0.3), 0.25),
    ]
    ranked = most_likely(top_k=10**6, names={"10": "ten"})
    assert [prediction.category for prediction in ranked] == ["10", "2", "1", "x y"]
    assert [prediction.name for prediction in ranked] == ["ten", "2", "1", "x y"]


def test_a_prediction_below_the_minimum_is_unknown():
    assert most_likely(top_k=1, min_probability=0.5) == [Prediction("10", "10", 0.5, 0.25)]
    unknown = [Prediction("", "unknown", 0.5, 0.25)]
    assert most_likely(top_k=2, min_probability=0.51) == unknown


def test_an_image_below_the_minimum_novelty_is_unknown():
    unknown = [Prediction("", "unknown", 0.5, 0.01)]
    assert most_likely(novelty=0.01, top_k=2, min_probability=0.5, min_novelty=0.02) == unknown
    assert most_likely(novelty=0.01, top_k=2, min_probability=0.51, min_novelty=0.01) == unknown
    assert most_likely(novelty=0.01, top_k=2, min_novelty=0.01)[0].name == "10"
    assert most_likely(novelty=math.nan, top_k=2, min_novelty=1.0)[0].name == "10"


def test_an_image_below_the_models_limit_of_novelty_is_unusual():
    for novelty, expected in ((LIMIT, False), (LIMIT * 0.99, True), (math.nan, False)):
        ranked = most_likely(novelty=novelty, top_k=2)
        assert [prediction.is_unusual for prediction in ranked] == [expected] * 2
    [unknown] = most_likely(novelty=LIMIT * 0.99, top_k=2, min_probability=0.9)
    assert unknown.is_unusual


def test_a_table_says_if_an_image_is_unusual():
    usual = Prediction("1", "one", 0.9, 0.25)
    assert "resembles" not in results.format_table([usual])
    assert "resembles" not in results.format_table([usual._replace(novelty=math.nan)])
    unusual = usual._replace(novelty=0.00012, is_unusual=True)
    *lines, last = results.format_table([unusual]).splitlines()
    assert lines == results.format_table([usual]).splitlines()
    assert last == (
        "This image resembles none of the categories (novelty 0.0001): the names are guesses."
    )
    category = results.format_table([Prediction("unknown", "unknown", 0.9, 0.0, True)])
    assert category.endswith("the names are guesses.")
    unknown = results.format_table([Prediction("", "unknown", 0.9, 0.0, True)])
    assert unknown.endswith("This image resembles none of the categories (novelty 0.0000).")


def test_a_summary_counts_results():
    summary = results.Summary(LIMIT)
    for result in EXAMPLES:
        summary.add(result)
    assert str(summary) == "5 images predicted, 1 is unknown, 1 could not be read"
    summary.add(Result("b.jpg", [Prediction("unknown", "unknown", 0.9, 0.001, True)]))
    assert str(summary) == (
        "6 images predicted, 1 resembles no category (novelty below 0.0078125), 1 is unknown, "
        "1 could not be read"
    )


@pytest.fixture
def predictions() -> list[Prediction]:
    """Four predictions whose names differ in length; one has a line end."""
    names = {"10": "a long name, longer than the word category", "2": "two\nlines"}
    return most_likely(np.array([0.13, 0.55, 0.3, 0.02]), top_k=4, names=names)


def test_a_table_has_aligned_columns_and_bars_as_long_as_probabilities(predictions):
    table = results.format_table(predictions)
    assert table_rows(table) == [
        (1, 55.0, "a long name, longer than the word category", "10"),
        (2, 30.0, "two lines", "2"),
        (3, 13.0, "1", "1"),
        (4, 2.0, "x y", "x y"),
    ]
    first, *lines = table.splitlines()
    for column in ("name", "category"):
        start = first.index(column)
        assert all(line[start - 2 : start] == "  " and line[start] != " " for line in lines)
    for line, prediction in zip(lines, predictions, strict=True):
        length = prediction.probability * results.BAR_LENGTH
        assert abs(line.count("█") - length) < 0.51 and line == line.rstrip()


def test_a_terminal_without_blocks_gets_other_bars(predictions, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        lines = results.format_table(predictions).splitlines()
    bars = [line.split()[-1] for line in lines[1:3]]
    assert bars == ["#" * 11, "#" * 6] and "\\" not in "".join(lines)

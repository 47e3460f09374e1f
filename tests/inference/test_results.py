"""inference.results: most_likely, the table, and the CSV, JSON and JSON-lines formats."""

import csv
import io
import json
import math
import os
import sys

import numpy as np
import pytest
from conftest import parse_results, table_rows

from inference import results
from inference.output_file import OutputFile
from inference.results import Prediction, Result

CATEGORIES = ["1", "10", "2", "x y"]
NOT_TEXT = os.fsdecode(b"of \xff bytes")
EXAMPLES = [
    Result("a.jpg", [Prediction("1", "one", 0.9, 0.25), Prediction("2", 'so "called"', 0.1, 0.25)]),
    Result(
        "line\nbreak, comma.jpg",
        [Prediction("1", "one", 0.6, 0.25), Prediction("2", "two", 0.4, 0.25)],
    ),
    Result('"quoted"', [], 'not an image, "they" say'),
    Result("a.jpg", [Prediction("1", "one", 0.9, 0.25), Prediction("2", 'so "called"', 0.1, 0.25)]),
    Result(NOT_TEXT, [Prediction("", "unknown", 0.4, 0.25)]),
    Result("ünïcode", [Prediction("ö", "é", 0.7, 0.25), Prediction("2", "two", 0.3, 0.25)]),
]
TEXT_ONLY = [result for result in EXAMPLES if result.path != NOT_TEXT]  # can be printed
PATHS = [result.path for result in EXAMPLES]
file_formats = pytest.mark.parametrize("kind", results.FILE_FORMATS)


# ---------------------------------------------------------------- one image


def test_the_most_likely_categories_come_first():
    probs = np.array([0.2, 0.5, 0.3, 0.0])
    assert results.most_likely(probs, 0.25, CATEGORIES, {"2": "two"}, 2) == [
        Prediction("10", "10", 0.5, 0.25),
        Prediction("2", "two", pytest.approx(0.3), 0.25),
    ]
    ranked = results.most_likely(probs, 0.25, CATEGORIES, {}, 10**6)
    assert [prediction.category for prediction in ranked] == ["10", "2", "1", "x y"]


def test_a_prediction_below_the_minimum_is_unknown():
    probs = np.array([0.2, 0.5, 0.3, 0.0])
    assert results.most_likely(probs, 0.25, CATEGORIES, {}, 2, 0.5)[0] == Prediction(
        "10", "10", 0.5, 0.25
    )
    assert results.most_likely(probs, 0.25, CATEGORIES, {}, 2, 0.51) == [
        Prediction("", "unknown", 0.5, 0.25)
    ]


def test_an_image_below_the_minimum_novelty_is_unknown():
    probs = np.array([0.2, 0.5, 0.3, 0.0])
    unknown = [Prediction("", "unknown", 0.5, 0.01)]
    assert results.most_likely(probs, 0.01, CATEGORIES, {}, 2, 0.5, 0.02) == unknown
    assert results.most_likely(probs, 0.01, CATEGORIES, {}, 2, 0.51, 0.01) == unknown
    assert results.most_likely(probs, 0.01, CATEGORIES, {}, 2, 0.5, 0.01)[0].name == "10"
    assert results.most_likely(probs, math.nan, CATEGORIES, {}, 2, 0.5, 1.0)[0].name == "10"


def test_a_table_says_if_an_image_is_unusual():
    usual = Prediction("1", "one", 0.9, results.UNUSUAL)
    assert "resembles" not in results.format_table([usual])
    *lines, last = results.format_table([usual._replace(novelty=0.00012)]).splitlines()
    assert lines == results.format_table([usual]).splitlines()
    assert last == (
        "This image resembles none of the categories (novelty 0.0001): the names are guesses."
    )
    category = results.format_table([Prediction("unknown", "unknown", 0.9, 0.0)])
    assert category.endswith("the names are guesses.")
    unknown = results.format_table([Prediction("", "unknown", 0.9, 0.0)])
    assert unknown.endswith("This image resembles none of the categories (novelty 0.0000).")


def test_novelty_that_was_not_computed_is_left_out(tmp_path):
    result = Result("a.jpg", [Prediction("1", "one", 0.5, math.nan)])
    assert "resembles" not in results.format_table(result.predictions)
    assert (
        write(tmp_path / "a.csv", [result]).decode().splitlines()[1] == "a.jpg,1,1,one,0.500000,,"
    )
    assert json.loads(write(tmp_path / "a.jsonl", [result]))["novelty"] is None


def test_a_summary_counts_results():
    summary = results.Summary()
    for result in EXAMPLES:
        summary.add(result)
    assert str(summary) == "5 images predicted, 1 are unknown, 1 could not be read"
    summary.add(Result("b.jpg", [Prediction("unknown", "unknown", 0.9, 0.001)]))
    assert str(summary) == (
        "6 images predicted, 1 resemble no category (novelty below 0.003), 1 are unknown, "
        "1 could not be read"
    )


@pytest.fixture
def predictions() -> list[Prediction]:
    """Four predictions whose names differ in length; one has a line end."""
    names = {"10": "a long name, longer than the word category", "2": "two\nlines"}
    return results.most_likely(np.array([0.13, 0.55, 0.3, 0.02]), 0.25, CATEGORIES, names, 4)


def test_a_table_has_rank_probability_name_and_category(predictions):
    rows = table_rows(results.format_table(predictions))
    assert rows == [
        (1, 55.0, "a long name, longer than the word category", "10"),
        (2, 30.0, "two lines", "2"),
        (3, 13.0, "1", "1"),
        (4, 2.0, "x y", "x y"),
    ]


def test_columns_are_aligned(predictions):
    for rows in (predictions, predictions[1:], predictions[3:]):
        lines = results.format_table(rows).splitlines()
        for column in ("name", "category"):
            start = lines[0].index(column)
            assert all(line[start - 2 : start] == "  " and line[start] != " " for line in lines)


def test_bars_are_as_long_as_probabilities(predictions):
    lines = results.format_table(predictions).splitlines()
    for line, prediction in zip(lines[1:], predictions, strict=True):
        length = prediction.probability * results.BAR_LENGTH
        assert abs(line.count("█") - length) < 0.51
        assert line == line.rstrip()


def test_a_terminal_without_blocks_gets_other_bars(predictions, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        lines = results.format_table(predictions).splitlines()
    bars = [line.split()[-1] for line in lines[1:3]]
    assert bars == ["#" * 11, "#" * 6] and "\\" not in "".join(lines)


# ---------------------------------------------------------------- formats


def write(path, content) -> bytes:
    """Write results to an output file; returns its bytes."""
    with OutputFile(str(path), False, {}) as output:
        output.write(content)
    return path.read_bytes()


def print_all(content, kind: str, capsys) -> str:
    """Return what `print_results` prints for results."""
    capsys.readouterr()
    assert list(results.print_results(content, kind)) == content
    return capsys.readouterr().out


@file_formats
def test_a_file_and_standard_output_have_every_result(tmp_path, capsys, kind):
    path = tmp_path / "new folder" / f"out.{kind.upper()}"
    content = write(path, EXAMPLES)
    assert sorted(os.listdir(path.parent)) == [path.name, f"{path.name}.settings"]
    parsed = parse_results(content.decode(errors="surrogateescape"), kind)
    assert [item["path"] for item in parsed] == PATHS
    for item, result in zip(parsed, EXAMPLES, strict=True):
        if result.error:
            assert item == {"path": result.path, "error": result.error}
            continue
        rows = [(*row.values(), item["novelty"]) for row in item["predictions"]]
        assert rows == [(rank, *p) for rank, p in enumerate(result.predictions, 1)]
        assert list(item["predictions"][0]) == ["rank", "category", "name", "probability"]
    assert print_all(TEXT_ONLY, kind, capsys) == write(path, TEXT_ONLY).decode()


@file_formats
def test_no_results_are_a_file_as_well(tmp_path, capsys, kind):
    content = write(tmp_path / f"out.{kind}", []).decode()
    assert print_all([], kind, capsys) == content
    if kind == "csv":
        assert list(csv.reader([content])) == [list(results.COLUMNS)]
    else:
        assert parse_results(content, kind) == []


def test_probabilities_have_six_digits(tmp_path):
    result = Result(
        "a.jpg", [Prediction("1", "one", 1 / 3, 0.25), Prediction("2", "two", 1e-9, 0.25)]
    )
    assert write(tmp_path / "a.csv", [result]).decode().splitlines()[1:] == [
        "a.jpg,1,1,one,0.333333,,0.250000",
        "a.jpg,2,2,two,0.000000,,0.250000",
    ]
    [item] = json.loads(write(tmp_path / "a.json", [result]))
    assert [row["probability"] for row in item["predictions"]] == [0.333333, 0.0]


def test_a_table_of_several_images_has_their_paths(capsys):
    blocks = print_all(EXAMPLES, "table", capsys).strip().split("\n\n")
    readable = [result for result in EXAMPLES if not result.error]
    for block, result in zip(blocks, readable, strict=True):
        path, table = block.split("\n", 1)
        assert path == result.path.replace("\n", " ").replace("\udcff", "\\udcff")
        assert table == results.format_table(result.predictions)


@pytest.mark.parametrize("kind", results.FORMATS)
def test_each_result_is_printed_as_soon_as_it_comes(capsys, kind):
    stream, text = results.print_results(iter(TEXT_ONLY), kind), ""
    for number in range(1, len(TEXT_ONLY) + 1):
        next(stream)
        text += capsys.readouterr().out
        footer = results.FOOTERS.get(kind, "")
        assert text == print_all(TEXT_ONLY[:number], kind, capsys).removesuffix(footer)

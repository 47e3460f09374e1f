"""results: most_likely, the table, the CSV, JSON and JSON-lines formats, resuming a file."""

import csv
import io
import json
import os
import sys

import pytest
import torch
from conftest import parse_results, table_rows

from support import results
from support.arguments import UserError
from support.results import OutputFile, Prediction, Result

CATEGORIES = ["1", "10", "2", "x y"]
NOT_TEXT = os.fsdecode(b"of \xff bytes")
EXAMPLES = [
    Result("a.jpg", [Prediction("1", "one", 0.9), Prediction("2", 'so "called"', 0.1)]),
    Result("line\nbreak, comma.jpg", [Prediction("1", "one", 0.6), Prediction("2", "two", 0.4)]),
    Result('"quoted"', [], 'not an image, "they" say'),
    Result("a.jpg", [Prediction("1", "one", 0.9), Prediction("2", 'so "called"', 0.1)]),
    Result(NOT_TEXT, [Prediction("", "unknown", 0.4)]),
    Result("ünïcode", [Prediction("ö", "é", 0.7), Prediction("2", "two", 0.3)]),
]
TEXT_ONLY = [result for result in EXAMPLES if result.path != NOT_TEXT]  # can be printed
PATHS = [result.path for result in EXAMPLES]
file_formats = pytest.mark.parametrize("kind", results.FILE_FORMATS)


# ---------------------------------------------------------------- one image


def test_the_most_likely_categories_come_first():
    probs = torch.tensor([0.2, 0.5, 0.3, 0.0])
    assert results.most_likely(probs, CATEGORIES, {"2": "two"}, 2) == [
        Prediction("10", "10", 0.5),
        Prediction("2", "two", pytest.approx(0.3)),
    ]
    ranked = results.most_likely(probs, CATEGORIES, {}, 10**6)
    assert [prediction.category for prediction in ranked] == ["10", "2", "1", "x y"]


def test_a_prediction_below_the_minimum_is_unknown():
    probs = torch.tensor([0.2, 0.5, 0.3, 0.0])
    assert results.most_likely(probs, CATEGORIES, {}, 2, 0.5)[0] == Prediction("10", "10", 0.5)
    assert results.most_likely(probs, CATEGORIES, {}, 2, 0.51) == [Prediction("", "unknown", 0.5)]


@pytest.fixture
def predictions() -> list[Prediction]:
    """Four predictions whose names differ in length; one has a line end."""
    names = {"10": "a long name, longer than the word category", "2": "two\nlines"}
    return results.most_likely(torch.tensor([0.13, 0.55, 0.3, 0.02]), CATEGORIES, names, 4)


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


def write(path, content, resume: bool = False) -> bytes:
    """Write results to an output file; returns its bytes."""
    OutputFile(str(path), resume).write(content)
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
    assert os.listdir(path.parent) == [path.name]
    parsed = parse_results(content.decode(errors="surrogateescape"), kind)
    assert [item["path"] for item in parsed] == PATHS
    for item, result in zip(parsed, EXAMPLES, strict=True):
        if result.error:
            assert item == {"path": result.path, "error": result.error}
            continue
        rows = [tuple(row.values()) for row in item["predictions"]]
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
    result = Result("a.jpg", [Prediction("1", "one", 1 / 3), Prediction("2", "two", 1e-9)])
    assert write(tmp_path / "a.csv", [result]).decode().splitlines()[1:] == [
        "a.jpg,1,1,one,0.333333,",
        "a.jpg,2,2,two,0.000000,",
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


# ---------------------------------------------------------------- resuming


@file_formats
def test_an_output_that_is_cut_off_anywhere_is_completed(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # a thousand of them take seconds
    path, partial = tmp_path / f"out.{kind}", tmp_path / f"out.{kind}.partial"
    lengths = [len(write(path, EXAMPLES[:count])) for count in range(1, len(EXAMPLES) + 1)]
    complete = path.read_bytes()
    by_path = {result.path: result for result in EXAMPLES}
    for length in range(len(complete) + 1):
        path.unlink()
        partial.write_bytes(complete[:length])
        output = OutputFile(str(path), True)
        missing = list(output.missing(PATHS))
        output.write(by_path[path] for path in missing)
        assert path.read_bytes() == complete, length
        stored = sum(end <= length for end in lengths)
        assert len(missing) <= len(EXAMPLES) - stored + (kind == "csv")  # its last may lack rows
    assert os.listdir(tmp_path) == [path.name]


@file_formats
def test_a_cut_off_result_of_an_image_that_is_no_longer_there_is_removed(tmp_path, kind):
    path, partial = tmp_path / f"out.{kind}", tmp_path / f"out.{kind}.partial"
    expected = write(path, EXAMPLES[:2])
    complete = write(path, EXAMPLES[:3])
    assert expected.endswith(b"\n") and complete.endswith(b"\n")
    path.unlink()
    partial.write_bytes(complete[: len(expected) + 10])  # within the third result
    output = OutputFile(str(path), True)
    by_path = {result.path: result for result in EXAMPLES}
    output.write(by_path[image] for image in output.missing(PATHS[:2]))
    assert path.read_bytes() == expected


@file_formats
def test_new_images_are_added_to_a_complete_output(tmp_path, kind):
    path = tmp_path / f"out.{kind}"
    write(path, EXAMPLES[:4])
    output = OutputFile(str(path), True)
    assert output.done.total() == 4
    assert list(output.missing(PATHS)) == [NOT_TEXT, "ünïcode"]
    assert path.exists()  # until the new one is complete
    output.write(EXAMPLES[4:])
    added = path.read_bytes()
    assert write(path, EXAMPLES) == added


@file_formats
def test_without_resume_an_output_is_replaced(tmp_path, kind):
    path = tmp_path / f"out.{kind}"
    expected = write(path, EXAMPLES[:1])
    write(path, EXAMPLES)
    (tmp_path / f"out.{kind}.partial").write_text("of an earlier run")
    output = OutputFile(str(path), False)
    assert list(output.missing(PATHS)) == PATHS
    output.write(EXAMPLES[:1])
    assert path.read_bytes() == expected
    assert os.listdir(tmp_path) == [path.name]


@file_formats
@pytest.mark.parametrize("suffix", ["", ".partial"])
def test_a_file_of_another_program_is_not_continued(tmp_path, kind, suffix):
    path = tmp_path / f"out.{kind}{suffix}"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=rf"--resume: .*out\.{kind}\.partial is no \.{kind} file"):
        OutputFile(str(tmp_path / f"out.{kind}"), True)
    assert path.read_text() == "a,b\n1,2\n"


def test_an_output_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="folder.csv: cannot write it: is a folder"):
        OutputFile(str(tmp_path / "folder.csv"), False)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/a.csv: cannot write it"):
        OutputFile(str(tmp_path / "file" / "a.csv"), False)

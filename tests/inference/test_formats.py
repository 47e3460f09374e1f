"""inference.formats: CSV, JSON, JSON lines and tables of many images, in files and printed."""

import csv
import io
import json
import math
import os

import pytest
from conftest import parse_results

from inference.formats import COLUMNS, FILE_FORMATS, print_results
from inference.output_file import OutputFile
from inference.results import Prediction, Result, format_table

NOT_TEXT = os.fsdecode(b"of \xff bytes")
TWICE = [Prediction("1", "one", 0.9, 0.25), Prediction("2", 'so "called"', 0.1, 0.25)]
EXAMPLES = [
    Result("a.jpg", TWICE),
    Result("line\nbreak, comma.jpg", [Prediction("1", "one", 0.6, 0.25), TWICE[1]]),
    Result('"quoted"', [], 'not an image, "they" say'),
    Result("a.jpg", TWICE),
    Result(NOT_TEXT, [Prediction("", "unknown", 0.4, 0.25)]),
    Result("ünïcode", [Prediction("ö", "é", 0.7, 0.25), Prediction("2", "two", 0.3, 0.25)]),
]
TEXT_ONLY = [result for result in EXAMPLES if result.path != NOT_TEXT]  # can be printed
PATHS = [result.path for result in EXAMPLES]
file_formats = pytest.mark.parametrize("kind", [*FILE_FORMATS])


def write(path, content) -> bytes:
    """Write results to an output file; returns its bytes."""
    with OutputFile(str(path), False, {}) as output:
        output.write(content)
    return path.read_bytes()


def print_all(content, kind: str, capsys) -> str:
    """Return what `print_results` prints for results."""
    capsys.readouterr()
    assert list(print_results(content, kind)) == content
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
        assert rows == [(rank, *p[:4]) for rank, p in enumerate(result.predictions, 1)]
        assert list(item["predictions"][0]) == ["rank", "category", "name", "probability"]
    assert print_all(TEXT_ONLY, kind, capsys) == write(path, TEXT_ONLY).decode()


@file_formats
def test_no_results_are_a_file_as_well(tmp_path, capsys, kind):
    content = write(tmp_path / f"out.{kind}", []).decode()
    assert print_all([], kind, capsys) == content
    if kind == "csv":
        assert list(csv.reader([content])) == [list(COLUMNS)]
    else:
        assert parse_results(content, kind) == []


def test_a_table_of_several_images_has_their_paths(capsys):
    blocks = print_all(EXAMPLES, "table", capsys).strip().split("\n\n")
    readable = [result for result in EXAMPLES if not result.error]
    for block, result in zip(blocks, readable, strict=True):
        path, table = block.split("\n", 1)
        assert path == result.path.replace("\n", " ").replace("\udcff", "\\udcff")
        assert table == format_table(result.predictions)


def test_novelty_that_was_not_computed_is_left_out(tmp_path):
    result = Result("a.jpg", [Prediction("1", "one", 0.5, math.nan)])
    lines = write(tmp_path / "a.csv", [result]).decode().splitlines()
    assert lines[1] == "a.jpg,1,1,one,0.500000,,"
    assert json.loads(write(tmp_path / "a.jsonl", [result]))["novelty"] is None


@file_formats
def test_what_is_read_is_what_was_written(kind):
    """Up to the six digits of numbers: written again, it is the same text."""
    unrounded = Prediction("1", "carriage\rreturn", 1 / 3, math.nan)
    results = [*EXAMPLES, Result("r\r\n.jpg", [unrounded, unrounded._replace(probability=1e-9)])]
    text = text_of(results, kind)
    read = list(FILE_FORMATS[kind].read(io.StringIO(text, newline="")))
    assert read[:-1] == EXAMPLES and read[-1].path == "r\r\n.jpg"
    assert [p.probability for p in read[-1].predictions] == [0.333333, 0.0]
    assert text_of(read, kind) == text


def text_of(results, kind: str) -> str:
    file = io.StringIO(newline="")
    assert list(FILE_FORMATS[kind].write(results, file)) == results
    return file.getvalue()


def test_line_ends_of_all_kinds_are_quoted_in_csv(tmp_path):
    """Without quotes, other programs take a carriage return for the end of the row."""
    result = Result("a\rb.jpg", [Prediction("1", "one\r", 0.5, 0.25)])
    assert write(tmp_path / "a.csv", [result]).splitlines(keepends=True)[1:] == [
        b'"a\r',
        b'b.jpg",1,1,"one\r',
        b'",0.500000,,0.250000\n',
    ]

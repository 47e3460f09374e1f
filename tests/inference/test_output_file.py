"""inference.output_file: growing, resuming, and what an output was made with."""

import csv
import os
import re
from pathlib import Path

import pytest
from conftest import full_disk
from test_formats import EXAMPLES, NOT_TEXT, PATHS, file_formats

from inference.formats import COLUMNS
from inference.output_file import OutputFile
from inference.results import Result
from system.messages import UserError

SETTINGS = {"--checkpoint": "sha256", "--top_k": 1, "--means": [0, 0, 0]}


def write(path, content) -> bytes:
    """Write results to an output file; returns its bytes."""
    with OutputFile(str(path), False, SETTINGS) as output:
        output.write(content)
    return path.read_bytes()


def partial_of(path) -> bytes:
    """Return FILE.partial after a run that was interrupted when all results were in it."""
    with OutputFile(str(path), False, SETTINGS) as output:
        with pytest.raises(KeyboardInterrupt):
            output.write(interrupted(EXAMPLES))
    return Path(f"{path}.partial").read_bytes()


def interrupted(results):
    yield from results
    raise KeyboardInterrupt


def test_an_output_that_is_cut_off_anywhere_is_completed(tmp_path):
    """Before, at, and behind the end of each line."""
    path = tmp_path / "out.csv"
    partial = tmp_path / "out.csv.partial"
    complete = write(path, EXAMPLES)
    path.unlink()
    lines = partial_of(path)
    ends = [end for end in range(1, len(lines) + 1) if lines[end - 1] == ord("\n")]
    assert len(ends) == len(EXAMPLES)
    by_path = {result.path: result for result in EXAMPLES}
    for length in (0, 1, *(end + offset for end in ends for offset in (-1, 0, 1))):
        path.unlink(missing_ok=True)
        partial.write_bytes(lines[:length])
        with OutputFile(str(path), True, SETTINGS) as output:
            missing = list(output.missing(PATHS))
            output.write(by_path[path] for path in missing)
        assert path.read_bytes() == complete, length
        assert len(missing) == len(EXAMPLES) - sum(end <= length for end in ends)
    assert sorted(os.listdir(tmp_path)) == [path.name, f"{path.name}.settings"]


@pytest.mark.parametrize("rest", [b"\0" * 500, b"[]\n", b"{}\n"])
def test_what_a_power_failure_leaves_is_computed_again(tmp_path, rest):
    path, partial = tmp_path / "out.csv", tmp_path / "out.csv.partial"
    complete = write(path, EXAMPLES)
    path.unlink()
    lines = partial_of(path).splitlines(keepends=True)
    partial.write_bytes(b"".join(lines[:2]) + rest + b"".join(lines[4:]))
    with OutputFile(str(path), True, SETTINGS) as output:
        assert output.done.total() == 2
        output.write(EXAMPLES[2:])
    assert path.read_bytes() == complete


def test_an_output_is_written_after_its_last_result(tmp_path):
    """What is there until then is the old one."""
    path = tmp_path / "out.csv"
    before = write(path, EXAMPLES[:1])
    partial_of(path)
    assert path.read_bytes() == before
    with OutputFile(str(path), True, SETTINGS) as output:
        assert list(output.missing(PATHS)) == []
        output.write([])
    assert path.read_bytes() != before and not (tmp_path / "out.csv.partial").exists()


def test_a_full_disk_preserves_the_results(tmp_path):
    path = tmp_path / "out.csv"
    results = EXAMPLES * 200
    expected = write(path, results)
    path.unlink()
    with full_disk(20_000), OutputFile(str(path), False, SETTINGS) as output:
        with pytest.raises(UserError, match="out.csv.*: cannot write it: File too large"):
            output.write(results)
    with OutputFile(str(path), True, SETTINGS) as output:
        stored = output.done.total()
        assert 50 < stored < 200
        output.write(results[stored:])
    assert path.read_bytes() == expected


@file_formats
def test_new_images_are_added_to_a_complete_output(tmp_path, kind):
    """Also to one without its last line end, as some editors leave it."""
    path = tmp_path / f"out.{kind}"
    path.write_bytes(write(path, EXAMPLES[:4]).removesuffix(b"\n"))
    with OutputFile(str(path), True, SETTINGS) as output:
        assert output.done.total() == 4
        assert list(output.missing(PATHS)) == [NOT_TEXT, "ünïcode"]
        assert path.exists()  # until the new one is complete
        output.write(EXAMPLES[4:])
    added = path.read_bytes()
    assert write(path, EXAMPLES) == added


def test_without_resume_an_output_is_replaced(tmp_path):
    path = tmp_path / "out.csv"
    expected = write(path, EXAMPLES[:1])
    write(path, EXAMPLES)
    (tmp_path / "out.csv.partial").touch()  # of an earlier run that had no result yet
    with OutputFile(str(path), False, SETTINGS) as output:
        assert list(output.missing(PATHS)) == PATHS
        output.write(EXAMPLES[:1])
    assert path.read_bytes() == expected
    assert sorted(os.listdir(tmp_path)) == [path.name, f"{path.name}.settings"]


FOREIGN = {"csv": "a,b\n1,2\n", "json": "[1, 2]", "jsonl": '{"name": "x"}\n'}


@pytest.mark.parametrize(
    ("name", "kind", "resume"),
    [
        ("out.csv", "csv", False),
        ("out.json", "json", False),
        ("out.jsonl", "jsonl", False),
        ("out.csv.partial", "jsonl", True),  # an interrupted output is always JSON lines
    ],
)
def test_a_file_of_another_program_is_not_replaced(tmp_path, name, kind, resume):
    path = tmp_path / name.removesuffix(".partial")
    write(path, [])
    path.unlink()
    (tmp_path / name).write_text(FOREIGN[kind])
    message = f"{name}: exists and is no .{kind} file of this program"
    with pytest.raises(UserError, match=re.escape(message)):
        OutputFile(str(path), resume, SETTINGS).__enter__()
    assert (tmp_path / name).read_text() == FOREIGN[kind]
    assert not list(tmp_path.glob("*.lock"))


DAMAGED = {
    "csv": ",".join(COLUMNS) + "\na.jpg,2,1,one,0.9,,\n",  # its first rank is missing
    "json": '[\n{"path": "a.jpg", "predictions": []}',
    "jsonl": '{"path": "a.jpg"}\n',
}


@file_formats
def test_a_damaged_output_is_not_continued(tmp_path, kind):
    path = tmp_path / f"out.{kind}"
    write(path, EXAMPLES)
    path.write_text(DAMAGED[kind])
    with pytest.raises(UserError, match=rf"exists and is no \.{kind} file of this program"):
        OutputFile(str(path), True, SETTINGS).__enter__()
    assert path.read_text() == DAMAGED[kind]
    assert sorted(os.listdir(tmp_path)) == [path.name, f"{path.name}.settings"]


def test_an_output_that_was_made_with_other_settings_is_not_continued(tmp_path):
    path = tmp_path / "out.csv"
    partial_of(path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    other = SETTINGS | {"--means": [0.5, 0.5, 0.5], "--checkpoint": "other"}
    with pytest.raises(UserError) as error:
        OutputFile(str(path), True, other).__enter__()
    assert "another --checkpoint, whose sha256 begins with sha256; type that" in str(error.value)
    other = SETTINGS | {"--means": [0.5, 0.5, 0.5], "--x": 1}
    with pytest.raises(UserError, match=r"another --means \(\[0.* another --x \(None, not 1\)"):
        OutputFile(str(path), True, other).__enter__()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("record", [None, b"[]", b"{"])
def test_an_output_without_a_record_of_its_settings_is_not_continued(tmp_path, record):
    path = tmp_path / "out.csv"
    write(path, EXAMPLES)
    (tmp_path / "out.csv.settings").unlink()
    if record is not None:
        (tmp_path / "out.csv.settings").write_bytes(record)
    with pytest.raises(UserError, match="out.csv.settings, which says how out.csv was made"):
        OutputFile(str(path), True, SETTINGS).__enter__()


def test_a_linked_output_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out.csv").symlink_to(tmp_path / "real" / "file.csv")
    write(tmp_path / "out.csv", EXAMPLES[:1])
    assert (tmp_path / "out.csv").is_symlink()
    assert (tmp_path / "real" / "file.csv").read_bytes() == write(tmp_path / "b.csv", EXAMPLES[:1])


def test_an_output_is_locked_while_it_grows(tmp_path):
    with OutputFile(str(tmp_path / "out.csv"), False, {}) as output:
        lock = (tmp_path / "out.csv.lock").read_text()
        output.write(EXAMPLES)
    assert lock.startswith(f"process {os.getpid()} on ")
    assert sorted(os.listdir(tmp_path)) == ["out.csv", "out.csv.settings"]


def test_an_output_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="folder.csv: cannot write it: is a folder"):
        OutputFile(str(tmp_path / "folder.csv"), False, {}).__enter__()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/a.csv: cannot write it"):
        OutputFile(str(tmp_path / "file" / "a.csv"), False, {}).__enter__()


def test_what_an_interrupted_run_has_left_is_not_discarded_unasked(tmp_path):
    path = tmp_path / "out.csv"
    lines = partial_of(path)
    with pytest.raises(UserError, match="--resume, or discard them with --overwrite"):
        write(path, EXAMPLES)
    assert (tmp_path / "out.csv.partial").read_bytes() == lines
    with OutputFile(str(path), False, SETTINGS, overwrite=True) as output:
        output.write(EXAMPLES[:1])
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert {row["path"] for row in csv.DictReader(file)} == {EXAMPLES[0].path}


def test_a_pipe_that_is_closed_while_results_come_is_no_error_of_the_file(tmp_path):
    """Such as that of `--format csv`, which prints each result as well."""

    def results():
        yield Result("a.jpg", [], "broken")
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        with OutputFile(str(tmp_path / "out.csv"), False, {}) as output:
            output.write(results())
    assert "a.jpg" in (tmp_path / "out.csv.partial").read_text()

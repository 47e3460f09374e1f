"""inference.output_file: growing, resuming, and what an output was made with."""

import os

import pytest
from conftest import held_by_another_process
from test_results import EXAMPLES, NOT_TEXT, PATHS, file_formats

from inference.output_file import OutputFile
from system.messages import UserError

SETTINGS = {"--checkpoint": "sha256", "--top_k": 1, "--means": [0, 0, 0]}


def write(path, content) -> bytes:
    """Write results to an output file; returns its bytes."""
    with OutputFile(str(path), False, SETTINGS) as output:
        output.write(content)
    return path.read_bytes()


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
        with OutputFile(str(path), True, SETTINGS) as output:
            missing = list(output.missing(PATHS))
            output.write(by_path[path] for path in missing)
        assert path.read_bytes() == complete, length
        stored = sum(end <= length for end in lengths)
        assert len(missing) <= len(EXAMPLES) - stored + (kind == "csv")  # its last may lack rows
    assert sorted(os.listdir(tmp_path)) == [path.name, f"{path.name}.settings"]


@file_formats
def test_a_cut_off_result_of_an_image_that_is_no_longer_there_is_removed(tmp_path, kind):
    path, partial = tmp_path / f"out.{kind}", tmp_path / f"out.{kind}.partial"
    expected = write(path, EXAMPLES[:2])
    complete = write(path, EXAMPLES[:3])
    assert expected.endswith(b"\n") and complete.endswith(b"\n")
    path.unlink()
    partial.write_bytes(complete[: len(expected) + 10])  # within the third result
    by_path = {result.path: result for result in EXAMPLES}
    with OutputFile(str(path), True, SETTINGS) as output:
        output.write(by_path[image] for image in output.missing(PATHS[:2]))
    assert path.read_bytes() == expected


@file_formats
def test_new_images_are_added_to_a_complete_output(tmp_path, kind):
    path = tmp_path / f"out.{kind}"
    write(path, EXAMPLES[:4])
    with OutputFile(str(path), True, SETTINGS) as output:
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
    with OutputFile(str(path), False, SETTINGS) as output:
        assert list(output.missing(PATHS)) == PATHS
        output.write(EXAMPLES[:1])
    assert path.read_bytes() == expected
    assert sorted(os.listdir(tmp_path)) == [path.name, f"{path.name}.settings"]


FOREIGN = {"csv": "a,b\n1,2\n", "json": "[1, 2]", "jsonl": '{"name": "x"}\n'}


@file_formats
@pytest.mark.parametrize("suffix", ["", ".partial"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_file_of_another_program_is_not_replaced(tmp_path, kind, suffix, resume):
    path = tmp_path / f"out.{kind}"
    write(path, [])
    path.unlink()
    foreign = tmp_path / f"out.{kind}{suffix}"
    foreign.write_text(FOREIGN[kind])
    if suffix and not resume:
        return  # a file of this name is this program's
    with pytest.raises(UserError, match=rf"out\.{kind}.* exists and is no \.{kind} file of this"):
        OutputFile(str(path), resume, SETTINGS).__enter__()
    assert foreign.read_text() == FOREIGN[kind]
    assert not list(tmp_path.glob("*.lock"))


CHANGES = {"--top_k": 2, "--checkpoint": "other", "--means": [0.5, 0.5, 0.5]}


@pytest.mark.parametrize("flag", CHANGES)
@pytest.mark.parametrize("is_complete", [True, False])
def test_an_output_that_was_made_with_other_settings_is_not_continued(tmp_path, flag, is_complete):
    path = tmp_path / "out.csv"
    write(path, EXAMPLES)
    if not is_complete:
        path.rename(tmp_path / "out.csv.partial")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match=f"out.csv was made with another {flag} \\("):
        OutputFile(str(path), True, SETTINGS | {flag: CHANGES[flag]}).__enter__()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("record", [None, b"", b"[]", b"{", b"\xff"])
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


def test_the_second_process_names_the_first(tmp_path):
    path = tmp_path / "out.csv"
    manager = f"OutputFile({str(path)!r}, False, {{}})"
    held = ("from inference.output_file import OutputFile", manager)
    with held_by_another_process(*held) as process:
        with pytest.raises(UserError, match=f"out.csv: process {process.pid} on .* is writing it"):
            OutputFile(str(path), False, {}).__enter__()
        process.kill()
        process.wait()
        write(path, EXAMPLES)  # the system has released the lock
    assert sorted(os.listdir(tmp_path)) == ["out.csv", "out.csv.settings"]


def test_an_output_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="folder.csv: cannot write it: is a folder"):
        OutputFile(str(tmp_path / "folder.csv"), False, {}).__enter__()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/a.csv: cannot write it"):
        OutputFile(str(tmp_path / "file" / "a.csv"), False, {}).__enter__()


def test_an_output_from_before_there_was_novelty_is_replaced_and_not_resumed(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("path,rank,category,name,probability,error\na.jpg,1,2,two,0.500000,\n")
    with pytest.raises(UserError, match="out.csv.settings"):
        with OutputFile(str(path), True, SETTINGS):
            pass
    assert b"two" not in write(path, EXAMPLES[:1])

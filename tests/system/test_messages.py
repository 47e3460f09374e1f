"""system.messages: errors and warnings in one line, and progress."""

import itertools
import os
import re
import struct
import sys
import time

import pytest

from system import messages

# ---------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (" text ", "text"),
        ("one\ntwo \r\n  three\n", "one two three"),
        ("\x1b[31mred\x07\x9b", "\\x1b[31mred\\x07\\x9b"),
        (os.fsdecode(b"no text \xff"), "no text \\udcff"),
        ("Gänseblümchen ひ", "Gänseblümchen ひ"),
    ],
)
def test_text_becomes_one_line_without_control_characters(text, line, capsys):
    assert messages.one_line(text) == line
    messages.warn(text)
    assert capsys.readouterr() == ("", f"warning: {line}\n")


def test_long_lists_are_shortened():
    words = list("abcdef")
    assert messages.shorten(words) == "a, b, c, d, e, ..."
    assert messages.shorten(words[:5]) == "a, b, c, d, e"
    assert messages.shorten(iter(words), 2) == "a, b, ..."
    assert messages.shorten(["x" * 300]) == "x" * 200
    assert messages.shorten([]) == ""


def test_of_a_long_message_the_end_stays():
    assert messages.end_of("the\n  reason") == "the reason"
    text = "[Library] : 10 : " + 100 * "at somewhere.h " + "the reason"
    assert messages.end_of(text).startswith("... ") and messages.end_of(text).endswith("the reason")
    assert len(messages.end_of(text)) == 304


# ---------------------------------------------------------------- progress


@pytest.mark.parametrize(
    ("sizes", "done", "total", "printed"),
    [
        ([1] * 100, 0, 100, range(10, 101, 10)),
        ([30, 1, 1, 0, 8, 60], 0, 100, [30, 40, 100]),
        ([10] * 6, 40, 100, range(50, 101, 10)),
        ([1] * 3, 0, 3, [1, 2, 3]),
        ([], 0, 0, []),
    ],
)
def test_without_a_terminal_progress_is_a_line_for_each_tenth(sizes, done, total, printed, capsys):
    batches = [["item"] * size for size in sizes]
    assert list(messages.progress(batches, total, "label", size=len, done=done)) == batches
    output, lines = capsys.readouterr()
    pattern = re.compile(r"label: (\d+)/(\d+), (\d+) s left")
    matches = [pattern.fullmatch(line) for line in lines.splitlines()]
    assert [(int(m[1]), int(m[2])) for m in matches] == [(count, total) for count in printed]
    assert not matches or matches[-1][3] == "0"
    assert output == ""


def test_the_time_that_remains_follows_from_the_items_of_this_run(capsys, monkeypatch):
    """With a clock on which each batch takes 2 seconds; 40 of 100 items were done before."""
    clock = itertools.count(step=2)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    list(messages.progress([range(10)] * 6, 100, "label", size=len, done=40))
    monkeypatch.undo()
    seconds = re.findall(r"/100, (\d+) s left", capsys.readouterr().err)
    assert seconds == ["10", "8", "6", "4", "2", "0"]


def test_a_batch_counts_when_it_is_finished(capsys):
    batches = messages.progress(["ab", "cd"], 4, "label", size=len)
    assert next(batches) == "ab" and capsys.readouterr().err == ""
    assert next(batches) == "cd" and capsys.readouterr().err.startswith("label: 2/4, ")


def test_on_a_terminal_progress_is_a_bar(monkeypatch):
    pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    import fcntl  # here, because Windows lacks them
    import termios

    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    try:
        with open(writer, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            assert list(messages.progress("abc", 5, "label", size=len, done=2)) == list("abc")
            print("end", file=terminal, flush=True)
            text = b""
            while b"end" not in text:
                text += os.read(reader, 2**16)
    finally:
        os.close(reader)
    assert b"\rlabel:  40%" in text and b"\rlabel: 100%" in text and b"5/5" in text
    assert b"s left" not in text

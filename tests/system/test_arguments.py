"""system.arguments: the parser, types of values, errors, warnings and progress."""

import argparse
import itertools
import os
import re
import signal
import struct
import subprocess
import sys
import time

import pytest
from conftest import ROOT, TIMEOUT

import predict
import train
from system import arguments, messages, scripts
from system.messages import UserError

# ---------------------------------------------------------------- three numbers

SCRIPTS = {
    "train": (train.parse_arguments, ["--data_dir", "d", "--output_cat", "3"]),
    "predict": (predict.parse_arguments, ["--input", "i.jpg", "--checkpoint", "c.pth"]),
}
SPELLINGS = [
    ["--F", "[0.4,", "0.5,", "0.6]"],  # unquoted, as a shell splits it
    ["--F", "[0.4, 0.5, 0.6]"],
    ["--F", "[0.4,0.5,0.6]"],
    ["--F", "0.4,0.5,0.6"],
    ["--F", "0.4, 0.5, 0.6"],
    ["--F", "0.4", "0.5", "0.6"],
    ["--F", "0.4 0.5 0.6"],
    ["--F", "[0.4", "0.5", "0.6]"],
    ["--F", "(0.4 0.5 0.6)"],
    ["--F=[0.4,", "0.5,", "0.6]"],
    ["--F=0.4,0.5,0.6"],
    ["--F", "4e-1", ".5", "+0.60"],
]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flag", ["means", "stds"])
@pytest.mark.parametrize("words", SPELLINGS, ids=" ".join)
def test_three_numbers_are_parsed_in_every_spelling(script, flag, words):
    parse, required = SCRIPTS[script]
    words = [word.replace("--F", f"--{flag}") for word in words]
    for command_line in (required + words, words + required):
        args = parse(command_line)
        assert list(getattr(args, flag)) == [0.4, 0.5, 0.6]


@pytest.mark.parametrize("words", [["-0.4", "-0.5", "0.6"], ["[-0.4,", "-0.5,", "0.6]"]])
def test_means_may_be_negative(words):
    for parse, required in SCRIPTS.values():
        assert list(parse([*required, "--means", *words]).means) == [-0.4, -0.5, 0.6]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--means", ["nan", "0.5", "0.5"]),
        ("--means", ["0.5", "inf", "0.5"]),
        ("--means", ["0.5", "0.5", "2e6"]),
        ("--means", ["0.5,0.5"]),
        ("--means", ["0.1", "0.2", "0.3", "0.4"]),
        ("--means", ["a,b,c"]),
        ("--means", [""]),
        ("--means", []),
        ("--stds", ["0.5", "0", "0.5"]),
        ("--stds", ["0.5", "1e-50", "0.5"]),
        ("--stds", ["0.5", "-0.1", "0.5"]),
        ("--stds", ["0.5", "0.5", "nan"]),
    ],
)
def test_invalid_triples_are_errors_that_name_the_flag(script, flag, words):
    parse, required = SCRIPTS[script]
    with pytest.raises(UserError, match=flag):
        parse([*required, flag, *words])


def test_only_flags_for_triples_take_several_words():
    parser = arguments.ArgumentParser(triples=("--three",))
    parser.add_argument("--three", type=arguments.triple)
    parser.add_argument("--text")
    args = parser.parse_args(["--text", "1", "--three", "1", "2", "3"])
    assert (args.text, args.three) == ("1", [1, 2, 3])
    with pytest.raises(UserError, match="unrecognized arguments: 2"):
        parser.parse_args(["--text", "1", "2"])


# ---------------------------------------------------------------- other values


def test_flags_are_not_abbreviated():
    with pytest.raises(UserError, match="--epoch.*; see --help$"):
        train.parse_arguments(["--data_dir", "d", "--output_cat", "3", "--epoch", "2"])


VALID = [
    (arguments.finite_number, "-1e3", -1000.0),
    (arguments.positive_number, "1e-9", 1e-9),
    (arguments.fraction, "0", 0.0),
    (arguments.fraction, "0.999", 0.999),
    (arguments.whole_number(0), "0", 0),
    (arguments.whole_number(1, 5), " 5 ", 5),
    (arguments.whole_number(0), str(10**18), 10**18),
    (arguments.multiple_of(32, 64, 1024), " 448 ", 448),
    (arguments.multiple_of(32, 64, 1024), "64", 64),
]
INVALID = [
    (arguments.finite_number, ["", "x", "nan", "inf", "-inf", "1e400"], "a finite number"),
    (arguments.positive_number, ["0", "-1"], "above 0"),
    (arguments.positive_number, ["nan"], "a finite number"),
    (arguments.fraction, ["1", "-0.1"], "at least 0 and below 1"),
    (arguments.whole_number(0), ["-1", "1.0", "1e3", "", str(10**18 + 1), "9" * 30], "from 0 on"),
    (arguments.whole_number(1, 5), ["0", "6"], "from 1 to 5"),
    (arguments.multiple_of(32, 64, 1024), ["32", "1056", "x"], "from 64 to 1024"),
    (arguments.multiple_of(32, 64, 1024), ["450", "479"], "a multiple of 32: 448 or 480"),
]


@pytest.mark.parametrize(("parse", "text", "value"), VALID)
def test_a_valid_value_is_parsed(parse, text, value):
    assert parse(text) == value and type(parse(text)) is type(value)


@pytest.mark.parametrize(
    ("parse", "text", "reason"),
    [(parse, text, reason) for parse, texts, reason in INVALID for text in texts],
)
def test_an_invalid_value_is_refused_with_the_reason(parse, text, reason):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        parse(text)
    assert str(error.value).startswith(f"{text!r} is not ")
    assert str(error.value).endswith(reason)


# ---------------------------------------------------------------- exit statuses


@pytest.fixture
def listens_to_sigint():
    """Python ignores Ctrl-C if a shell started it in the background."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def stopped_by(error):
    """Return a `main` that ends with an error."""

    def main():
        raise error

    return main


def stopped_by_signal(number):
    """Return a `main` that is ended by a signal."""

    def main():
        os.kill(os.getpid(), number)
        time.sleep(TIMEOUT)

    return main


@pytest.mark.parametrize(
    ("main", "status", "line"),
    [
        (stopped_by(UserError("no such file")), 2, "train.py: error: no such file"),
        (stopped_by(UserError("one\n\n   two")), 2, "train.py: error: one two"),
        (stopped_by(KeyboardInterrupt), 130, "train.py: stopped; see above"),
        (stopped_by_signal(signal.SIGINT), 130, "train.py: stopped; see above"),
        (stopped_by_signal(signal.SIGTERM), 143, "train.py: terminated; see above"),
    ],
    ids=["error", "error of several lines", "interrupt", "SIGINT", "SIGTERM"],
)
def test_a_script_that_fails_ends_with_one_line_and_a_status(
    capsys, listens_to_sigint, main, status, line
):
    previous = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        scripts.run_script(main, "train.py", "; see above")
    assert stop.value.code == status
    assert capsys.readouterr() == ("", f"{line}\n")
    assert signal.getsignal(signal.SIGTERM) is previous


def test_a_script_that_succeeds_ends_normally(capsys):
    previous = signal.getsignal(signal.SIGTERM)
    scripts.run_script(lambda: print("done"), "train.py")
    assert capsys.readouterr() == ("done\n", "")
    assert signal.getsignal(signal.SIGTERM) is previous


def test_a_bug_is_raised_with_its_traceback():
    with pytest.raises(ZeroDivisionError):
        scripts.run_script(lambda: 1 / 0, "train.py")


PROGRAM = """
import sys
from system.scripts import run_script
run_script(lambda: [print(sys.argv[1], flush=True) for _ in range(int(sys.argv[2]))], "train.py")
"""


def test_a_script_whose_output_nobody_reads_ends_silently():
    """A pipe holds less than the 2 MB that it writes."""
    command = [sys.executable, "-c", PROGRAM, "x" * 1000, "2000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(command, cwd=ROOT, env=buffered, **pipes) as process:
        assert process.stdout.readline() == b"x" * 1000 + b"\n"
        process.stdout.close()
        assert process.wait(TIMEOUT) == 141
        assert process.stderr.read() == b""


def test_letters_that_the_terminal_lacks_are_escaped():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "Gänseblümchen", "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=TIMEOUT,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == rb"G\xe4nsebl\xfcmchen" + b"\n"


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


# ---------------------------------------------------------------- progress


@pytest.mark.parametrize(
    ("sizes", "done", "total", "printed"),
    [
        ([1] * 100, 0, 100, range(10, 101, 10)),
        ([25] * 4, 0, 100, [25, 50, 75, 100]),
        ([30, 1, 1, 0, 8, 60], 0, 100, [30, 40, 100]),
        ([10] * 6, 40, 100, range(50, 101, 10)),
        ([5] * 4, 85, 105, [95, 105]),
        ([1] * 3, 0, 3, [1, 2, 3]),
        ([], 0, 0, []),
        ([], 7, 7, []),
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

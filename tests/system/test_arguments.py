"""system.arguments: the parser and types of values."""

import argparse
import re

import pytest

import predict
import train
from system import arguments
from system.messages import UserError

# ---------------------------------------------------------------- three numbers

SCRIPTS = {
    "train": (train.parse_arguments, ["--data_dir", "d", "--output_cat", "3"]),
    "predict": (predict.parse_arguments, ["--input", "i.jpg", "--checkpoint", "c.pth"]),
}
SPELLINGS = [
    ["--F", "[0.4,", "0.5,", "0.6]"],  # unquoted, as a shell splits it
    ["--F", "[0.4, 0.5, 0.6]"],
    ["--F", "0.4,0.5,0.6"],
    ["--F", "0.4", "0.5", "0.6"],
    ["--F", "(0.4 0.5 0.6)"],
    ["--F=[0.4,", "0.5,", "0.6]"],
    ["--F", "4e-1", ".5", "+0.60"],
]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=" ".join)
def test_three_numbers_are_parsed_in_every_spelling(spelling):
    for parse, required in SCRIPTS.values():
        for flag in ("means", "stds"):
            words = [word.replace("--F", f"--{flag}") for word in spelling]
            for command_line in (required + words, words + required):
                assert list(getattr(parse(command_line), flag)) == [0.4, 0.5, 0.6]


@pytest.mark.parametrize("words", [["-0.4", "-0.5", "0.6"], ["[-0.4,", "-0.5,", "0.6]"]])
def test_means_may_be_negative(words):
    for parse, required in SCRIPTS.values():
        assert list(parse([*required, "--means", *words]).means) == [-0.4, -0.5, 0.6]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--means", ["nan", "0.5", "0.5"]),
        ("--means", ["0.5", "0.5", "2e6"]),
        ("--means", ["128", "120", "110"]),  # of the range 0-255
        ("--means", ["0.5,0.5"]),
        ("--means", ["0.1", "0.2", "0.3", "0.4"]),
        ("--means", [""]),
        ("--means", []),
        ("--stds", ["0.5", "0", "0.5"]),
        ("--stds", ["0.5", "1e-50", "0.5"]),
    ],
)
def test_invalid_triples_are_errors_that_name_the_flag(flag, words):
    for parse, required in SCRIPTS.values():
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
    with pytest.raises(UserError, match="--epoch.*; did you mean --epochs"):
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


@pytest.mark.parametrize("words", [["--exclude", ""], ["--exclude", " "], ["--exclude="]])
def test_an_empty_value_is_an_error(words):
    with pytest.raises(UserError, match="^--exclude: its value is empty"):
        train.parse_arguments(["--data_dir", "d", *words])


def test_an_empty_value_among_others_is_an_error():
    with pytest.raises(UserError, match="^--input: its value is empty"):
        predict.parse_arguments(["--checkpoint", "c.pth", "--input", "a.jpg", ""])


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--learning-rate", "did you mean --learning_rate?"),
        ("--lerning_rate=1", "did you mean --learning_rate?"),
        ("--no_such_thing_at_all", "see --help"),
        ("word", "see --help"),
    ],
)
def test_a_mistyped_flag_is_corrected(word, hint):
    with pytest.raises(UserError, match=rf"unrecognized arguments: {word}.*; {re.escape(hint)}$"):
        train.parse_arguments(["--data_dir", "d", "--output_cat", "3", word])


def test_a_home_folder_is_found_behind_an_equals_sign(monkeypatch):
    """Where a shell leaves "~" as it is: a folder of that name would be made."""
    monkeypatch.setenv("HOME", "/home/me")
    args = train.parse_arguments(["--data_dir=~/flowers", "--output_cat=3", "--exclude=~a.csv"])
    assert (args.data_dir, args.exclude) == ("/home/me/flowers", "~a.csv")

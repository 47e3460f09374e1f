"""The command line: its parser, types of values, errors, warnings and progress."""

import argparse
import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Sequence

from system.messages import UserError

VERSION = "1.0.0"  # of the program
NO_MAXIMUM = 10**18
MAX_OF_TRIPLE = 10  # of means and deviations: larger ones are of the range 0-255


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formats --help in 80 columns, with the default of each flag that has one."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26, width=80)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default is None or action.default is False or action.nargs == 0:
            return text
        return f"{text} (default: %(default)s)"


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises UserError and does not accept abbreviated flags.

    (An abbreviation that works today is ambiguous as soon as another flag is added.)

    Args:
        triples: flags whose value is three numbers, which a shell may split into several words:
            `--means [0.485, 0.456, 0.406]`.
    """

    def __init__(self, *, triples: Sequence[str] = (), **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)
        self.triples = triples
        version = f"%(prog)s {VERSION}"
        text = "print the version of the program, and exit"
        self.add_argument("--version", action="version", version=version, help=text)

    def error(self, message: str):
        unknown, *_ = re.findall(r"^unrecognized arguments: (--\w[\w-]*)", message) or [""]
        flags = [flag for action in self._actions for flag in action.option_strings]
        similar = difflib.get_close_matches(unknown, flags, n=1)
        hint = f"did you mean {similar[0]}?" if similar else "see --help"
        raise UserError(f"{message}; {hint}")

    def _print_message(self, message: str, file=None) -> None:
        """Print --help; argparse itself ignores that standard output is full."""
        (file or sys.stdout).write(message)

    def parse_args(self, args=None, namespace=None):
        """Parse a command line, by default that of the process."""
        words: list[str] = []
        last_flag = ""
        for word in sys.argv[1:] if args is None else args:
            value = word
            if word.startswith("--"):
                last_flag, equals, value = word.partition("=")
                value = os.path.expanduser(value)  # shells do not, behind "="
                word = last_flag + equals + value
                value = value if equals else word
            if not value.strip():
                reason = "its value is empty, such as of a variable that is not set"
                raise UserError(f"{last_flag}: {reason}")
            flag, equals, _ = words[-1].partition("=") if words else ("", "", "")
            if flag in self.triples and not word.startswith("--"):
                words[-1] += (" " if equals else "=") + word
            else:
                words.append(word)
        return super().parse_args(words, namespace)


def triple(text: str) -> list[float]:
    """Parse three finite numbers, separated by commas or blanks, with or without brackets."""
    words = re.split(r"[,\s]+", text.strip("[]() "))
    numbers = [finite_number(word) for word in words]
    if len(numbers) != 3 or max(map(abs, numbers)) > 1e6:
        example = "[0.485, 0.456, 0.406]"
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers such as {example}")
    if max(map(abs, numbers)) > MAX_OF_TRIPLE:
        hint = [round(number / 255, 4) for number in numbers]
        raise argparse.ArgumentTypeError(
            f"{text!r} is not of the range 0-1; divided by 255: {hint}"
        )
    return numbers


def positive_triple(text: str) -> list[float]:
    """Parse three finite numbers above 0; see `triple`."""
    numbers = triple(text)
    if min(numbers) < 1e-6:  # far above what a float32 rounds to 0
        raise argparse.ArgumentTypeError(f"{text!r} has a number that is not above 0")
    return numbers


def finite_number(text: str) -> float:
    """Parse a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def positive_number(text: str) -> float:
    """Parse a finite number above 0."""
    if finite_number(text) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return finite_number(text)


def fraction(text: str) -> float:
    """Parse a number from 0 up to, but not including, 1."""
    if not 0 <= finite_number(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not at least 0 and below 1")
    return finite_number(text)


def whole_number(minimum: int, maximum: int = NO_MAXIMUM) -> Callable[[str], int]:
    """Return a parser of whole numbers from `minimum` to `maximum`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\s*\d{1,19}\s*", text) or not minimum <= int(text) <= maximum:
            limits = f"from {minimum}" + (f" to {maximum}" if maximum < NO_MAXIMUM else " on")
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {limits}")
        return int(text)

    return parse


def multiple_of(factor: int, minimum: int, maximum: int) -> Callable[[str], int]:
    """Return a parser of multiples of `factor` from `minimum` to `maximum`."""

    def parse(text: str) -> int:
        value = whole_number(minimum, maximum)(text)
        if value % factor:
            lower = value - value % factor
            hint = f"{lower} or {lower + factor}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a multiple of {factor}: {hint}")
        return value

    return parse

"""The command line: its parser, types of values, errors, warnings and progress."""

from __future__ import annotations

import argparse
import gc
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

from support.startup import SIGNALS

T = TypeVar("T")
NO_MAXIMUM = 10**18
MAX_OF_TRIPLE = 10  # of means and deviations: larger ones are of the range 0-255
FIRST_SECONDS = 30  # after an error, for torchrun's first process to print it


class UserError(Exception):
    """An error that the user can correct: printed as one line, without a traceback."""


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises UserError and does not accept abbreviated flags.

    (An abbreviation that works today is ambiguous as soon as another flag is added.)

    Args:
        triples: flags whose value is three numbers, which a shell may split into several words:
            `--means [0.485, 0.456, 0.406]`.
    """

    def __init__(self, *, triples: Sequence[str] = (), **kwargs):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=layout, **kwargs)
        self.triples = triples

    def error(self, message: str):
        raise UserError(f"{message}; see --help")

    def _print_message(self, message: str, file=None) -> None:
        """Print --help; argparse itself ignores that standard output is full."""
        (file or sys.stdout).write(message)

    def parse_args(self, args=None, namespace=None):
        """Parse a command line, by default that of the process."""
        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
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


def count_or_text(text: str) -> int | str:
    """Parse a whole number from 1 on; other text is returned, for a later and better error."""
    try:
        return whole_number(1)(text)
    except argparse.ArgumentTypeError:
        return text


def check_output_cat(output_cat: int | str | None, num_classes: int, data_dir: str) -> None:
    """Check the number of outputs; those beyond the number of categories give a warning.

    Raises:
        UserError: it is none, or there are more categories; it says what to type.
    """
    if not isinstance(output_cat, int) or output_cat < num_classes:
        value = "is missing" if output_cat is None else output_cat
        raise UserError(
            f"--output_cat {value}: {data_dir} has {num_classes} categories; "
            f"type --output_cat {num_classes}"
        )
    if output_cat > num_classes:
        warn(
            f"--output_cat {output_cat}, but there are {num_classes} categories: the other "
            "outputs will never be predicted"
        )


def run_script(main: Callable[[], object], name: str, hint: str = "") -> None:
    """Call a script's `main` and turn its errors into one line and an exit status.

    A UserError gives status 2, Ctrl-C 130 and SIGTERM 143; the line of the last two ends with
    `hint`. If the reader of standard output is gone, the script ends silently with 141. A second
    signal ends it at once. Under torchrun, the first process prints an error that all have.
    """
    gc.enable()  # see `startup.prepare`
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if previous[number] is not signal.SIG_IGN:
            signal.signal(number, _raise_stopped)
    try:
        if sys.stdout is None:
            raise UserError("standard output is closed")
        if hasattr(sys.stdout, "reconfigure"):  # a name may have letters that the terminal lacks
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            main()
        except SystemExit:  # --help, and a status of 1
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except UserError as error:
        sys.exit(_print_error(f"{name}: error: {error}"))
    except KeyboardInterrupt as stop:
        number = getattr(stop, "number", signal.SIGINT)
        if is_first_process():
            print(one_line(f"{name}: {SIGNALS[signal.Signals(number)]}{hint}"), file=sys.stderr)
        sys.exit(128 + number)
    except OSError as error:
        if error.filename is not None:  # of a file: a bug, since those are UserErrors
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(141)
        reason = f"cannot write to standard output: {error.strerror}"
        sys.exit(_print_error(f"{name}: error: {reason}"))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Stopped(KeyboardInterrupt):
    """Raised when SIGINT or SIGTERM arrives; code that lets Ctrl-C pass lets it pass."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def _raise_stopped(number: int, frame: object) -> None:
    _exit_at_next_signal()
    raise _Stopped(number)


def _exit_at_next_signal() -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is _raise_stopped:
            signal.signal(number, _exit_now)


def _exit_now(number: int, frame: object) -> None:
    os._exit(128 + number)


def is_first_process() -> bool:
    """Return whether this is the only process, or the first one of torchrun."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def _print_error(message: str) -> int:
    """Print an error, unless torchrun's first process has it as well; returns the exit status.

    When the first process has printed it, torchrun ends this one. If this one ended before,
    torchrun would end the first one, which may still import.
    """
    if not is_first_process():
        _exit_at_next_signal()
        time.sleep(FIRST_SECONDS)
    print(one_line(message), file=sys.stderr)
    return 2


def warn(message: str) -> None:
    """Print a warning to standard error, as one line."""
    print(f"warning: {one_line(message)}", file=sys.stderr)


def one_line(text: str) -> str:
    """Return text, such as a file name, without line ends and control characters."""
    text = re.sub(r"\s*\n\s*", " ", text.strip())
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda c: ascii(c[0])[1:-1], text)


def shorten(words: Iterable[str], limit: int = 5) -> str:
    """Return the first `limit` words of a list that may be long, separated by commas."""
    words = list(words)
    return ", ".join(w[:200] for w in words[:limit]) + (", ..." if len(words) > limit else "")


def progress(
    batches: Iterable[T],
    total: int,
    label: str,
    *,
    size: Callable[[T], int],
    done: int = 0,
    delay: float = 0.0,
) -> Iterator[T]:
    """Yield batches and show progress: a bar on a terminal, else a line for each tenth.

    Args:
        total: number of items in all batches, with those that were done before.
        label: what the items are.
        size: returns the number of items in a batch.
        done: number of items that were done before.
        delay: seconds before anything is shown.
    """
    start, first, is_hidden = time.monotonic(), done, not sys.stderr.isatty()
    with tqdm(total=total, initial=done, desc=label, disable=is_hidden, delay=delay) as bar:
        for batch in batches:
            yield batch
            previous, done = done, done + size(batch)
            bar.update(done - previous)
            passed = time.monotonic() - start
            if is_hidden and done * 10 // total > previous * 10 // total and passed >= delay:
                seconds = passed / (done - first) * (total - done)
                print(f"{label}: {done}/{total}, {seconds:.0f} s left", file=sys.stderr)

"""What a command says: errors of users, warnings, and progress."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """An error that the user can correct: printed as one line, without a traceback."""


def is_first_process() -> bool:
    """Return whether this is the only process of the command, or the first one of torchrun."""
    is_only = os.environ.get("WORLD_SIZE", "") in ("", "1")
    return is_only or os.environ.get("RANK", "0") == "0"


def warn(message: str) -> None:
    """Print a warning to standard error, as one line."""
    print(f"warning: {one_line(message)}", file=sys.stderr)


def one_line(text: str) -> str:
    """Return text, such as a file name, without line ends and control characters."""
    text = re.sub(r"\s*\n\s*", " ", text.strip())
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda c: ascii(c[0])[1:-1], text)


def counted(number: int, one: str, many: str) -> str:
    """Return a number with the words that go with it: "1 image is" or "2 images are"."""
    return f"{number} {one if number == 1 else many}"


def shorten(words: Iterable[str], limit: int = 5) -> str:
    """Return the first `limit` words of a list that may be long, separated by commas."""
    words = list(words)
    return ", ".join(w[:200] for w in words[:limit]) + (", ..." if len(words) > limit else "")


def end_of(text: str) -> str:
    """Return the end of a message of another library, where the reason stands."""
    text = one_line(text)
    return text if len(text) <= 300 else f"... {text[-300:]}"


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
    from tqdm import tqdm  # here, because a script's first lines import this module

    start = time.monotonic()
    first = done
    is_hidden = not sys.stderr.isatty()
    with tqdm(total=total, initial=done, desc=label, disable=is_hidden, delay=delay) as bar:
        for batch in batches:
            yield batch
            previous = done
            done += size(batch)
            bar.update(done - previous)
            passed = time.monotonic() - start
            if is_hidden and done * 10 // total > previous * 10 // total and passed >= delay:
                seconds = passed / (done - first) * (total - done)
                print(f"{label}: {done}/{total}, {seconds:.0f} s left", file=sys.stderr)

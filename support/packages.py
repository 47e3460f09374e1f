"""Packages that only some commands need: importing them when it is safe, and their silence."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from types import ModuleType

from support.arguments import UserError
from support.startup import SIGNALS


def import_optional(purpose: str, *packages: str) -> list[ModuleType]:
    """Import packages that only `purpose` needs; signals wait, see `delayed_signals`.

    Raises:
        UserError: one of them is missing, or does not work on this machine.
    """
    try:
        with silenced(), delayed_signals():
            return [importlib.import_module(package) for package in packages]
    except ImportError as error:
        noun = "package" if len(packages) == 1 else "packages"
        needed = f"{noun} {' and '.join(packages)}: pip install {' '.join(packages)}"
        raise UserError(f"{purpose} needs the {needed}") from error


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Silence a library's output, logging and warnings."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as devnull,
            contextlib.redirect_stdout(devnull),
            contextlib.redirect_stderr(devnull),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


@contextlib.contextmanager
def delayed_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait: an exception within the C++ code of torch's import aborts."""
    if threading.current_thread() is not threading.main_thread():
        yield  # which gets no signals
        return
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in SIGNALS
        if signal.getsignal(number) not in (signal.SIG_IGN, None)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])

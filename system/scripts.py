"""What a script does first, before the imports that take seconds: closed streams, early signals."""

import atexit
import contextlib
import gc
import importlib
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType, TracebackType

from system.messages import UserError, is_first_process, one_line

FIRST_SECONDS = 30  # after an error, for torchrun's first process to print it
SIGNALS = {signal.SIGINT: "stopped", signal.SIGTERM: "terminated"}  # and what the line says


def prepare(name: str) -> None:
    """Open the standard streams that are closed, and end with one line on Ctrl-C and SIGTERM.

    A package that is missing gives one line, too.

    The first file that a program opens would otherwise get the number of a closed stream, and
    everything that is printed to that stream would go into the file.

    Args:
        name: of the script, for the line. `run_script` handles later signals.
    """
    # Python searches all that is imported for garbage, during the imports and when it ends.
    gc.disable()  # until `run_script`
    atexit.register(gc.freeze)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the system gives it the lowest free number
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")
    # torch's own lines about connections, up to twenty, would hide the one of the script.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    # Large arrays in huge pages: with AMX, a page fault for every 4 KB takes a quarter of the time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

    def stop(number: int, frame: FrameType | None) -> None:
        os.write(2, f"{name}: {SIGNALS[signal.Signals(number)]}\n".encode())
        os._exit(128 + number)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as in the background of a shell
            signal.signal(number, stop)

    def explain(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ModuleNotFoundError):
            remedy = "activate the virtual environment, or pip install -r requirements.txt"
            print(f"{name}: error: {error}: {remedy}", file=sys.stderr)
            sys.exit(2)
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = explain


def run_script(main: Callable[[], object], name: str, hint: str = "") -> None:
    """Call a script's `main` and turn its errors into one line and an exit status.

    A UserError gives status 2, Ctrl-C 130 and SIGTERM 143; the line of the last two ends with
    `hint`. If the reader of standard output is gone, the script ends silently with 141. A second
    signal ends it at once. Under torchrun, the first process prints an error that all have.
    """
    gc.enable()  # which `prepare` switched off
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


def _print_error(message: str) -> int:
    """Print an error, unless torchrun's first process has it as well; returns the exit status.

    When the first process has printed it, torchrun ends this one. If this one ended before,
    torchrun would end the first one, which may still import.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and not is_first_process():
        _exit_at_next_signal()
        time.sleep(FIRST_SECONDS)
    print(one_line(message), file=sys.stderr)
    return 2


def import_optional(purpose: str, *packages: str) -> list[ModuleType]:
    """Import packages that only `purpose` needs; signals wait, see `delayed_signals`.

    Raises:
        UserError: one of them is missing, or does not work on this machine.
    """
    # onnxruntime, 1.32 for example, would store a number of the machine, and events to be sent.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
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

"""What a script does first, before the imports that take seconds: closed streams, early signals."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from types import FrameType

SIGNALS = {signal.SIGINT: "stopped", signal.SIGTERM: "terminated"}  # and what the line says


def prepare(name: str) -> None:
    """Open the standard streams that are closed, and end with one line on Ctrl-C and SIGTERM.

    The first file that a program opens would otherwise get the number of a closed stream, and
    everything that is printed to that stream would go into the file.

    Args:
        name: of the script, for the line. `support.arguments.run_script` handles later signals.
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

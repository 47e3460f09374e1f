"""Load and compute ahead: batches of a dataset by processes, any other results by threads.

torch is imported where processes are needed: predict.py runs without it.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from system.messages import UserError

if TYPE_CHECKING:
    from torch.utils.data import Dataset

T = TypeVar("T")
R = TypeVar("R")


def load_ahead(
    dataset: Dataset, batch_size: int, workers: int, collate: Callable[[list], T]
) -> Iterator[T]:
    """Yield batches of a dataset, in its order, loaded by processes.

    Batches should hold arrays of numpy, which pass through pipes. Tensors would pass through shared
    memory, of which containers have little.

    Args:
        workers: number of processes; 0 loads in this one.
        collate: joins items into a batch.

    Raises:
        RuntimeError: a process has failed; `failed_worker_is_an_error` says it to the user.
    """
    import torch
    from torch.utils.data import DataLoader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more workers than cores, which the user asked for
        loader = DataLoader(
            dataset,
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=_follow_parent,
            generator=torch.Generator(),  # so that torch's global one does not change
        )
        batches = iter(loader)
    yield from batches


@contextlib.contextmanager
def failed_worker_is_an_error() -> Iterator[None]:
    """Raise UserError if a process of `load_ahead` fails: torch raises an error anywhere then."""
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        if "DataLoader worker" not in f"{error}":
            raise
        reason = str(error).strip().partition("\n")[0]
        remedy = "try a smaller number of --workers; with 0, there is no other process"
        raise UserError(f"a process that decodes images has failed: {reason}; {remedy}") from error


def _follow_parent(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM, which all processes get, to the parent process, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The thread that shares tensors would print a traceback if its connection is then closed.
    sys.excepthook = lambda *_: None
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has ended, however that ended.

    torch would wait until somebody reads the batches that are still in the pipe.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def map_ahead(
    function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int
) -> Iterator[R]:
    """Yield `function(item)` in the order of the items, computed by threads.

    Args:
        workers: number of threads; 0 computes each result when it is asked for.
        ahead: number of results that are computed before they are asked for.
    """
    if not workers:
        yield from map(function, items)
        return
    pending: collections.deque[Future[R]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

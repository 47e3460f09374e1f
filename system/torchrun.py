"""Several processes of torchrun: process group, broadcast, scatter, gather.

torch is imported where there is more than one process: predict.py runs without it.

Between processes, values pass as pickled objects through gloo, also on GPUs: they are small, and on
their way to the first process's disk.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from system.messages import UserError, is_first_process, shorten
from system.scripts import import_optional

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

VARIABLES = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")  # that torchrun sets
JOIN_TIMEOUT = 50  # seconds
WORK_TIMEOUT = 86_400  # while the first process reads a million files; an end is noticed at once
ERROR_KEY = "error"  # of another process than the first, in `_stores`

T = TypeVar("T")
R = TypeVar("R")
_stores: list[dist.Store] = []  # of the group that this process has joined: keys that all can read


def is_alone() -> bool:
    """Return whether torchrun started this process without others, or nobody did."""
    return os.environ.get("WORLD_SIZE", "") in ("", "1")


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the process group of torchrun, if there is one, and leave it at the end.

    Raises:
        UserError: the other processes do not come within JOIN_TIMEOUT, or the variables that
            describe the group are incomplete: they may be those of another job.
    """
    if is_alone():
        yield
        return
    [dist] = import_optional("torchrun", "torch.distributed")
    _stores.append(_join())
    try:
        yield
    except UserError as error:
        if not is_first_process():  # which prints it
            with contextlib.suppress(RuntimeError):
                _stores[-1].set(ERROR_KEY, str(error))
        raise
    finally:
        dist.destroy_process_group()
        _stores.pop()


def _join() -> dist.Store:
    """Initialize torch.distributed; returns the store of the group.

    That is done in a thread: the main one then gets Ctrl-C and SIGTERM.
    """
    values = {name: os.environ.get(name, "") for name in VARIABLES}
    described = ", ".join(f"{name}={value}" for name, value in values.items() if value)
    remedy = f"; to run alone: env -u {' -u '.join(VARIABLES)} python ..."
    for name, value in values.items():
        if not value or (name != "MASTER_ADDR" and not value.isdecimal()):
            what = f"is {value!r}" if value else "is missing"
            raise UserError(f"{described} ask for several processes, but {name} {what}{remedy}")
    errors: list[Exception] = []
    stores: list[dist.Store] = []

    def initialize() -> None:
        try:
            stores.append(_initialize())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if errors:
        reason = shorten([f"{errors[0]}".partition("\n")[0]])
        raise UserError(
            f"{described}: the other processes did not come within {JOIN_TIMEOUT} seconds "
            f"({reason}){remedy}"
        ) from errors[0]
    return stores[0]


def _initialize() -> dist.Store:
    """Wait for all processes of the group and initialize torch.distributed; returns the store."""
    import torch.distributed as dist

    timeout = datetime.timedelta(seconds=JOIN_TIMEOUT)
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"image-classifier/{attempt}", store)
    store.set(f"joined {rank}", "")
    store.wait([f"joined {other}" for other in range(size)], timeout)
    timeout = datetime.timedelta(seconds=WORK_TIMEOUT)
    dist.init_process_group("gloo", timeout=timeout, store=store, rank=rank, world_size=size)
    return store


def rank_and_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes: 0 and 1 without torchrun."""
    if "torch.distributed" not in sys.modules:
        return 0, 1
    import torch.distributed as dist

    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


@contextlib.contextmanager
def _lost_process_is_an_error() -> Iterator[None]:
    """Raise UserError where torch.distributed reports that another process has ended."""
    try:
        yield
    except RuntimeError as error:
        reason = ""
        with contextlib.suppress(RuntimeError):
            if _stores[-1].check([ERROR_KEY]):
                reason = f" ({_stores[-1].get(ERROR_KEY).decode()})"
        raise UserError(
            f"another process of this run has ended{reason}; what was computed so far is stored: "
            "the same command continues from there, predict.py with --resume"
        ) from error


def broadcast(value: Any) -> Any:
    """Return the first process's `value` in every process."""
    import torch.distributed as dist

    box = [value]
    with _lost_process_is_an_error():
        dist.broadcast_object_list(box)
    return box[0]


def broadcast_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite tensors (same shapes in every process) with those of the first process."""
    import torch.distributed as dist

    with _lost_process_is_an_error():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def gather(values: Iterator[T], steps: int) -> Iterator[list[T]]:
    """In each of `steps`, send the next value of every process to the first one.

    Yields:
        In the first process, the values of all processes that still have one; else nothing.
    """
    import torch.distributed as dist

    rank, size = rank_and_size()
    for _ in range(steps):
        value = next(values, None)
        gathered: list | None = [None] * size if rank == 0 else None
        with _lost_process_is_an_error():
            dist.gather_object(value, gathered)
        if gathered:
            yield [value for value in gathered if value is not None]


def scatter_and_gather(
    items: Iterable[T], work: Callable[[Iterable[T]], Iterable[R]], chunk: int
) -> Iterator[R]:
    """Yield `work(items)`; under torchrun, the first process shares the items out.

    Args:
        items: those of the first process count; it gets the results in their order.
        work: returns a result for each item, in their order.
        chunk: number of items that a process gets at a time.

    Raises:
        UserError: another process has ended.
    """
    rank, size = rank_and_size()
    iterator = iter(items)
    if size == 1:
        yield from work(iterator)
        return
    while True:
        chunks = None
        if rank == 0:
            chunks = [list(itertools.islice(iterator, chunk)) for _ in range(size)]
        chunks = broadcast(chunks)
        if not chunks[0]:
            return
        for results in gather(iter([list(work(chunks[rank]))]), 1):
            for result in results:
                yield from result

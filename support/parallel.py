"""Several threads, and several processes of torchrun: process group, broadcast, scatter, gather.

Between processes, values pass as pickled objects through gloo, also on GPUs: they are small, and on
their way to the first process's disk.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from support.arguments import UserError

T = TypeVar("T")
R = TypeVar("R")


@contextlib.contextmanager
def process_group() -> Iterator[int]:
    """Join the process group of torchrun, if there is one; yields this process's rank."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield 0
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes: 0 and 1 without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@contextlib.contextmanager
def _lost_process_is_an_error() -> Iterator[None]:
    """Raise UserError where torch.distributed reports that another process has ended."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            "another process of this run has ended; the features computed so far are stored: "
            "the same command continues from there"
        ) from error


def broadcast(value: Any) -> Any:
    """Return the first process's `value` in every process."""
    box = [value]
    with _lost_process_is_an_error():
        dist.broadcast_object_list(box)
    return box[0]


def broadcast_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite tensors (same shapes in every process) with those of the first process."""
    with _lost_process_is_an_error():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def gather(values: Iterator[T], steps: int) -> Iterator[list[T]]:
    """In each of `steps`, send the next value of every process to the first one.

    Yields:
        In the first process, the values of all processes that still have one; else nothing.
    """
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
    if not dist.is_initialized():
        yield from work(items)
        return
    (rank, size), iterator = rank_and_size(), iter(items)
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

"""system.workers: threads and processes compute ahead, and the loss of one is an error."""

import contextlib
import itertools
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import (
    ROOT,
    TIMEOUT,
    TINY_TRAIN,
    assert_error,
    children,
    start_training,
    wait_for_features,
)

from system.workers import load_ahead, map_ahead

# ---------------------------------------------------------------- threads


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_items(workers):
    def slow_if_even(number: int) -> int:
        time.sleep(0 if number % 2 else 0.01)
        return number**2

    results = map_ahead(slow_if_even, iter(range(20)), workers, ahead=5)
    assert list(results) == [number**2 for number in range(20)]


@pytest.mark.parametrize(("workers", "ahead"), [(0, 4), (1, 4), (3, 4), (2, 0)])
def test_only_so_many_items_are_taken_ahead(workers, ahead):
    count = itertools.count()
    items = (next(count) for _ in itertools.repeat(None))  # there is no end
    results = map_ahead(str, items, workers, ahead)
    for number in range(10):
        assert next(results) == str(number)
    results.close()
    assert next(count) == 10 + (ahead if workers else 0)


def test_results_are_computed_ahead_by_several_threads():
    barrier = threading.Barrier(3, timeout=TIMEOUT)  # passed by three threads at once
    results = map_ahead(lambda item: barrier.wait(), range(6), workers=3, ahead=3)
    assert sorted(results) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_where_the_result_is_asked_for(workers):
    results = map_ahead(lambda number: 1 / number, [1, 2, 0, 4], workers, ahead=4)
    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)


# ---------------------------------------------------------------- processes that decode


def test_decoding_needs_no_shared_memory(training):
    """As in a container: /dev/shm is small."""
    flags, cache, checkpoint = training
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this user may not mount a small /dev/shm")
    words = [sys.executable, ROOT / TINY_TRAIN, *flags, "--workers", 2]
    command = shlex.join(map(str, words))
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{mount} && exec {command}"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    assert checkpoint.exists()


@pytest.fixture
def decoding(training) -> tuple[subprocess.Popen, list[int]]:
    """A training, and its processes that are decoding images."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("this system has no /proc, which lists the processes that decode")
    flags, cache, _ = training
    process = start_training((*flags, "--workers", 2))
    wait_for_features(cache, process)
    return process, children(process.pid)


def test_a_decoding_process_that_is_killed_ends_the_run_in_one_line(decoding):
    process, workers = decoding
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=TIMEOUT)
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    assert_error(done, "a process that decodes images has failed", "--workers")
    assert not children(process.pid)


def test_decoding_processes_end_when_their_parent_is_killed(decoding):
    process, workers = decoding
    process.kill()
    try:
        process.communicate(timeout=60)  # until nobody has its standard output
    finally:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
    assert len(workers) == 2


def test_more_processes_than_cores_are_no_reason_to_warn(recwarn):
    """As where a container has one core, and the user asks for two."""
    workers = (os.cpu_count() or 1) + 1
    assert list(load_ahead([1, 2, 3], 2, workers, sum)) == [3, 3]
    assert not recwarn.list

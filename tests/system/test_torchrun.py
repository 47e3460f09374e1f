"""system.torchrun: torchrun's processes share the work, and the loss of one is an error."""

import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from conftest import (
    TIMEOUT,
    TINY_TRAIN,
    TORCHRUN,
    assert_error,
    feature_files,
    free_port,
    make_images,
    run,
    same_bits,
    start_training,
    state_of,
    wait_for_features,
)

from system import scripts, torchrun
from system.messages import UserError, is_first_process
from system.torchrun import (
    broadcast,
    broadcast_tensors,
    gather,
    process_group,
    rank_and_size,
    scatter_and_gather,
)

# ---------------------------------------------------------------- a process group


def negate_all(numbers):
    return [-number for number in numbers]


def test_without_torchrun_one_process_does_all_the_work():
    with process_group():
        assert is_first_process() and rank_and_size() == (0, 1) and not dist.is_initialized()
        batches = []
        results = scatter_and_gather(iter([1, 2, 3]), lambda x: batches.append(x) or x, chunk=2)
        assert list(results) == [1, 2, 3] and len(batches) == 1
        assert list(scatter_and_gather([], negate_all, chunk=2)) == []


def check_group(rank: int, port: str) -> None:
    """Call each function of a process group, in one of three processes."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "3"}
    torch.set_num_threads(1)
    sizes = []

    def negate_and_count(numbers):
        sizes.append(len(numbers))
        return negate_all(numbers)

    with process_group():
        assert is_first_process() == (rank == 0) and rank_and_size() == (rank, 3)
        assert broadcast({"rank": rank}) == {"rank": 0}
        tensors = [torch.full((2, 3), rank), torch.full((1,), 10 + rank)]
        broadcast_tensors(tensors)
        assert (tensors[0] == 0).all() and tensors[1].item() == 10

        for count in (0, 1, 5, 12, 13):
            sizes.clear()
            items = range(count) if rank == 0 else ()
            results = list(scatter_and_gather(items, negate_and_count, chunk=2))
            assert results == (negate_all(range(count)) if rank == 0 else [])
            assert max(sizes, default=0) <= 2
            assert sum(sizes) > 0 or count < 5  # every process has its share

        # Each process has as many values as its rank: 0, 1 and 2.
        steps = list(gather(iter([(rank, step) for step in range(rank)]), 3))
        assert steps == ([[(1, 0), (2, 0)], [(2, 1)], []] if rank == 0 else [])
    assert not dist.is_initialized()


def test_three_processes_share_the_items_and_the_first_gets_the_results():
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork, which saves the imports")
    context, port = multiprocessing.get_context("fork"), free_port()
    processes = [context.Process(target=check_group, args=(rank, port)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
    statuses = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert statuses == [0, 0, 0]


# ---------------------------------------------------------------- torchrun train.py


def test_two_processes_give_the_same_weights_as_one(tiny, call, tmp_path):
    # 13 images: 7 and 6 for the processes, in batches of 4.
    data = make_images(tmp_path / "data", ("a", "b"), 4, 1, 1)
    (data / "train" / "b" / "broken.jpg").write_text("no image")
    flags = ("--data_dir", data, "--output_cat", 2, "--arch", tiny, "--weights", "none")
    flags += ("--no_report", "--save_dir")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in processes of torchrun
    alone = call("train.py", *flags, tmp_path / "1.pth", "--no_cache")
    torch.set_num_threads(threads)
    assert alone.returncode == 0, alone.stderr
    flags += (tmp_path / "2.pth", "--cache_dir", tmp_path / "cache")
    done = run(TINY_TRAIN, *flags, launcher=(*TORCHRUN, "--nproc_per_node=2"))
    assert done.returncode == 0, done.stderr
    assert same_bits(state_of(tmp_path / "2.pth"), state_of(tmp_path / "1.pth"))
    contents = [torch.load(tmp_path / f"{n}.pth", weights_only=True) for n in (1, 2)]
    assert contents[0]["metrics"] == contents[1]["metrics"]
    assert done.stdout.count("epoch 7/7") == 1
    assert done.stderr.count("broken.jpg") == 1
    assert len(feature_files(tmp_path / "cache")) == 1


def test_the_loss_of_a_process_is_reported_in_one_line(training):
    flags, cache, checkpoint = training
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    first, other = (start_training(flags, env={**env, "RANK": str(rank)}) for rank in (0, 1))
    wait_for_features(cache, first)
    other.kill()
    out, err = first.communicate(timeout=TIMEOUT)
    other.communicate(timeout=TIMEOUT)
    done = subprocess.CompletedProcess(first.args, first.returncode, out, err)
    assert_error(done, "another process", "stored", "same command")
    assert not checkpoint.exists() and not list(checkpoint.parent.glob(".*"))


def test_the_error_of_all_processes_is_printed_once():
    done = run("predict.py", "--top_k", "0", launcher=(*TORCHRUN, "--nproc_per_node=2"))
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("predict.py: error: ")]
    assert len(lines) == 1 and "--top_k" in lines[0]


# ---------------------------------------------------------------- variables of another job


@pytest.fixture
def leftover(monkeypatch) -> Callable[..., None]:
    """Set the variables of another job, some of them to other values."""

    def set_variables(**changes):
        variables = {"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        for name, value in (variables | {"MASTER_PORT": free_port()} | changes).items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.parametrize("rank", ["0", "1"])
def test_processes_that_do_not_come_are_an_error_that_names_the_variables(
    leftover, monkeypatch, rank
):
    monkeypatch.setattr(torchrun, "JOIN_TIMEOUT", 1)
    leftover(RANK=rank)
    expected = f"^WORLD_SIZE=4, RANK={rank}, MASTER_ADDR=127.0.0.1, .*did not come within 1 seconds"
    with pytest.raises(UserError, match=f"{expected}.*; to run alone: env -u"), process_group():
        pass


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE is 'four'"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is missing"),
        ({"MASTER_PORT": "-1"}, "MASTER_PORT is '-1'"),
    ],
)
def test_invalid_variables_are_named(leftover, changes, reason):
    leftover(**changes)
    with pytest.raises(UserError, match=f"{reason}; to run alone: env -u"), process_group():
        pass


def test_a_signal_ends_the_waiting(leftover, capsys):
    def main():
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        with process_group():
            pass

    leftover()
    with pytest.raises(SystemExit) as stop:
        scripts.run_script(main, "train.py")
    assert stop.value.code == 143
    assert capsys.readouterr().err == "train.py: terminated\n"

"""train.py --resume: what a run that was stopped leaves, and how another goes on from there."""

import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import LONG, ROOT, assert_error, draw, make_pictures, run, same_bits, state_of

KILLS = int(os.environ.get("KILLS", 4))  # more of them take more time, and find more


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("resume") / "data", ("a", "b"), 3, 1, 1)


def words(data, folder, epochs=100):
    """The arguments of a training that writes `folder/model.pth`."""
    flags = ("--data_dir", data, "--output_cat", 2, "--weights", "none", "--arch", "vgg13")
    flags += ("--epochs", epochs, "--workers", 1, "--cache_dir", folder / "cache", "--no_report")
    return [*flags, "--save_dir", folder / "model.pth"]


def start(data, folder, epochs=100):
    """Such a training as a process of its own, with a group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *map(str, words(data, folder, epochs))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, process):
    end = time.monotonic() + LONG
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """The weights that a run without interruption gives, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    begun = time.monotonic()
    done = run("train.py", *words(data, folder))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["cache", "model.pth"]
    return state_of(folder / "model.pth"), time.monotonic() - begun


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_goes_on_to_the_same_bits(data, uninterrupted, tmp_path, number):
    state, seconds = uninterrupted
    process = start(data, tmp_path)
    moment = random.Random(number).uniform(number / KILLS, (number + 1) / KILLS)
    try:
        process.communicate(timeout=seconds * moment)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    if (tmp_path / "model.pth").exists():  # whole, however late the kill came
        assert same_bits(state_of(tmp_path / "model.pth"), state)
    done = run("train.py", *words(data, tmp_path), "--resume")
    assert done.returncode == 0, done.stderr
    assert same_bits(state_of(tmp_path / "model.pth"), state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model.pth"]


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "term")]
)
def test_a_stopped_run_says_how_to_go_on(data, tmp_path, number, status, word):
    many = 1500  # so that it takes longer than the pause between two states
    process = start(data, tmp_path, many)
    kept = tmp_path / "model.pth.unfinished" / "state.pth"
    wait_for(lambda: kept.exists() and kept.stat().st_size > 2**20, process)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=LONG)
    assert process.returncode == status
    *before, line = err.splitlines()
    assert all(message.startswith("features: ") for message in before)
    assert line.startswith(f"train.py: {word}") and line.endswith("--resume goes on from there")

    done = run("train.py", *words(data, tmp_path, many), "--resume", "--learning_rate", 0.01)
    assert_error(done, "--resume", "--learning_rate 0.03", "0.01")
    other = make_pictures(tmp_path / "other", ("a", "b"), 3, 1, 1)
    done = run("train.py", *words(other, tmp_path, many), "--resume")
    assert_error(done, "--resume", "--data_dir", data)

    epochs = [line for line in out.splitlines() if line.startswith("epoch ")]
    done = run("train.py", *words(data, tmp_path, many), "--resume")
    assert done.returncode == 0, done.stderr
    rest = [line for line in done.stdout.splitlines() if line.startswith("epoch ")]
    assert 0 < many - len(rest) <= len(epochs)  # it did not begin at the beginning
    assert rest[: len(epochs) + len(rest) - many] == epochs[many - len(rest) :]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_extraction_is_stopped_in_one_line(tmp_path, number, status):
    data = make_pictures(tmp_path / "data", ("a", "b"), 40, 1, 1)
    process = start(data, tmp_path)
    wait_for(lambda: list((tmp_path / "cache").glob("*/*.features")), process)
    os.killpg(process.pid, number)  # the process that decodes gets it, too
    _, err = process.communicate(timeout=LONG)
    assert process.returncode == status
    *before, line = err.splitlines()
    assert all(message.startswith("features: ") for message in before)
    assert line.endswith("--resume goes on from there")


def test_pictures_that_have_changed_since_are_noticed(call, tmp_path, monkeypatch):
    data = make_pictures(tmp_path / "data", ("a", "b"), 3, 1, 1)

    def stopping(path, model):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.save_checkpoint", stopping)
    monkeypatch.setattr("train.PAUSE", 0)
    done = call("train.py", *words(data, tmp_path, 2))
    assert done.returncode == 130
    assert call("train.py", *words(data, tmp_path, 2), "--resume").returncode == 130
    draw(0, 99).save(data / "train" / "a" / "train_0.jpg")
    assert_error(call("train.py", *words(data, tmp_path, 2), "--resume"), "--resume", "changed")
    assert call("train.py", *words(data, tmp_path, 2)).returncode == 130


def test_rubbish_is_not_gone_on_from(data, call, tmp_path):
    kept = tmp_path / "model.pth.unfinished" / "state.pth"
    kept.parent.mkdir()
    for rubbish in (b"rubbish", b""):
        kept.write_bytes(rubbish)
        assert_error(call("train.py", *words(data, tmp_path, 2), "--resume"), kept)
    torch.save([1, 2], kept)
    assert_error(call("train.py", *words(data, tmp_path, 2), "--resume"), kept)


def test_nothing_to_go_on_from_is_said(data, call, tmp_path):
    done = call("train.py", *words(data, tmp_path, 2), "--resume")
    assert done.returncode == 0
    assert "nothing to go on from" in done.stderr and "epoch 1/2" in done.stdout
    assert torch.load(tmp_path / "model.pth", weights_only=True)["format_version"]


def test_a_full_disk_leaves_the_checkpoint_that_was_there(data, call, tmp_path):
    assert call("train.py", *words(data, tmp_path, 2)).returncode == 0
    before = (tmp_path / "model.pth").read_bytes()

    def limit():
        size = len(before) // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *map(str, words(data, tmp_path, 3))],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert_error(done, tmp_path / "model.pth", "cannot write", "File too large")
    assert (tmp_path / "model.pth").read_bytes() == before
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["cache", "model.pth", "model.pth.unfinished"]

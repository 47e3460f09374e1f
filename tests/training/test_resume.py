"""training.resume and train.py --resume: what an interrupted run leaves, and how it is resumed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import (
    ROOT,
    TIMEOUT,
    TINY_TRAIN,
    assert_error,
    draw,
    full_disk,
    held_by_another_process,
    make_images,
    same_bits,
    state_of,
)

from system.messages import UserError
from training import resume
from training.resume import UnfinishedRun, is_finished

# ---------------------------------------------------------------- UnfinishedRun

ARGUMENTS = {"epochs": 3, "seed": 0, "resume": False}
INPUTS = {"train/a/1.jpg": "train a 17", "line\nbreak \udcff": "train b \udcff 18"}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return tmp_path / "model.pth"


def start_run(checkpoint, changes=None, state=None, inputs="digest", resume=False) -> UnfinishedRun:
    """Begin a run, and save a state of it."""
    run = UnfinishedRun(checkpoint, ARGUMENTS | (changes or {}), INPUTS, resume)
    run.check_features(inputs)
    if state:
        run.save(1, state)
    return run


def states_of(checkpoint, inputs="digest") -> dict:
    """Return the states that a run resumes from."""
    run = UnfinishedRun(checkpoint, ARGUMENTS, INPUTS, True)
    run.check_features(inputs)
    return run.states


def test_a_run_continues_from_its_last_state(checkpoint, monkeypatch):
    monkeypatch.setattr(resume, "SAVE_INTERVAL", 0)
    run = start_run(checkpoint, state={"epoch": 1})
    run.save(1, {"epoch": 2, "tensor": torch.arange(3)})
    run.save(4, {"epoch": 4})
    again = UnfinishedRun(checkpoint, ARGUMENTS | {"resume": True}, INPUTS, True)
    again.check_features("digest")
    state = again.states[1]
    again.save(4, {"epoch": 5})  # replaces the file, but not what was read
    assert state["epoch"] == 2 and state["tensor"].tolist() == [0, 1, 2]
    assert states_of(checkpoint)[4] == {"epoch": 5}
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model.pth.unfinished"]
    again.remove()
    assert not list(checkpoint.parent.iterdir())
    again.remove()


def test_states_are_not_written_more_often_than_the_interval(checkpoint, monkeypatch):
    run = start_run(checkpoint, state={"epoch": 1})  # at once after the run began
    monkeypatch.setattr(resume, "SAVE_INTERVAL", 10**6)
    run.save(1, {"epoch": 2})
    assert states_of(checkpoint) == {}
    monkeypatch.setattr(resume, "SAVE_INTERVAL", 0)
    run.save(1, {"epoch": 3})
    assert states_of(checkpoint) == {1: {"epoch": 3}}


def test_without_resume_a_run_starts_from_the_beginning_and_says_so(
    checkpoint, monkeypatch, capsys
):
    monkeypatch.setattr(resume, "SAVE_INTERVAL", 0)
    start_run(checkpoint, state={"epoch": 1})
    (checkpoint.parent / "model.pth.unfinished" / "0123456789abcdef").mkdir()  # of --no_cache
    run = UnfinishedRun(checkpoint, ARGUMENTS, INPUTS, False)
    assert run.states == {}
    assert sorted(path.name for path in run.folder.iterdir()) == ["images.json", "state.pth"]
    assert "discarded an interrupted training" in capsys.readouterr().err


def test_other_arguments_are_named(checkpoint):
    start_run(checkpoint)
    UnfinishedRun(checkpoint, ARGUMENTS, INPUTS, True)
    with pytest.raises(UserError, match="--resume: .* had --seed 0, not 1; .* leave out --resume"):
        UnfinishedRun(checkpoint, ARGUMENTS | {"seed": 1}, INPUTS, True)
    with pytest.raises(UserError, match="had --added None, not 1"):
        UnfinishedRun(checkpoint, ARGUMENTS | {"added": 1}, INPUTS, True)


def test_up_to_five_differences_of_the_inputs_are_named(checkpoint, monkeypatch):
    monkeypatch.setattr(resume, "SAVE_INTERVAL", 0)
    start_run(checkpoint, state={"epoch": 1})
    with pytest.raises(UserError, match="--resume: other images can be read than"):
        states_of(checkpoint, "other images")
    others = {"line\nbreak \udcff": "valid b 18", **{f"new {n}": "train a 1" for n in range(5)}}
    with pytest.raises(UserError) as error:
        UnfinishedRun(checkpoint, ARGUMENTS, others, True)
    message = str(error.value)
    assert "--resume: 7 images differ from those of the interrupted run: " in message
    assert "train/a/1.jpg is gone, new 0 is new" in message and "new 4" not in message
    assert "leave out --resume to start from the beginning" in message


def test_nothing_to_resume_is_warned_of(checkpoint, capsys):
    assert states_of(checkpoint) == {}
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: --resume: nothing to resume") and "model.pth" in line
    assert UnfinishedRun(checkpoint, ARGUMENTS, INPUTS, True)  # now there is
    assert capsys.readouterr().err == ""


STATES = [b"garbage", [1, 2], {"arguments": [1], "features": "", "states": {}}]
STATES.append({"arguments": ARGUMENTS, "features": 3, "states": {}})
STATES.append({"arguments": ARGUMENTS, "features": "", "states": [1]})
FOREIGN = [("state.pth", content) for content in STATES]
FOREIGN += [("images.json", content) for content in (b"", b"\xff", b"5")]


@pytest.mark.parametrize(("name", "content"), FOREIGN, ids=str)
def test_garbage_is_not_resumed(checkpoint, name, content):
    path = start_run(checkpoint).folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=re.escape(f"{path}: ")) as error:
        UnfinishedRun(checkpoint, ARGUMENTS, INPUTS, True)
    assert name == "images.json" or "state of an interrupted run" in str(error.value)


def test_a_finished_run_is_recognized_by_its_arguments(checkpoint):
    assert not is_finished(checkpoint, ARGUMENTS)
    torch.save({"arguments": ARGUMENTS | {"resume": True}}, checkpoint)
    assert is_finished(checkpoint, ARGUMENTS)
    with pytest.raises(
        UserError, match="the finished run had --epochs 3, not 9; its learning rate"
    ):
        is_finished(checkpoint, ARGUMENTS | {"epochs": 9})
    start_run(checkpoint)
    assert not is_finished(checkpoint, ARGUMENTS | {"epochs": 9})


# ---------------------------------------------------------------- train.py --resume


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("resume") / "data", ("a", "b"), 3, 1, 1)


def words(data, folder, *flags, epochs=60):
    """List the arguments of a training that writes `folder/model.pth`."""
    fixed = ("--data_dir", data, "--output_cat", 2, "--weights", "none", "--arch", "tiny")
    fixed += ("--workers", 0, "--cache_dir", folder / "cache", "--no_report")
    return [*fixed, "--epochs", epochs, "--save_dir", folder / "model.pth", *flags]


def epochs_of(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("epoch ")]


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        (signal.SIGKILL, -9, ""),
        (signal.SIGINT, 130, "train.py: stopped; the same command with --resume continues from"),
    ],
)
def test_a_run_that_was_ended_is_resumed_to_the_same_bits(
    data, tiny, call, tmp_path, number, status, line
):
    process = subprocess.Popen(
        [sys.executable, ROOT / TINY_TRAIN, *map(str, words(data, tmp_path))],
        env={**os.environ, "SLOW": "0.1"},  # seconds of an epoch
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # In the background of a shell, the tests, and what they start, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    for text in process.stdout:
        if text.startswith("epoch  3/60"):
            break
    process.send_signal(number)
    rest, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == status and line in err and "Traceback" not in err
    done = call("train.py", *words(data, tmp_path, "--resume", "--learning_rate", 0.01))
    assert_error(done, "--resume", "--learning_rate 0.03", "0.01")
    done = call("train.py", *words(data, tmp_path, "--resume"))
    assert done.returncode == 0, done.stderr
    assert 0 < 60 - len(epochs_of(done.stdout)) <= 3 + len(epochs_of(rest))  # not all epochs again
    resumed = state_of(tmp_path / "model.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model.pth"]
    assert call("train.py", *words(data, tmp_path)).returncode == 0
    assert same_bits(state_of(tmp_path / "model.pth"), resumed)


@pytest.mark.parametrize(
    ("flags", "total", "epochs"),
    [((), 3, 1), (("--final",), 6, 3), (("--final",), 6, 4)],
)
def test_a_run_resumes_after_any_epoch(
    data, tiny, call, tmp_path, monkeypatch, flags, total, epochs
):
    """Also where a final head is fitted, after 3 epochs."""
    assert call("train.py", *words(data, tmp_path, *flags, epochs=3)).returncode == 0
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    assert content["epoch"] == 3
    expected = state_of(tmp_path / "model.pth")
    save, saved = UnfinishedRun.save, []

    def save_and_stop(self, first_epoch, state):
        save(self, first_epoch, state)
        saved.append(state)
        if len(saved) == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(resume, "SAVE_INTERVAL", 0)
    with monkeypatch.context() as patch:
        patch.setattr(UnfinishedRun, "save", save_and_stop)
        assert call("train.py", *words(data, tmp_path, *flags, epochs=3)).returncode == 130
    done = call("train.py", *words(data, tmp_path, *flags, "--resume", epochs=3))
    assert done.returncode == 0, done.stderr
    numbers = [line.split()[1] for line in epochs_of(done.stdout)]
    assert numbers == [f"{number}/{total}" for number in range(epochs + 1, total + 1)]
    assert same_bits(state_of(tmp_path / "model.pth"), expected)
    resumed = torch.load(tmp_path / "model.pth", weights_only=True)
    assert resumed["metrics"] == content["metrics"]


def test_images_that_have_changed_are_named_before_any_work(tiny, call, tmp_path, monkeypatch):
    data = make_images(tmp_path / "data", ("a", "b"), 3, 1, 1)
    train_folder = data / "train"
    (train_folder / "b" / "empty.jpg").touch()

    def stopping(path, model):
        raise KeyboardInterrupt

    monkeypatch.setattr("model.save_checkpoint", stopping)
    monkeypatch.setattr(resume, "SAVE_INTERVAL", 0)
    assert call("train.py", *words(data, tmp_path, epochs=2)).returncode == 130
    os.utime(train_folder / "a" / "train_1.jpg")  # the same content
    assert call("train.py", *words(data, tmp_path, "--resume", epochs=2)).returncode == 130
    draw(0, 99).save(train_folder / "a" / "train_0.jpg")
    shutil.copy(train_folder / "b" / "train_0.jpg", train_folder / "b" / "empty.jpg")
    monkeypatch.setattr("train.extract", lambda *_, **__: pytest.fail("the work began"))
    done = call("train.py", *words(data, tmp_path, "--resume", epochs=2))
    expected = ["2 images differ", "train/a/train_0.jpg has changed", "train/b/empty.jpg is new"]
    assert_error(done, "--resume", "leave out --resume", *expected)


def test_a_full_disk_preserves_the_previous_checkpoint(data, tiny, call, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "SAVE_INTERVAL", 0)
    flags = ("--hidden_units", 20_000)  # so that the checkpoint is larger than other files
    assert call("train.py", *words(data, tmp_path, *flags, epochs=1)).returncode == 0
    before = (tmp_path / "model.pth").read_bytes()
    with full_disk(len(before) // 2):
        done = call("train.py", *words(data, tmp_path, *flags, epochs=2))
    assert_error(done, f"{tmp_path / 'model.pth'}: cannot write it: File too large")
    assert "epoch 2/2" in done.stdout  # a state that could not be written did not end it
    assert done.stderr.count("warning: ") == 2
    assert (tmp_path / "model.pth").read_bytes() == before
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["cache", "model.pth", "model.pth.unfinished"]
    unfinished = sorted(path.name for path in (tmp_path / names[-1]).iterdir())
    assert unfinished == ["images.json", "state.pth"]
    done = call("train.py", *words(data, tmp_path, *flags, "--resume", epochs=2))
    assert done.returncode == 0, done.stderr


def test_a_signal_during_the_report_keeps_its_promise(data, tiny, call, tmp_path, monkeypatch):
    flags = [word for word in words(data, tmp_path, epochs=3) if word != "--no_report"]

    def stopping(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(TIMEOUT)

    with monkeypatch.context() as patch:
        patch.setattr("training.report.write_report", stopping)
        done = call("train.py", *flags)
    assert done.returncode == 143 and done.stderr.endswith("train.py: terminated\n")
    before = state_of(tmp_path / "model.pth")
    done = call("train.py", *flags, "--resume")
    assert done.returncode == 0 and "report: " in done.stdout
    assert same_bits(state_of(tmp_path / "model.pth"), before)
    assert not (tmp_path / "model.pth.unfinished").exists()
    done = call("train.py", *flags, "--resume")
    assert done.returncode == 0
    assert done.stdout == f"{tmp_path / 'model.pth'} is finished: nothing to resume\n"


def test_a_training_locks_its_checkpoint(data, tiny, call, tmp_path):
    lock = f"lock('', {str(tmp_path / 'model.pth')!r})"
    with held_by_another_process("from system.outputs import lock", lock):
        done = call("train.py", *words(data, tmp_path))
    assert_error(done, "--save_dir", "model.pth: process", "is writing it")


def test_a_folder_that_is_of_no_training_is_not_deleted(data, tiny, call, tmp_path):
    letter = tmp_path / "model.pth.unfinished" / "letter.txt"
    letter.parent.mkdir()
    letter.write_text("mine")
    done = call("train.py", *words(data, tmp_path))
    assert_error(done, "model.pth.unfinished: exists and is no folder of an unfinished training")
    assert letter.read_text() == "mine" and done.stdout == ""  # before the images are read
    (letter.parent / "images.json").write_text("{}")  # as a training has
    assert_error(call("train.py", *words(data, tmp_path)), "exists and is no folder of an unfin")
    letter.unlink()
    letter.parent.rename(tmp_path / "elsewhere")
    letter.parent.symlink_to(tmp_path / "elsewhere")
    assert_error(call("train.py", *words(data, tmp_path)), "exists and is no folder of an unfin")
    letter.parent.unlink()
    letter.parent.mkdir()
    (letter.parent / ".DS_Store").touch()
    assert call("train.py", *words(data, tmp_path)).returncode == 0

"""training.resume and train.py --resume: what an interrupted run leaves, and how it is resumed."""

import contextlib
import os
import random
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
    make_images,
    same_bits,
    state_of,
    wait_for_features,
)

import train
from system.messages import UserError
from training import resume
from training.resume import UnfinishedRun, is_finished

KILLS = int(os.environ.get("KILLS", 2))  # at random moments, in addition to those below


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


def test_before_the_first_epoch_there_is_no_state(checkpoint):
    assert start_run(checkpoint).states == {}
    assert states_of(checkpoint, "other images") == {}


def test_without_resume_a_run_starts_from_the_beginning(checkpoint, monkeypatch):
    monkeypatch.setattr(resume, "SAVE_INTERVAL", 0)
    start_run(checkpoint, state={"epoch": 1})
    (checkpoint.parent / "model.pth.unfinished" / "features").touch()  # of --no_cache
    run = UnfinishedRun(checkpoint, ARGUMENTS, INPUTS, False)
    assert run.states == {}
    assert sorted(path.name for path in run.folder.iterdir()) == ["images.json", "state.pth"]


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
    UnfinishedRun(checkpoint, ARGUMENTS, INPUTS, True)
    others = {"line\nbreak \udcff": "valid b 18", **{f"new {n}": "train a 1" for n in range(5)}}
    with pytest.raises(UserError) as error:
        UnfinishedRun(checkpoint, ARGUMENTS, others, True)
    message = str(error.value)
    assert "--resume: 7 images differ from those of the interrupted run: " in message
    assert "train/a/1.jpg is gone, new 0 is new" in message and "new 4" not in message
    assert "leave out --resume to start from the beginning" in message
    with pytest.raises(UserError, match=r"1 images differ .* has changed"):
        UnfinishedRun(checkpoint, ARGUMENTS, INPUTS | {"train/a/1.jpg": "train b 17"}, True)


def test_images_that_became_readable_are_reported(checkpoint, monkeypatch):
    monkeypatch.setattr(resume, "SAVE_INTERVAL", 0)
    start_run(checkpoint, state={"epoch": 1})
    with pytest.raises(UserError, match="--resume: other images can be read than"):
        states_of(checkpoint, "other images")


@pytest.mark.parametrize("content", [None, b"\xff\xff", b"one column\r\n", b'"open'])
def test_a_damaged_list_of_inputs_is_reported(checkpoint, content):
    path = start_run(checkpoint).folder / "images.json"
    path.unlink()
    if content:
        path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{path}: ")):
        UnfinishedRun(checkpoint, ARGUMENTS, INPUTS, True)


def test_nothing_to_resume_is_warned_of(checkpoint, capsys):
    assert states_of(checkpoint) == {}
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: --resume: nothing to resume") and "model.pth" in line
    assert UnfinishedRun(checkpoint, ARGUMENTS, INPUTS, True)  # now there is
    assert capsys.readouterr().err == ""


FOREIGN = [
    b"garbage",
    b"",
    [1, 2],
    {"other": 1},
    torch.zeros(3),
    {"arguments": ARGUMENTS},
    {"arguments": [1], "features": "", "states": {}},
    {"arguments": ARGUMENTS, "features": 3, "states": {}},
    {"arguments": ARGUMENTS, "features": "", "states": [1]},
]


@pytest.mark.parametrize("content", FOREIGN, ids=str)
def test_garbage_is_not_resumed(checkpoint, content):
    path = checkpoint.parent / "model.pth.unfinished" / "state.pth"
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match="state.pth: not .* state of an interrupted run"):
        UnfinishedRun(checkpoint, ARGUMENTS, INPUTS, True)


def test_a_file_where_the_folder_should_be_is_an_error(checkpoint):
    (checkpoint.parent / "model.pth.unfinished").touch()
    for is_resumed in (False, True):
        with pytest.raises(UserError, match="model.pth.unfinished: cannot make it: File exists"):
            UnfinishedRun(checkpoint, ARGUMENTS, INPUTS, is_resumed)


def test_a_state_that_cannot_be_written_is_a_warning(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(resume, "SAVE_INTERVAL", 0)
    run = start_run(checkpoint, state={"epoch": 1})
    with full_disk(1000):
        run.save(1, {"epoch": 2, "tensor": torch.zeros(1000)})
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and "state.pth: cannot write it: File too large" in line
    assert states_of(checkpoint) == {1: {"epoch": 1}}


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
    fixed += ("--workers", 1, "--cache_dir", folder / "cache", "--no_report")
    return [*fixed, "--epochs", epochs, "--save_dir", folder / "model.pth", *flags]


def start(arguments, slow=0.0):
    """Start such a training in its own process and its own process group, as a shell does.

    Args:
        slow: seconds that a batch of images and an epoch take at least.
    """
    return subprocess.Popen(
        [sys.executable, ROOT / TINY_TRAIN, *map(str, arguments)],
        env={**os.environ, "SLOW": str(slow)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # In the background of a shell, the tests, and what they start, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        start_new_session=True,
    )


def wait_for(condition, process):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def read_until(process, text) -> str:
    """Read the output of a process up to a line that begins with `text`."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(text):
            break
    return "".join(lines)


def epochs_of(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("epoch ")]


@pytest.fixture(scope="module")
def uninterrupted(data, tiny, tmp_path_factory):
    """The weights that a run without interruption gives."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train.main([str(word) for word in words(data, folder)])
    assert sorted(path.name for path in folder.iterdir()) == ["cache", "model.pth"]
    return state_of(folder / "model.pth")


@pytest.mark.parametrize(
    "moment",
    [
        "start",
        "features",
        "epoch 20/60",
        "epoch 60/60",
    ],
)
def test_a_killed_run_is_resumed_to_the_same_bits(data, uninterrupted, call, tmp_path, moment):
    process = start(words(data, tmp_path), slow=0.5 if moment == "features" else 0)
    if moment == "start":
        wait_for((tmp_path / "model.pth.unfinished").exists, process)
    elif moment == "features":
        wait_for_features(tmp_path / "cache", process)
    else:
        assert epochs_of(read_until(process, moment))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    if (tmp_path / "model.pth").exists():  # complete, however late the kill came
        assert same_bits(state_of(tmp_path / "model.pth"), uninterrupted)
    is_unfinished = (tmp_path / "model.pth.unfinished").exists()
    done = call("train.py", *words(data, tmp_path, "--resume"))
    assert done.returncode == 0, done.stderr
    assert same_bits(state_of(tmp_path / "model.pth"), uninterrupted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model.pth"]
    if moment == "epoch 20/60" and is_unfinished:
        assert len(epochs_of(done.stdout)) <= 41  # it did not start from the beginning


def processes_of_group(group: int) -> list[str]:
    """List the processes of a process group that still run."""
    listed = subprocess.run(["ps", "-eo", "pgid,stat,args"], capture_output=True, text=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    return [row[2] for row in rows if row[0] == str(group) and not row[1].startswith("Z")]


@pytest.mark.parametrize("number", range(KILLS))
def test_a_run_is_resumed_after_any_signal_at_any_moment(
    data, uninterrupted, call, tmp_path, number
):
    """While it imports, computes features, fits, saves or reports, with and without workers."""
    rng = random.Random(number)
    name = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
    arguments = [word for word in words(data, tmp_path) if word != "--no_report"]
    arguments[arguments.index("--workers") + 1] = rng.choice([0, 2])
    process = start(arguments, slow=0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(rng.uniform(0, 12))
    if name == signal.SIGKILL:
        process.kill()  # the processes that decode have to notice it
    elif process.poll() is None:
        os.killpg(process.pid, name)
    _, err = process.communicate(timeout=TIMEOUT)
    assert "Traceback" not in err
    wait_until(lambda: not processes_of_group(process.pid))
    done = call("train.py", *arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert same_bits(state_of(tmp_path / "model.pth"), uninterrupted)
    names = sorted(path.name for path in tmp_path.iterdir())
    report = [f"model.{suffix}" for suffix in ("categories.csv", "confusion.png", "curves.png")]
    assert names == ["cache", *report, "model.history.csv", "model.mistakes.png", "model.pth"]


def wait_until(condition) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("flags", "total", "epochs"),
    [
        *[((), 3, epochs) for epochs in (1, 3)],
        *[(("--final",), 6, epochs) for epochs in (2, 3, 4, 6)],
    ],
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


@pytest.mark.parametrize(
    ("number", "status", "word", "is_fitting"),
    [
        (signal.SIGINT, 130, "stopped", False),
        (signal.SIGTERM, 143, "terminated", False),
        (signal.SIGINT, 130, "stopped", True),
    ],
)
def test_a_stopped_run_prints_how_to_resume(
    data, tiny, call, tmp_path, number, status, word, is_fitting
):
    process = start(words(data, tmp_path), slow=0.3)
    if is_fitting:
        out = read_until(process, "epoch  3/60")
    else:
        wait_for_features(tmp_path / "cache", process)
    os.killpg(process.pid, number)  # the process that decodes gets it as well
    rest, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == status
    *before, line = err.splitlines()
    assert all(message.startswith("features: ") for message in before), err
    assert line.startswith(f"train.py: {word}") and line.endswith("--resume continues from there")
    if not is_fitting:
        return
    done = call("train.py", *words(data, tmp_path, "--resume", "--learning_rate", 0.01))
    assert_error(done, "--resume", "--learning_rate 0.03", "0.01")
    other = make_images(tmp_path / "other", ("a", "b"), 3, 1, 1)
    done = call("train.py", *words(other, tmp_path, "--resume"))
    assert_error(done, "--resume", "--data_dir", data)

    before = epochs_of(out + rest)
    done = call("train.py", *words(data, tmp_path, "--resume"))
    assert done.returncode == 0, done.stderr
    after = epochs_of(done.stdout)
    assert 0 < 60 - len(after) <= len(before)  # it did not start from the beginning
    assert after[: len(before) + len(after) - 60] == before[60 - len(after) :]


IMAGE_CHANGES = {
    "new content": (
        lambda train: draw(0, 99).save(train / "a" / "train_0.jpg"),
        ["1 images differ", "train/a/train_0.jpg has changed"],
    ),
    "swapped": (
        lambda train: [
            (train / old).rename(train / new)
            for old, new in (("a/train_0.jpg", "x"), ("b/train_0.jpg", "a/train_0.jpg"))
            + (("x", "b/train_0.jpg"),)
        ],
        ["2 images differ", "train/a/train_0.jpg has changed", "train/b/train_0.jpg has changed"],
    ),
    "another category": (
        lambda train: (train / "a" / "train_0.jpg").rename(train / "b" / "moved.jpg"),
        ["2 images differ", "train/a/train_0.jpg is gone", "train/b/moved.jpg is new"],
    ),
    "gone": (
        lambda train: (train / "a" / "train_0.jpg").unlink(),
        ["1 images differ", "train/a/train_0.jpg is gone"],
    ),
    "readable now": (
        lambda train: shutil.copy(train / "b" / "train_0.jpg", train / "b" / "empty.jpg"),
        ["1 images differ", "train/b/empty.jpg is new"],
    ),
}


@pytest.mark.parametrize("change", IMAGE_CHANGES)
def test_images_that_have_changed_are_named_before_any_work(
    tiny, call, tmp_path, monkeypatch, change
):
    data = make_images(tmp_path / "data", ("a", "b"), 3, 1, 1)
    (data / "train" / "b" / "empty.jpg").touch()

    def stopping(path, model):
        raise KeyboardInterrupt

    monkeypatch.setattr("model.save_checkpoint", stopping)
    monkeypatch.setattr(resume, "SAVE_INTERVAL", 0)
    assert call("train.py", *words(data, tmp_path, epochs=2)).returncode == 130
    os.utime(data / "train" / "a" / "train_1.jpg")  # the same content
    assert call("train.py", *words(data, tmp_path, "--resume", epochs=2)).returncode == 130
    make_change, expected = IMAGE_CHANGES[change]
    make_change(data / "train")
    with monkeypatch.context() as patch:
        patch.setattr("train.extract", lambda *_, **__: pytest.fail("the work began"))
        done = call("train.py", *words(data, tmp_path, "--resume", epochs=2))
    assert_error(done, "--resume", "leave out --resume", *expected)
    assert call("train.py", *words(data, tmp_path, epochs=2)).returncode == 130


def test_without_an_interruption_the_run_starts_from_the_beginning(data, tiny, call, tmp_path):
    done = call("train.py", *words(data, tmp_path, "--resume", epochs=2))
    assert done.returncode == 0
    assert "nothing to resume" in done.stderr and "epoch 1/2" in done.stdout
    assert torch.load(tmp_path / "model.pth", weights_only=True)["format_version"]


@pytest.mark.parametrize("interval", [10**6, 0])
def test_a_full_disk_preserves_the_previous_checkpoint(
    data, tiny, call, tmp_path, monkeypatch, interval
):
    monkeypatch.setattr(resume, "SAVE_INTERVAL", interval)
    flags = ("--hidden_units", 20_000)  # so that the checkpoint is larger than other files
    assert call("train.py", *words(data, tmp_path, *flags, epochs=1)).returncode == 0
    before = (tmp_path / "model.pth").read_bytes()
    with full_disk(len(before) // 2):
        done = call("train.py", *words(data, tmp_path, *flags, epochs=2))
    assert_error(done, f"{tmp_path / 'model.pth'}: cannot write it: File too large")
    assert "epoch 2/2" in done.stdout  # a state that could not be written did not end it
    assert done.stderr.count("warning: ") == (2 if interval == 0 else 0)
    assert (tmp_path / "model.pth").read_bytes() == before
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["cache", "model.pth", "model.pth.unfinished"]
    unfinished = sorted(path.name for path in (tmp_path / names[-1]).iterdir())
    assert unfinished == ["images.json", "state.pth"]
    done = call("train.py", *words(data, tmp_path, *flags, "--resume", epochs=2))
    assert done.returncode == 0, done.stderr


def change_state(change):
    """Return a function that changes the head's state in a state.pth."""

    def apply(path):
        content = torch.load(path, weights_only=True)
        change(content["states"][1])
        torch.save(content, path)

    return apply


DAMAGES = {
    "no head": change_state(lambda state: state.pop("head")),
    "no momenta": change_state(lambda state: state["optimizer"].pop("momenta")),
    "no history": change_state(lambda state: state.pop("history")),
    "no random state": change_state(lambda state: state.pop("random")),
    "another random state": change_state(lambda state: state.update(random=torch.zeros(3))),
    "a longer history": change_state(lambda state: state["history"].append({"epoch": 99})),
    "a shorter history": change_state(lambda state: state["history"].pop()),
    "an empty history": change_state(lambda state: state.update(history=[])),
    "another head": change_state(
        lambda state: state.update(head={n: torch.zeros(3) for n in state["head"]})
    ),
    "another number of steps": change_state(lambda state: state["optimizer"].update(steps=10**6)),
    "a momentum less": change_state(lambda state: state["optimizer"]["momenta"].pop()),
    "a momentum of another shape": change_state(
        lambda state: state["optimizer"]["momenta"].append(state["optimizer"]["momenta"].pop()[:1])
    ),
    "no train loss": change_state(lambda state: state["history"][0].pop("train_loss")),
    "no valid loss": change_state(lambda state: state["history"][0].pop("valid_loss")),
    "a list": lambda path: torch.save([1, 2], path),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-500]),
}


@pytest.fixture(scope="module")
def interrupted(data, tiny, tmp_path_factory):
    """The folder of a run that was interrupted after its second epoch of 4."""
    folder, save = tmp_path_factory.mktemp("interrupted"), UnfinishedRun.save

    def save_and_stop(self, first_epoch, state):
        save(self, first_epoch, state)
        if len(state["history"]) == 2:
            raise UserError("stop")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "SAVE_INTERVAL", 0)
        patch.setattr(UnfinishedRun, "save", save_and_stop)
        with pytest.raises(UserError, match="stop"):
            train.main([str(word) for word in words(data, folder, epochs=4)])
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_state_is_refused_in_one_line(
    data, interrupted, call, tmp_path, damage
):
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    DAMAGES[damage](tmp_path / "model.pth.unfinished" / "state.pth")
    arguments = words(data, interrupted, "--resume", epochs=4)
    arguments[arguments.index("--save_dir") + 1] = tmp_path / "model.pth"
    state = tmp_path / "model.pth.unfinished" / "state.pth"
    content = state.read_bytes()
    with pytest.MonkeyPatch.context() as patch:  # the folder is another one, which is no difference
        patch.setattr(resume, "_check_arguments", lambda *_: None)
        done = call("train.py", *arguments)
    assert_error(done, "state", "leave out --resume")
    assert state.read_bytes() == content and not (tmp_path / "model.pth").exists()


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
    flags[flags.index("--epochs") + 1] = 5
    done = call("train.py", *flags, "--resume")
    assert_error(done, "the finished run had --epochs 3, not 5", "cannot be continued")


def test_two_trainings_do_not_write_one_checkpoint(data, tiny, call, tmp_path):
    process = start(words(data, tmp_path), slow=0.5)
    wait_for((tmp_path / "model.pth.unfinished").exists, process)
    done = call("train.py", *words(data, tmp_path))
    assert_error(done, "--save_dir", "model.pth: process", str(process.pid), "is writing it")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert call("train.py", *words(data, tmp_path, epochs=1)).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model.pth"]

"""The state that an interrupted training leaves beside its checkpoint.

`fitting.fit` decides for each head whether it resumes from it; `train.main` asks `is_finished`.
"""

import copy
import json
import math
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from image_files.folders import UNFINISHED
from networks.checkpoint_files import load_torch, save_torch
from system.files import TEMPORARY, write_atomically
from system.messages import UserError, counted, shorten, warn

INPUTS_FILE = "images.json"
STATE_FILE = "state.pth"
# What is in the folder of an unfinished training; features, if they are not stored elsewhere; and
# what file browsers put into every folder.
OWN_FILES = re.compile(
    rf"{re.escape(INPUTS_FILE)}|{re.escape(STATE_FILE)}|[0-9a-f]{{16}}|\..*{re.escape(TEMPORARY)}|"
    r"\.DS_Store|Thumbs\.db|desktop\.ini"
)
SAVE_INTERVAL = 2  # seconds at least between two states that are written


def is_finished(checkpoint: Path, arguments: dict[str, Any]) -> bool:
    """Return whether a checkpoint was written by a training with these arguments.

    Raises:
        UserError: no training is unfinished, and that of the checkpoint had other arguments.
    """
    if _folder_of(checkpoint).exists() or not checkpoint.exists():
        return False
    content = load_torch(checkpoint, "checkpoint")
    previous = content.get("arguments") if isinstance(content, dict) else None
    if not isinstance(previous, dict):
        raise UserError(f"{checkpoint}: not a checkpoint of this program")
    _check_arguments(previous, arguments, "finished")
    return True


def _folder_of(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}{UNFINISHED}")


def check_unfinished(checkpoint: Path) -> None:
    """Check that the folder of an unfinished training, which will be deleted, is one.

    Raises:
        UserError: it has files of somebody else.
    """
    folder = _folder_of(checkpoint)
    if not os.path.lexists(folder):
        return
    is_ours = folder.is_dir() and not folder.is_symlink()
    if not is_ours or not all(OWN_FILES.fullmatch(file) for file in os.listdir(folder)):
        raise UserError(
            f"{folder}: exists and is no folder of an unfinished training; name another "
            "--save_dir, or delete it"
        )


def _check_arguments(previous: dict[str, Any], arguments: dict[str, Any], kind: str) -> None:
    """Raise UserError if a run had other arguments."""
    for name, value in arguments.items():
        if name != "resume" and previous.get(name) != value:
            remedy = "type that, or leave out --resume to start from the beginning"
            if kind == "finished":
                remedy = (
                    "its learning rate has come to 0, so that it cannot be continued; leave out "
                    "--resume to train anew, with the stored features"
                )
            raise UserError(
                f"--resume: the {kind} run had --{name} {previous.get(name)}, not {value}; {remedy}"
            )


def damaged_state() -> UserError:
    """Return the error for a state that cannot be loaded."""
    return UserError(
        "--resume: the state of the interrupted run is damaged; leave out --resume to start from "
        "the beginning"
    )


class UnfinishedRun:
    """A folder `CHECKPOINT.unfinished` with the arguments and the last states of a training.

    Attributes:
        states: of each head that is being fitted or has been, by the number of its first epoch.

    Args:
        checkpoint: the file that the training will write.
        arguments: those of the command line.
        inputs: what the training learns from: path of a file -> description of its content.
        resume: continue from the folder if it exists; otherwise its content is replaced.

    Raises:
        UserError: with `resume`, if the interrupted run had other arguments or its state is
            damaged; or the folder cannot be made.
    """

    def __init__(
        self,
        checkpoint: Path,
        arguments: dict[str, Any],
        inputs: dict[str, str],
        resume: bool,
    ):
        self.folder = _folder_of(checkpoint)
        self.path = self.folder / STATE_FILE
        self.arguments = arguments
        self.features_digest = ""
        self.states: dict[int, dict[str, Any]] = {}
        self.saved_at = -math.inf
        if resume and self.path.exists():
            content = self._load()
            _check_arguments(content["arguments"], arguments, "interrupted")
            self._check_inputs(inputs)
            self.features_digest = content["features"]
            self.states = content["states"]
            return
        if resume:
            warn(f"--resume: nothing to resume in {self.folder}: starting from the beginning")
        elif self.path.exists():
            warn(f"discarded an interrupted training, which --resume continues: {self.folder}")
        self.remove()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot make it: {error.strerror}") from error
        text = json.dumps(inputs)
        write_atomically(self.folder / INPUTS_FILE, lambda file: file.write(text.encode()))
        self._write()

    def _load(self) -> dict[str, Any]:
        """Return what `_write` wrote; a copy, since not every system replaces a file in use."""
        remedy = "delete it, or leave out --resume"
        try:
            content = load_torch(self.path, "state of an interrupted run")
        except UserError as error:
            raise UserError(f"{error}; {remedy}") from error
        if not (
            isinstance(content, dict)
            and isinstance(content.get("arguments"), dict)
            and isinstance(content.get("features"), str)
            and isinstance(content.get("states"), dict)
        ):
            raise UserError(f"{self.path}: not the state of an interrupted run; {remedy}")
        return copy.deepcopy(content)

    def _check_inputs(self, inputs: dict[str, str]) -> None:
        """Raise UserError if files have come, gone or changed since the interrupted run."""
        file = self.folder / INPUTS_FILE
        try:
            previous = dict(json.loads(file.read_bytes()))
        except (OSError, TypeError, ValueError) as error:
            raise UserError(f"{file}: missing or damaged; delete its folder") from error
        differences = [f"{path} is gone" for path in previous if path not in inputs]
        differences += [f"{path} is new" for path in inputs if path not in previous]
        for path, text in inputs.items():
            if previous.get(path, text) != text:
                differences.append(f"{path} has changed")
        if differences:
            raise UserError(
                f"--resume: {counted(len(differences), 'image differs', 'images differ')} from "
                f"those of the interrupted run: {shorten(differences)}; undo this, or leave out "
                "--resume to start from the beginning"
            )

    def check_features(self, digest: str) -> None:
        """Raise UserError if the interrupted run learned from other features."""
        if self.states and digest != self.features_digest:
            raise UserError(
                "--resume: other images can be read than in the interrupted run, or the program "
                "computes other features; leave out --resume to start from the beginning"
            )
        self.features_digest = digest

    def save(self, first_epoch: int, state: dict[str, Any]) -> None:
        """Replace a head's state, and write all states unless that was done SAVE_INTERVAL ago."""
        self.states[first_epoch] = state
        if time.monotonic() - self.saved_at >= SAVE_INTERVAL:
            self._write()

    def _write(self) -> None:
        content = {
            "arguments": self.arguments,
            "features": self.features_digest,
            "states": self.states,
        }
        try:
            save_torch(content, self.path)
        except UserError as error:  # such as a full disk, which may have space at the end
            warn(f"{error}; if the training is interrupted, --resume starts from an earlier epoch")
        self.saved_at = time.monotonic()

    def remove(self) -> None:
        """Delete the folder, if it exists."""
        shutil.rmtree(self.folder, ignore_errors=True)

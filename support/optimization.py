"""Minimizing a loss: SGD under a one-cycle learning rate schedule (Smith & Topin 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from support.arguments import UserError
from support.metrics import metrics
from support.sampling import balanced_order, balanced_size

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-3  # of SGD; common values, not tuned
MAX_NORM = 1.0  # of the gradient: without it, small batches of 102 categories diverge
MAX_LOSS = 200  # of train and valid; that of guessing is 14 for a million categories

OnEpoch = Callable[[dict, dict], None]  # see `optimize`


def optimize(
    model: nn.Module,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    labels: torch.Tensor,
    valid_logits: Callable[[], torch.Tensor],
    valid_labels: torch.Tensor,
    *,
    learning_rate: float,
    rates: list[tuple[nn.Module, float]],
    epochs: range,
    batch_size: int,
    on_epoch: OnEpoch,
    state: dict | None,
    history: list[dict] | None = None,
) -> list[dict]:
    """Minimize a loss in steps. Random numbers come from torch's global generator.

    Args:
        loss_of: indices (B,) of samples -> their mean loss.
        labels: (samples,) int64. Each epoch has equally many samples of each: this is 0.9 points of
            accuracy where categories have 4 to 40 images (benchmarks/README.md), at no cost.
        valid_logits: returns those of the validation images, (N, num_classes), if there are any.
        learning_rate: the maximum of the schedule.
        rates: modules, each with its fraction of the learning rate.
        epochs: their numbers in the history.
        on_epoch: called after each epoch with its row and the state that resuming needs.
        state: the state to resume from, to the same bits on a CPU.
        history: of earlier epochs.

    Returns:
        The history: for each epoch "epoch" (from 1), "train_loss", and, if there are validation
        images, "valid_loss" (cross entropy) and "valid_accuracy" (0-1).

    Raises:
        UserError: the loss exceeds MAX_LOSS or is not finite, or the state is damaged.
    """
    steps = math.ceil(balanced_size(labels) / batch_size)  # of an epoch
    optimizer, schedule = _make_optimizer(model, learning_rate, rates, len(epochs) * steps)
    modules: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    history = list(history or [])
    if state:
        history = _restore(modules, state, epochs, steps, has_valid=len(valid_labels) > 0)
    for epoch in epochs[len(history) - epochs.start + 1 :]:
        train_loss = _train_one_epoch(model, loss_of, labels, optimizer, schedule, batch_size)
        row = {"epoch": epoch, "train_loss": train_loss}
        if len(valid_labels):
            valid = metrics(valid_logits(), valid_labels)
            row |= {"valid_loss": valid["loss"], "valid_accuracy": valid["accuracy"]}
        if not train_loss + row.get("valid_loss", 0) < MAX_LOSS:
            reason = f"the loss is {train_loss:.3g} in epoch {epoch}"
            raise UserError(f"{reason}; try a --learning_rate smaller than {learning_rate:g}")
        history.append(row)
        state = {name: module.state_dict() for name, module in modules.items()}
        state |= {"history": history, "random": torch.get_rng_state()}
        on_epoch(row, state | {"first_epoch": epochs.start})
    return history


def format_epoch(row: dict, epochs: int) -> str:
    """Format a row of the history as a line."""
    line = f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}  train loss {row['train_loss']:6.3f}"
    if "valid_loss" not in row:
        return line
    accuracy = f"valid accuracy {row['valid_accuracy']:6.1%}"
    return f"{line}  valid loss {row['valid_loss']:6.3f}  {accuracy}"


def used_epoch(history: list[dict], epochs: int) -> dict:
    """Return the row of the epoch whose weights are used: that of the last one.

    If fine-tuning did not improve the accuracy on valid, or the loss at the same accuracy, it is
    the last epoch before.

    Args:
        epochs: the number of those before fine-tuning.
    """

    def quality(row: dict) -> tuple[float, float]:
        return row["valid_accuracy"], -row["valid_loss"]

    fitted, last = history[epochs - 1], history[-1]
    return last if quality(last) > quality(fitted) else fitted


def _restore(
    modules: dict[str, Any], state: dict, epochs: range, steps: int, *, has_valid: bool
) -> list[dict]:
    """Load the state that `on_epoch` got; returns its history.

    Args:
        steps: of an epoch.
        has_valid: whether these epochs have validation images, as all earlier ones had.

    Raises:
        UserError: the state is damaged, or of another training.
    """
    try:
        for name, module in modules.items():
            module.load_state_dict(state[name])
        history, done = state["history"], len(state["history"]) - epochs.start + 1
        validated = history if has_valid else history[: epochs.start - 1]
        values = [row["train_loss"] for row in history] + [row["valid_loss"] for row in validated]
        is_valid = (
            [row["epoch"] for row in history] == list(range(1, len(history) + 1))
            and 0 < done <= len(epochs)
            and modules["schedule"].last_epoch == done * steps
            and all(type(value) is float for value in values)
            and all(
                values["momentum_buffer"].shape == parameter.shape
                for parameter, values in modules["optimizer"].state.items()
            )
        )
        torch.set_rng_state(state["random"])
    except Exception as error:
        raise _damaged_state() from error
    if not is_valid:
        raise _damaged_state()
    return history


def _damaged_state() -> UserError:
    return UserError(
        "--resume: the state of the interrupted run is damaged; leave out --resume to start from "
        "the beginning"
    )


def _make_optimizer(
    model: nn.Module, learning_rate: float, rates: list[tuple[nn.Module, float]], steps: int
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Return SGD, and the learning rate schedule of so many steps."""
    optimizer = torch.optim.SGD(
        [{"params": module.parameters(), "lr": learning_rate} for module, _ in rates],
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        nesterov=True,
        fused=next(model.parameters()).device.type == "cpu",  # a step takes less than half the time
    )
    # One step more than is taken: the last rate is almost 0, and might be the only one.
    maxima = [learning_rate * rate for _, rate in rates]
    return optimizer, OneCycleLR(optimizer, maxima, steps + 1)


def _train_one_epoch(
    model: nn.Module,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    labels: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    batch_size: int,
) -> float:
    """Take one step for each batch; returns the mean loss over samples."""
    model.train()
    order, total = balanced_order(labels), 0.0
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for batch in order.split(batch_size):
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        schedule.step()
        total += loss.item() * len(batch)
    model.eval()
    return total / len(order)

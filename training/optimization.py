"""Minimizing a loss: SGD under a one-cycle learning rate schedule (Smith & Topin 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.sgd import sgd

from evaluation.metrics import metrics
from system.messages import UserError
from training.sampling import balanced_order, balanced_size

WEIGHT_DECAY = 1e-3  # a common value, not tuned
MAX_NORM = 1.0  # of the gradient: without it, small batches of 102 categories diverge
BATCH, FEW_BATCH, FEW = 64, 16, 30  # see default_batch_size
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
    maxima = [(module, learning_rate * rate) for module, rate in rates]
    optimizer = _Sgd(maxima, len(epochs) * steps)
    history = list(history or [])
    if state:
        history = _restore(model, optimizer, state, epochs, has_valid=len(valid_labels) > 0)
    for epoch in epochs[len(history) - epochs.start + 1 :]:
        train_loss = _train_one_epoch(model, loss_of, labels, optimizer, batch_size)
        row = {"epoch": epoch, "train_loss": train_loss}
        if len(valid_labels):
            valid = metrics(valid_logits(), valid_labels)
            row |= {"valid_loss": valid["loss"], "valid_accuracy": valid["accuracy"]}
        if not train_loss + row.get("valid_loss", 0) < MAX_LOSS:
            reason = f"the loss is {train_loss:.3g} in epoch {epoch}"
            raise UserError(f"{reason}; try a --learning_rate smaller than {learning_rate:g}")
        history.append(row)
        state = {"model": model.state_dict(), "momenta": optimizer.momenta}
        state |= {"steps": optimizer.steps, "history": history, "random": torch.get_rng_state()}
        on_epoch(row, state | {"first_epoch": epochs.start})
    return history


def default_batch_size(labels: torch.Tensor) -> int:
    """Return how many regions a step takes: few if there are few images of a label.

    More steps then bring 0.3 points of accuracy; otherwise, larger batches are as accurate, and
    take half the time (benchmarks/README.md).

    Args:
        labels: (N,) int64, of the training images.
    """
    return FEW_BATCH if len(labels) < FEW * len(labels.unique()) else BATCH


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
    model: nn.Module, optimizer: _Sgd, state: dict, epochs: range, *, has_valid: bool
) -> list[dict]:
    """Load the state that `on_epoch` got; returns its history.

    Args:
        has_valid: whether these epochs have validation images, as all earlier ones had.

    Raises:
        UserError: the state is damaged, or of another training.
    """
    try:
        model.load_state_dict(state["model"])
        for momentum, values in zip(optimizer.momenta, state["momenta"], strict=True):
            if momentum.shape != values.shape:
                raise _damaged_state()
            momentum.copy_(values)
        history, done = state["history"], len(state["history"]) - epochs.start + 1
        validated = history if has_valid else history[: epochs.start - 1]
        values = [row["train_loss"] for row in history] + [row["valid_loss"] for row in validated]
        is_valid = (
            [row["epoch"] for row in history] == list(range(1, len(history) + 1))
            and 0 < done <= len(epochs)
            and state["steps"] * len(epochs) == done * optimizer.total
            and all(type(value) is float for value in values)
        )
        optimizer.steps = state["steps"]
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


def one_cycle(step: int, total: int) -> tuple[float, float]:
    """Return the share of the maximal learning rate, and the momentum, of a step from 0 to total.

    They are those of torch's OneCycleLR at its defaults.
    """
    top = 0.3 * (total + 1) - 1  # the step with the maximum
    if step <= top:
        return _anneal(1 / 25, 1, step / top), _anneal(0.95, 0.85, step / top)
    share = (step - top) / (total - top)
    return _anneal(1, 1 / 250_000, share), _anneal(0.85, 0.95, share)


def _anneal(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


class _Sgd:
    """SGD with Nesterov momentum and clipped gradients, under a one-cycle schedule.

    A step is torch's own function for it. The classes of torch.optim import torch._dynamo, which
    takes a second.

    Args:
        rates: modules, each with the maximum of its learning rate.
        total: number of steps of the schedule.
    """

    def __init__(self, rates: list[tuple[nn.Module, float]], total: int):
        self.parameters: list[Any] = [p for module, _ in rates for p in module.parameters()]
        self.momenta: list[Any] = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.rates = [(len(list(module.parameters())), rate) for module, rate in rates]
        self.total, self.steps = total, 0
        self.is_inf = torch.zeros((), device=self.parameters[0].device)

    def step(self, loss: torch.Tensor) -> None:
        """Take a step down the gradient of a loss; the gradient is clipped at MAX_NORM."""
        gradients = torch.autograd.grad(loss, self.parameters)
        # The last rate is almost 0, and might be the only one: so step `total` is not taken.
        share, momentum = one_cycle(self.steps, self.total)
        norm = nn.utils.get_total_norm(gradients)
        start = 0
        with torch.no_grad():
            for count, rate in self.rates:
                group = slice(start, start + count)
                start += count
                sgd(
                    self.parameters[group],
                    list(gradients[group]),
                    self.momenta[group],
                    fused=True,  # in less than half the time
                    grad_scale=norm.clamp(min=MAX_NORM) / MAX_NORM,  # by which it is divided
                    found_inf=self.is_inf,
                    weight_decay=WEIGHT_DECAY,
                    momentum=momentum,
                    lr=rate * share,
                    dampening=0,
                    nesterov=True,
                    maximize=False,
                )
        self.steps += 1


def _train_one_epoch(
    model: nn.Module,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    labels: torch.Tensor,
    optimizer: _Sgd,
    batch_size: int,
) -> float:
    """Take one step for each batch; returns the mean loss over samples."""
    model.train()
    order, total = balanced_order(labels), 0.0
    for batch in order.split(batch_size):
        loss = loss_of(batch)
        optimizer.step(loss)
        total += loss.item() * len(batch)
    model.eval()
    return total / len(order)

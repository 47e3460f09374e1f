"""Steps of SGD under a one-cycle learning rate schedule (Smith & Topin 2018)."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.sgd import sgd

WEIGHT_DECAY = 1e-3  # a common value, not tuned
MAX_NORM = 1.0  # of the gradient: without it, small batches of 102 categories diverge


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


class Sgd:
    """SGD with Nesterov momentum and clipped gradients, under the schedule of `one_cycle`.

    A step is torch's own function for it. torch.optim.SGD is not used: its first object imports
    torch._dynamo. A training with stored features took 17.8 s of processor time after making one,
    and 10.8 s without (Oxford-17, medians of five runs each on two busy cores, torch 2.14).

    Args:
        parameters: what is optimized.
        learning_rate: the maximum of the schedule.
        total: number of steps of the schedule.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, total: int):
        self.parameters: list[Any] = list(parameters)
        self.momenta: list[Any] = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.learning_rate = learning_rate
        self.total = total
        self.steps = 0
        self.is_inf = torch.zeros((), device=self.parameters[0].device)

    def step(self, loss: torch.Tensor) -> None:
        """Take a step down the gradient of a loss; the gradient is clipped at MAX_NORM."""
        gradients = torch.autograd.grad(loss, self.parameters)
        norm = nn.utils.get_total_norm(gradients)
        # The last rate is almost 0, and might be the only one: so step `total` is not taken.
        share, momentum = one_cycle(self.steps, self.total)
        with torch.no_grad():
            sgd(
                self.parameters,
                list(gradients),
                self.momenta,
                fused=True,  # in less than half the time
                grad_scale=norm.clamp(min=MAX_NORM) / MAX_NORM,  # by which it is divided
                found_inf=self.is_inf,
                weight_decay=WEIGHT_DECAY,
                momentum=momentum,
                lr=self.learning_rate * share,
                dampening=0,
                nesterov=True,
                maximize=False,
            )
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to continue with the same steps."""
        return {"steps": self.steps, "momenta": self.momenta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            Exception: it is the state of other parameters.
        """
        self.steps = state["steps"]
        for momentum, value in zip(self.momenta, state["momenta"], strict=True):
            if momentum.shape != value.shape:
                raise ValueError("a momentum of another shape")
            momentum.copy_(value)

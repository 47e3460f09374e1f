"""training/optimization.py: the schedule and the steps are those of torch.optim."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

from training.optimization import MAX_NORM, WEIGHT_DECAY, Sgd, one_cycle


def torch_sgd(model: nn.Module, rate: float, steps: int) -> tuple[torch.optim.SGD, OneCycleLR]:
    """Return torch's SGD and its schedule."""
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=rate,
        momentum=0.9,  # replaced by the schedule
        weight_decay=WEIGHT_DECAY,
        nesterov=True,
    )
    return optimizer, OneCycleLR(optimizer, rate, steps + 1)


@pytest.mark.parametrize("total", [1, 2, 3, 100])
def test_learning_rate_and_momentum_are_those_of_torchs_schedule(total):
    optimizer, schedule = torch_sgd(nn.Linear(1, 1), 0.03, total)
    for step in range(total + 1):
        rate, momentum = one_cycle(step, total)
        [group] = optimizer.param_groups
        assert 0.03 * rate == pytest.approx(group["lr"], rel=1e-9)
        assert momentum == pytest.approx(group["momentum"], rel=1e-9)
        optimizer.step()
        if step < total:
            schedule.step()


@pytest.mark.parametrize("scale", [0.05, 5.0])  # of the loss: no gradient is clipped, or all are
def test_steps_are_those_of_torchs_sgd_with_clipped_gradients(scale):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    expected = copy.deepcopy(model)
    x = 4 * torch.randn(24, 5)
    y = torch.arange(24) % 3
    batches = torch.cat([torch.randperm(24), torch.randperm(24)]).split(8)
    norms = []
    optimizer, schedule = torch_sgd(expected, 0.2, 6)
    own = Sgd(model.parameters(), 0.2, 6)
    for batch in batches:
        optimizer.zero_grad()
        (scale * cross_entropy(expected(x[batch]), y[batch])).backward()
        norms.append(nn.utils.clip_grad_norm_(expected.parameters(), MAX_NORM).item())
        optimizer.step()
        schedule.step()
        own.step(scale * cross_entropy(model(x[batch]), y[batch]))
    assert min(norms) > MAX_NORM if scale > 1 else max(norms) < MAX_NORM
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter, other)

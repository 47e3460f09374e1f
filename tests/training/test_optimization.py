"""training/optimization.py: the schedule and the steps are those of torch.optim."""

import copy

import pytest
import torch
from conftest import same_bits
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


@pytest.mark.parametrize("total", [1, 2, 3, 7, 100, 1785])
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


def model_and_data() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """Make a network of two layers, features (24, 5) and labels (24,) of 3 categories."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, 4 * torch.randn(24, 5), torch.arange(24) % 3


def take_steps(model, optimizer: Sgd, x, y, scale: float) -> None:
    """Take a step for each of three batches."""
    for batch in torch.randperm(24).split(8):
        optimizer.step(scale * cross_entropy(model(x[batch]), y[batch]))


@pytest.mark.parametrize("scale", [0.05, 5.0])  # of the loss: no gradient is clipped, or all are
def test_steps_are_those_of_torchs_sgd_with_clipped_gradients(scale):
    model, x, y = model_and_data()
    expected, norms = model_and_data()[0], []
    optimizer, schedule = torch_sgd(expected, 0.2, 6)
    torch.manual_seed(1)
    for _ in range(2):
        for batch in torch.randperm(24).split(8):
            optimizer.zero_grad()
            (scale * cross_entropy(expected(x[batch]), y[batch])).backward()
            norms.append(nn.utils.clip_grad_norm_(expected.parameters(), MAX_NORM).item())
            optimizer.step()
            schedule.step()
    torch.manual_seed(1)
    optimizer = Sgd(model.parameters(), 0.2, 6)
    take_steps(model, optimizer, x, y, scale)
    take_steps(model, optimizer, x, y, scale)
    assert min(norms) > MAX_NORM if scale > 1 else max(norms) < MAX_NORM
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter, other)


def test_a_loaded_state_continues_with_the_same_steps():
    model, x, y = model_and_data()
    optimizer = Sgd(model.parameters(), 0.2, 6)
    take_steps(model, optimizer, x, y, 1.0)
    other = model_and_data()[0]
    other.load_state_dict(model.state_dict())
    resumed = Sgd(other.parameters(), 0.2, 6)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for network, own in ((model, optimizer), (other, resumed)):
        torch.manual_seed(2)
        take_steps(network, own, x, y, 1.0)
    assert same_bits(other.state_dict(), model.state_dict())

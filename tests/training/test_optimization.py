"""training/optimization.py: the schedule and the steps are those of torch.optim."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

from training.optimization import MAX_NORM, WEIGHT_DECAY, default_batch_size, one_cycle, optimize


def torch_sgd(groups, steps: int) -> tuple[torch.optim.Optimizer, OneCycleLR]:
    """Return torch's SGD and its schedule for modules, each with its maximal learning rate."""
    optimizer = torch.optim.SGD(
        [{"params": module.parameters(), "lr": rate} for module, rate in groups],
        momentum=0.9,  # replaced by the schedule
        weight_decay=WEIGHT_DECAY,
        nesterov=True,
    )
    return optimizer, OneCycleLR(optimizer, [rate for _, rate in groups], steps + 1)


@pytest.mark.parametrize("total", [1, 2, 3, 7, 100, 1785])
def test_learning_rate_and_momentum_are_those_of_torchs_schedule(total):
    optimizer, schedule = torch_sgd([(nn.Linear(1, 1), 0.03)], total)
    for step in range(total + 1):
        rate, momentum = one_cycle(step, total)
        [group] = optimizer.param_groups
        assert 0.03 * rate == pytest.approx(group["lr"], rel=1e-9)
        assert momentum == pytest.approx(group["momentum"], rel=1e-9)
        optimizer.step()
        if step < total:
            schedule.step()


@pytest.mark.parametrize(
    ("labels", "size"),
    [([0, 1] * 30, 64), ([0, 1] * 29 + [0], 16), ([5] * 10, 16), ([3] * 900, 64)],
)
def test_batches_are_small_where_images_of_a_label_are_few(labels, size):
    assert default_batch_size(torch.tensor(labels)) == size


def model_and_data() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """Make a network of two layers, features (24, 5) and labels (24,) of 3 categories."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, 4 * torch.randn(24, 5), torch.arange(24) % 3


@pytest.mark.parametrize("scale", [0.05, 5.0])  # of the loss: no gradient is clipped, or all are
def test_steps_are_those_of_torchs_sgd_with_clipped_gradients(scale):
    model, x, y = model_and_data()
    expected, norms = model_and_data()[0], []
    rates = [(expected[0], 0.2), (expected[2], 0.05)]
    optimizer, schedule = torch_sgd(rates, 6)
    torch.manual_seed(1)
    for _ in range(2):
        for batch in torch.randperm(24).split(8):
            optimizer.zero_grad()
            (scale * cross_entropy(expected(x[batch]), y[batch])).backward()
            norms.append(nn.utils.clip_grad_norm_(expected.parameters(), MAX_NORM).item())
            optimizer.step()
            schedule.step()
    torch.manual_seed(1)
    history = optimize(
        model,
        lambda batch: scale * cross_entropy(model(x[batch]), y[batch]),
        y,
        lambda: torch.empty(0, 3),
        y[:0],
        learning_rate=0.2,
        rates=[(model[0], 1.0), (model[2], 0.25)],
        epochs=range(1, 3),
        batch_size=8,
        on_epoch=lambda row, state: None,
        state=None,
    )
    assert [row["epoch"] for row in history] == [1, 2]
    assert min(norms) > MAX_NORM if scale > 1 else max(norms) < MAX_NORM
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter, other)

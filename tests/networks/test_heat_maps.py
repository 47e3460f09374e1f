"""networks/heat_maps.py: the locations of feature maps that raise a logit."""

import torch

from networks.heat_maps import hires_cam


def test_heat_is_what_each_location_adds_to_a_linear_logit():
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]]])
    weights = torch.tensor([[[[2.0, -2.0], [1.0, 0.0]], [[0.0, 1.0], [5.0, -1.0]]]])
    heat = hires_cam([maps], lambda scales: (weights * scales[0]).sum())
    # 2 + 0; -4 + 1; 3 + 5; 0 - 1
    assert torch.allclose(heat, torch.tensor([[2.0, 0.0], [8.0, 0.0]]) / 8)


def test_the_heat_of_another_scale_is_spread_over_its_locations():
    fine, coarse = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 4, 4)
    weight = torch.zeros(1, 1, 4, 4)
    weight[..., 2:] = 6.0  # on the right of the mirror image, so on the left of the image

    def logit_of(scales):
        return scales[0].sum() + (weight * scales[1]).sum()

    heat = hires_cam([fine, coarse], logit_of)
    # Each location adds 1, and on the left a quarter of 6.
    assert heat.shape == (8, 8)
    assert torch.allclose(heat[:, 0], torch.ones(8))
    assert torch.allclose(heat[:, -1], torch.full((8,), 1 / 2.5))
    total = (heat * 2.5).sum().item()
    assert abs(total - logit_of([fine, coarse]).item()) < 1e-3


def test_where_nothing_raises_the_logit_there_is_no_heat_even_without_gradients():
    maps = torch.ones(1, 3, 4, 4)
    with torch.inference_mode():
        heat = hires_cam([maps], lambda scales: -scales[0].sum())
    assert torch.equal(heat, torch.zeros(4, 4)) and not heat.requires_grad

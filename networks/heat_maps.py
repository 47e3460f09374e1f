"""Which locations of feature maps raise a logit: HiResCAM (Draelos & Carin 2020)."""

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import interpolate


def hires_cam(
    maps: Sequence[torch.Tensor], logit_of: Callable[[Sequence[torch.Tensor]], torch.Tensor]
) -> torch.Tensor:
    """Return the locations of feature maps that raise a logit: (H, W) float32 on the CPU, 0-1.

    At each location, all channels are added up, each weighted by the gradient of the logit there;
    values below 0, which lower the logit, become 0. The maximum is 1 unless all are 0.

    Args:
        maps: (1, C, H, W) float32, and maps of the mirror image at other scales.
        logit_of: such maps -> the logit.
    """
    with torch.inference_mode(False), torch.enable_grad():
        maps = [scale.clone().requires_grad_() for scale in maps]
        gradients = torch.autograd.grad(logit_of(maps), maps)
    with torch.no_grad():
        heat, *others = [(g * m).sum(1, True) for g, m in zip(gradients, maps, strict=True)]
        for other in others:  # a value is spread over all locations that it stands for
            share = other.shape[2:].numel() / heat.shape[2:].numel()
            heat = heat + share * interpolate(other.flip(3), heat.shape[2:], mode="bilinear")
        heat = heat[0, 0].relu()
        return (heat / heat.max().clamp(min=1e-12)).cpu()

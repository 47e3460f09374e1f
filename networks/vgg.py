"""The convolutions of VGG, as torchvision has them: importing torchvision takes a second."""

from collections.abc import Sequence

import torch
from torch import nn

CHANNELS = (64, 128, 256, 512, 512)  # of each block


def vgg_layers(convolutions: Sequence[int]) -> nn.Sequential:
    """Return the layers of torchvision's `features`, in its order (Simonyan & Zisserman 2015).

    Args:
        convolutions: how many each of the five blocks has; a max-pooling follows them.
    """
    layers = nn.Sequential()
    inputs = 3
    for count, channels in zip(convolutions, CHANNELS, strict=True):
        for _ in range(count):
            layers.append(nn.Conv2d(inputs, channels, 3, padding=1))
            layers.append(nn.ReLU(inplace=True))
            inputs = channels
        layers.append(nn.MaxPool2d(2))
    return layers


Region = tuple[float, float, float]  # top, left, side; fractions of the side of the maps


def pool_regions(maps: torch.Tensor, regions: Sequence[Region]) -> torch.Tensor:
    """Return averages and maxima of regions: (N, C, H, W) -> (N, len(regions), 2 * C) float32.

    Their square root is taken (power normalization, Perronnin et al. 2010), so that a few large
    values do not dominate; the square root of 0 would have an infinite gradient.
    """
    maps = maps.permute(0, 2, 3, 1).contiguous()  # (N, H, W, C): as it is in memory already
    rows: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}  # some regions share them
    pooled = []
    for top, start, side in regions:
        (y, height), (x, width) = (
            (round(offset * size), max(1, round(side * size)))
            for offset, size in zip((top, start), maps.shape[1:3], strict=True)
        )
        if (y, height) not in rows:
            strip = maps[:, y : y + height]
            rows[y, height] = strip.sum(1, dtype=torch.float32), strip.amax(1)  # (N, W, C)
        sums, maxima = (values[:, x : x + width] for values in rows[y, height])
        averages = sums.sum(1) / (height * width)
        pooled.append(torch.cat([averages, maxima.amax(1)], 1))  # (N, 2 * C)
    return torch.stack(pooled, 1).clamp(min=1e-6).sqrt()


def replace_second_stage(features: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return features (..., num_features) with another second stage (..., num_features / 2)."""
    return torch.cat([features[..., : -second.shape[-1]], second], -1)

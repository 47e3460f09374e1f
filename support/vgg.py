"""The convolutions of VGG, as torchvision has them: importing torchvision takes a second."""

from __future__ import annotations

from torch import nn

CHANNELS = (64, 128, 256, 512, 512)  # of each block


def vgg_layers(*convolutions: int) -> nn.Sequential:
    """Return the layers of torchvision's `features`, in its order (Simonyan & Zisserman 2015).

    Args:
        convolutions: how many each of the five blocks has; a max-pooling follows them.
    """
    layers: list[nn.Module] = []
    inputs = 3
    for count, channels in zip(convolutions, CHANNELS, strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = channels
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)

"""networks.winograd: the fast convolution is a convolution."""

import pytest
import torch
from torch import nn

from networks.winograd import WinogradConv2d, replace_convolutions


@pytest.mark.parametrize(("height", "width"), [(32, 32), (14, 14), (9, 13), (1, 1)])
def test_a_winograd_convolution_is_a_convolution(height, width):
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 24, 3, padding=1)
    images = torch.randn(3, 128, height, width)
    with torch.inference_mode():
        expected, actual = conv(images), WinogradConv2d(conv)(images)
    assert actual.is_contiguous(memory_format=torch.channels_last) or height % 4 or width % 4
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_only_convolutions_of_many_channels_are_replaced():
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 8, 3, padding=1),
    )
    images = torch.randn(2, 3, 20, 12)
    with torch.inference_mode():
        expected = layers(images)
        replace_convolutions(layers, 16)
        actual = layers(images)
    replaced = [isinstance(layer, WinogradConv2d) for layer in layers]
    assert replaced == [False, False, True, False, True]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)

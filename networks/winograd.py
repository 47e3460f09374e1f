"""A 3 x 3 convolution in float32 by Winograd's method, which is faster than torch's on a CPU."""

import math

import torch
from torch import nn
from torch.nn.functional import pad

# F(4 x 4, 3 x 3) of "Fast Algorithms for Convolutional Neural Networks" (Lavin & Gray 2016): the
# transforms of a tile of 6 x 6 inputs, of a kernel, and back to 4 x 4 outputs.
_TILE = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
_TILE += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
_KERNEL = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]  # / 24
_OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


class WinogradConv2d(nn.Module):
    """A copy of a 3 x 3 convolution with padding 1 that needs a quarter of the multiplications.

    The images of a batch are computed one by one, so that an image's outputs are the same bits in
    every batch.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        assert conv.bias is not None
        kernel = torch.tensor(_KERNEL).float() / 24
        tile = torch.tensor(_TILE).float()
        output = torch.tensor(_OUTPUT).float()
        kernels = torch.einsum("ia,ocab,jb->ijco", kernel, conv.weight, kernel)
        self.kernels = kernels.flatten(0, 1).contiguous()  # (36, in, out)
        self.to_tile = torch.kron(tile, tile)
        self.to_output = torch.kron(output, output)
        self.bias = conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (N, in, H, W) -> (N, out, H, W), both float32 and channels_last."""
        n, channels, height, width = x.shape
        rows = math.ceil(height / 4)
        columns = math.ceil(width / 4)
        padding = (0, 0, 1, 4 * columns - width + 1, 1, 4 * rows - height + 1)
        x = pad(x.permute(0, 2, 3, 1), padding)
        y = x.new_empty(n, rows, 4, columns, 4, len(self.bias))
        for image, result in zip(x, y, strict=True):
            tiles = image.unfold(0, 6, 4).unfold(1, 6, 4)  # (rows, columns, in, 6, 6)
            tiles = self.to_tile @ tiles.permute(3, 4, 0, 1, 2).reshape(36, -1)
            products = torch.bmm(tiles.view(36, -1, channels), self.kernels)
            outputs = (self.to_output @ products.flatten(1)).view(4, 4, rows, columns, -1)
            result.copy_(outputs.permute(2, 0, 3, 1, 4))
        y = y.view(n, 4 * rows, 4 * columns, -1)[:, :height, :width]
        return y.add_(self.bias).permute(0, 3, 1, 2)


def replace_convolutions(layers: nn.Sequential, min_channels: int) -> None:
    """Replace the convolutions with at least `min_channels` input channels by WinogradConv2d."""
    for index, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d) and layer.in_channels >= min_channels:
            layers[index] = WinogradConv2d(layer)

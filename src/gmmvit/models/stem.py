"""Stems turn images into tokens: patches, or small convolutions to the same grid.

Letters: B batch, C channels, N patches.
"""

import torch
from torch import Tensor, nn

from gmmvit.checks import integer, one_of
from gmmvit.models.layers import Grid, PatchEmbedding, check_images, patch_grid

STEMS = ("patch", "conv")


class ConvStem(nn.Module):
    """Small overlapping convolutions to the grid of `patch_size`: [B, C, height, width] -> [B, N, dim].

    Each step is a convolution with batch norm and GELU that halves the map (3 x 3, stride 2) and doubles the channels,
    up to `dim`. If the patch size is not a power of 2, the rest is a last step of that stride. A residual block follows
    on each of the last three maps; for small patches the first of them has the size of the image. With patches of 4 at
    32 pixels the maps are 32 x 32, 16 x 16 and 8 x 8.

    Source: early convolutions, arXiv 2106.14881; the residual blocks and their place are this project's (docs/log.md).
    """

    def __init__(self, patch_size: tuple[int, int], channels: int, dim: int) -> None:
        super().__init__()
        integer("channels", channels)
        integer("dim", dim)
        self.patch_size, self.channels = patch_size, channels
        strides = stem_strides(patch_size)
        widths = [max(1, dim >> steps) for steps in range(len(strides), -1, -1)]
        # A map at full size is worth its cost only for small patches.
        layers: list[nn.Module] = []
        if len(strides) <= 2:
            layers = [_convolution(channels, widths[0], (1, 1)), ResidualBlock(widths[0])]
        for i, stride in enumerate(strides):
            layers.append(_convolution(widths[i] if layers else channels, widths[i + 1], stride))
            if i >= len(strides) - 3:
                layers.append(ResidualBlock(widths[i + 1]))
        self.layers = nn.Sequential(*layers)

    @staticmethod
    def init_layer(module: nn.Module) -> None:
        """Initialises convolutions to preserve variance (He et al., arXiv 1502.01852)."""
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def grid(self, images: Tensor) -> Grid:
        """As `PatchEmbedding.grid`."""
        check_images(images, self.channels)
        return patch_grid((images.shape[2], images.shape[3]), self.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        self.grid(images)
        return self.layers(images.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2)


class ResidualBlock(nn.Module):
    """gelu(x + two 3 x 3 convolutions with batch norm): [B, C, height, width] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _convolution(width, width, (1, 1))
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x + self.norm2(self.conv2(self.conv1(x))))


def _convolution(channels: int, width: int, stride: tuple[int, int]) -> nn.Sequential:
    """A convolution that overlaps up to stride 3 and cuts patches beyond."""
    kernel = max(3, stride[0]), max(3, stride[1])
    padding = int(stride[0] <= 3), int(stride[1] <= 3)
    convolution = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.GELU())


def stem_strides(patch_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Strides (down, right) of a stem's steps: twos, then the remaining factor; a side that is done early gets ones."""
    sides = []
    for side in patch_size:
        twos = (side & -side).bit_length() - 1
        rest = side >> twos
        sides.append([2] * twos + ([rest] if rest > 1 else []))
    length = max(map(len, sides))
    down, right = ([1] * (length - len(side)) + side for side in sides)
    return list(zip(down, right, strict=True))


def make_stem(stem: str, patch_size: tuple[int, int], channels: int, dim: int, norm: bool = False) -> nn.Module:
    """The stem "patch" or "conv"; `norm` as in `PatchEmbedding`, ignored by "conv". Raises ValueError otherwise."""
    one_of("stem", stem, STEMS)
    return PatchEmbedding(patch_size, channels, dim, norm) if stem == "patch" else ConvStem(patch_size, channels, dim)

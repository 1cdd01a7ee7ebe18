"""ResNet for small images: a plain convnet for comparison. It has no attention, so it takes no mask.

Letters: B batch, N places of the map, C channels.

Source: He et al., arXiv 1512.03385, section 4.2 (CIFAR-10), with 1 x 1 convolutions where the size changes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.checks import pair
from gmmvit.models.base import VisionTransformer
from gmmvit.models.layers import DropPath, Grid, check_images


class ResNet(VisionTransformer):
    """Convolutional network of three stages at full, half and quarter resolution; each stage doubles the width.

    Args:
        image_size: int or (height, width) in pixels; the model takes any size at run time.
        channels, num_classes: image channels; width of the head.
        dim: width of the first stage.
        depth: layers, 6 n + 2 for n blocks per stage.
        mask: "none"; mode and mask_options have no effect.
        dropout: before the classifier.
        drop_path: probability that a sample skips a block.

    Input [B, channels, height, width], normalised; output logits [B, num_classes]. As in the other families, features
    are tokens [B, N, C].

    Raises ValueError for a mask and for sizes that do not fit, naming the argument.
    """

    family = "resnet"

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 32,
        channels: int = 3,
        num_classes: int = 10,
        dim: int = 24,
        depth: int = 20,
        mask: str = "none",
        mode: str = "multiply",
        mask_options: dict[str, Any] | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(locals())
        self.grid = pair(image_size, "image_size")
        self.prefix_tokens, self.cls_token = 0, None
        self.patch_embed = _Stem(channels, dim)
        widths = [dim] * (depth // 6) + [2 * dim] * (depth // 6) + [4 * dim] * (depth // 6)
        self.blocks = nn.ModuleList(
            ConvBlock(before, width, drop_path) for before, width in zip([dim, *widths], widths, strict=False)
        )
        self.dropout = nn.Dropout(dropout)
        self.num_features, self.num_classes = widths[-1], num_classes
        self.norm = nn.Identity()  # type: ignore[assignment]
        self.head = nn.Linear(self.num_features, num_classes)
        self.apply(self.init_layer)

    def _check_arguments(self, given: dict[str, Any]) -> None:
        if given["mask"] != "none":
            raise ValueError(
                f"resnet has no attention for a mask to act on: mask must be 'none', got {given['mask']!r}"
            )
        super()._check_arguments(given)
        if given["depth"] % 6 != 2 or given["depth"] < 8:
            raise ValueError(f"depth of resnet must be 6 n + 2 (8, 14, 20, 26, 32 ...), got {given['depth']}")

    @staticmethod
    def init_layer(module: nn.Module) -> None:
        """Initialises convolutions to preserve variance (He et al., arXiv 1502.01852)."""
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def feature_steps(self) -> list[int]:
        """The last block of every stage."""
        return [len(self.blocks) * stage // 3 - 1 for stage in (1, 2, 3)]

    def embed(self, images: Tensor) -> tuple[Tensor, Grid]:
        return self.patch_embed(images), self.patch_embed.grid(images)

    def pool(self, x: Tensor) -> Tensor:
        """Mean of the last map: [B, N, C] -> [B, C]."""
        return self.dropout(x.mean(1))


class _Stem(nn.Module):
    """One 3 x 3 convolution at full resolution: [B, channels, height, width] -> [B, N, C]."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(channels, dim, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(dim)

    def grid(self, images: Tensor) -> Grid:
        """(height, width) of the images; raises ValueError or TypeError if they are not images."""
        check_images(images, self.channels)
        return images.shape[2], images.shape[3]

    def forward(self, images: Tensor) -> Tensor:
        self.grid(images)
        return _tokens(self.norm(self.conv(images.contiguous(memory_format=torch.channels_last))).relu())


class ConvBlock(nn.Module):
    """relu(shortcut + two 3 x 3 convolutions with batch norm) on a map as tokens [B, N, C]; a block that widens also
    halves the map."""

    def __init__(self, before: int, width: int, drop_path: float) -> None:
        super().__init__()
        self.stride = 1 if before == width else 2
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity() if before == width else nn.Conv2d(before, width, 1, bias=False)
        self.drop_path = DropPath(drop_path)

    def next_grid(self, grid: Grid) -> Grid:
        """The grid of what comes out."""
        return -(-grid[0] // self.stride), -(-grid[1] // self.stride)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        image = x.transpose(1, 2).unflatten(2, grid)  # a view, channels last, which is fast for convolutions
        branch = self.norm2(self.conv2(self.norm1(self.conv1(image)).relu()))
        # Strided by hand: where a 1 x 1 convolution strides over narrow channels-last maps, its gradient overran memory
        # on a CPU with AVX2 (torch 2.14.1; docs/log.md).
        kept = image[:, :, :: self.stride, :: self.stride]
        return _tokens((self.shortcut(kept) + self.drop_path(branch)).relu())


def _tokens(image: Tensor) -> Tensor:
    return image.flatten(2).transpose(1, 2)

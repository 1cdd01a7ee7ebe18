"""T2T-ViT: overlapping neighbourhoods become tokens step by step, then plain blocks.

Letters: B batch, N tokens of the current grid, C channels, D width of a token transformer.

Source: Yuan et al., arXiv 2101.11986, at the size that arXiv 2309.05375 trains on small images.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.attention import unpack
from gmmvit.checks import integer, pair, per_stage
from gmmvit.models.base import VisionTransformer
from gmmvit.models.layers import MLP, Block, Grid, MaskedAttention, Masking, check_images


class ResidualAttention(MaskedAttention):
    """Attention that adds its own normed input to its output, as the paper's code does."""

    def forward(self, x: Tensor, grid: Grid | None = None, bias: Tensor | None = None, **made: Tensor) -> Tensor:
        return super().forward(x, grid, bias, **made) + x


class TokenAttention(MaskedAttention):
    """Attention from one width to another: its values stand in for the input on the residual path."""

    def forward(self, x: Tensor, grid: Grid | None = None, bias: Tensor | None = None, **made: Tensor) -> Tensor:
        q, k, v = unpack(self.project(x))  # apart, since v has a second gradient
        return self.merge(self.attend((q, k, v), grid, bias, **made)) + v.transpose(1, 2).flatten(2)


class TokenTransformer(nn.Module):
    """One-head attention from `dim` to `token_dim` and an MLP: [B, N, dim] -> [B, N, token_dim]."""

    def __init__(self, dim: int, token_dim: int, grid: Grid, masking: Masking) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        # The scores are scaled by the input width, not the head's.
        self.attn = masking.attention(
            dim, 1, grid, 0.0, TokenAttention, head_dim=token_dim, out_dim=token_dim, scale=dim**-0.5
        )
        self.norm2 = nn.LayerNorm(token_dim)
        self.mlp = MLP(token_dim, token_dim, masking.dropout)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        x = self.attn(self.norm1(x), grid)
        return x + self.mlp(self.norm2(x))


def kernel_size(stride: int) -> int:
    """Side of the neighbourhoods of a soft split: 3 for strides 1 and 2, 7 for 4."""
    return max(3, 2 * stride - 1)


def split_grid(grid: Grid, stride: int) -> Grid:
    """The grid after a soft split; sides that the stride does not divide round up."""
    return -(-grid[0] // stride), -(-grid[1] // stride)


def soft_split(x: Tensor, stride: int) -> Tensor:
    """Overlapping neighbourhoods of [B, C, rows, cols]: [B, N, C * kernel * kernel]."""
    kernel = kernel_size(stride)
    return nn.functional.unfold(x, kernel, padding=kernel // 2, stride=stride).transpose(1, 2)


def default_strides(image_size: tuple[int, int]) -> tuple[int, ...]:
    """Strides to about 8 tokens on the shorter side, in two or three splits: (2, 2) for 32, (2, 2, 2) for 64 pixels."""
    halvings = max(0, math.floor(math.log2(min(image_size) / 8))) if min(image_size) >= 8 else 0
    if halvings < 3:
        return (2,) * halvings + (1,) * (2 - halvings)
    return (2 ** (halvings - 2), 2, 2)


class TokensToToken(nn.Module):
    """Soft splits with a token transformer between every two: images [B, C, height, width] -> [B, N, dim]."""

    def __init__(
        self, image_size: Grid, channels: int, token_dim: int, dim: int, strides: tuple[int, ...], masking: Masking
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("token_dim", token_dim), ("dim", dim)):
            integer(name, value)
        self.channels, self.strides = channels, strides
        self.transformers = nn.ModuleList()
        grid, width = image_size, channels
        for stride in strides[:-1]:
            grid = split_grid(grid, stride)
            self.transformers.append(TokenTransformer(width * kernel_size(stride) ** 2, token_dim, grid, masking))
            width = token_dim
        self.proj = nn.Linear(width * kernel_size(strides[-1]) ** 2, dim)

    def grid(self, images: Tensor) -> Grid:
        """(rows, cols) of the tokens of `images`.

        Raises ValueError if the channels do not fit, TypeError for integer pixels.
        """
        check_images(images, self.channels)
        grid = images.shape[2], images.shape[3]
        for stride in self.strides:
            grid = split_grid(grid, stride)
        return grid

    def forward(self, images: Tensor) -> Tensor:
        x, grid = images, (images.shape[2], images.shape[3])
        for stride, transformer in zip(self.strides[:-1], self.transformers, strict=True):
            grid = split_grid(grid, stride)
            x = transformer(soft_split(x, stride), grid).transpose(1, 2).unflatten(2, grid)
        return self.proj(soft_split(x, self.strides[-1]))


def sinusoid(length: int, dim: int) -> Tensor:
    """Fixed position embeddings: sine in even, cosine in odd channels; float32 [1, length, dim]."""
    channel = torch.arange(dim, dtype=torch.float64)
    frequency = 10000 ** (-2 * (channel // 2) / dim)
    angle = torch.arange(length, dtype=torch.float64).unsqueeze(1) * frequency
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float().unsqueeze(0)


class T2T(VisionTransformer):
    """Tokens-to-token transformer; token transformers and backbone are both masked.

    Args:
        image_size: int or (height, width) in pixels, any size.
        strides: of the soft splits; a side of n pixels becomes ceil(n / stride). About 8 x 8 tokens by default:
            (2, 2) for 32 pixels, (2, 2, 2) for 64.
        channels, num_classes: of the images; of the head.
        token_dim: width of the token transformers, which have one head.
        dim, depth, num_heads, mlp_ratio: of the backbone; the defaults are the paper's.
        mask, mode, mask_options: as in `ViT`.
        qkv_bias: of the backbone.
        dropout, drop_path: drop_path grows from 0 in the first block to this value in the last.

    The head reads the mean of the normed tokens; position embeddings are a fixed sinusoid. Without the class token and
    the norm that the paper's code never uses (1,408 parameters), the paper's size has 6,484,672 parameters instead of
    6,486,080. Another image size at run time interpolates the position embeddings and recomputes a Gaussian mixture
    mask.

    Raises ValueError for sizes that do not fit together, naming the argument.
    """

    family = "t2t"
    note = "the original also has a class token and a norm that no forward pass uses (1,408 parameters at tiny)"
    norm_before_pool = True

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 32,
        strides: Sequence[int] | None = None,
        channels: int = 3,
        num_classes: int = 10,
        token_dim: int = 64,
        dim: int = 256,
        depth: int = 12,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        mask: str = "none",
        mode: str = "multiply",
        mask_options: dict[str, Any] | None = None,
        qkv_bias: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(locals())
        size = pair(image_size, "image_size")
        steps = default_strides(size) if strides is None else per_stage(strides, "strides", example=(2, 2))
        masking = Masking(mask, mode, mask_options, dropout=dropout)
        self.patch_embed = TokensToToken(size, channels, token_dim, dim, steps, masking)
        self.grid, self.prefix_tokens, self.cls_token = size, 0, None
        for stride in steps:
            self.grid = split_grid(self.grid, stride)
        self.register_buffer("pos_embed", sinusoid(self.grid[0] * self.grid[1], dim), persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList()
        for layer in range(depth):
            place = layer / max(1, depth - 1)
            attention = masking.attention(dim, num_heads, self.grid, place, ResidualAttention, qkv_bias=qkv_bias)
            self.blocks.append(Block(attention, dim, mlp_ratio, dropout, drop_path * place))
        self.build_head(dim, num_classes)

    @staticmethod
    def init_layer(module: nn.Module) -> None:
        """Truncated normal weights of standard deviation 0.02, zero biases."""
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def init_tokens(self) -> None:
        """Nothing to initialise: positions are fixed."""

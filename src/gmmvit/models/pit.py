"""PiT: a multi-stage ViT; between stages a depthwise convolution halves the grid.

Letters: B batch, N patches, C channels.

Source: Heo et al., arXiv 2103.16302, at the size that arXiv 2309.05375 trains on small images.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.checks import one_of, pair, per_stage
from gmmvit.models.base import Stage, VisionTransformer
from gmmvit.models.layers import Block, Grid, Masking, choose_patch, patch_grid
from gmmvit.models.stem import make_stem
from gmmvit.models.vit import POOLS


class TokenPooling(nn.Module):
    """Halves the grid (odd sides round up) and doubles the channels: [B, P + N, C] -> [B, P + about N / 4, 2 C].

    Patches go through a depthwise and a pointwise convolution, the P prefix tokens through a linear layer.
    """

    def __init__(self, dim: int, prefix_tokens: int) -> None:
        super().__init__()
        self.prefix_tokens = prefix_tokens
        self.depthwise = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, groups=dim)
        self.pointwise = nn.Conv2d(2 * dim, 2 * dim, 1)
        self.prefix = nn.Linear(dim, 2 * dim) if prefix_tokens else None

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        prefix, patches = x[:, : self.prefix_tokens], x[:, self.prefix_tokens :]
        patches = self.pointwise(self.depthwise(patches.transpose(1, 2).unflatten(2, grid)))
        patches = patches.flatten(2).transpose(1, 2)
        return patches if self.prefix is None else torch.cat([self.prefix(prefix), patches], 1)

    def next_grid(self, grid: Grid) -> Grid:
        """Half the rows and columns, rounded up."""
        return (grid[0] + 1) // 2, (grid[1] + 1) // 2


class PiT(VisionTransformer):
    """Pooling-based transformer with a mask over each stage's grid.

    Args:
        image_size: int or (height, width) in pixels, a multiple of the patch.
        patch_size: int or (height, width); default: about a sixteenth of the image.
        channels, num_classes: image channels; width of the head.
        dim: channels of the first stage; they double from stage to stage.
        depth, num_heads: one number per stage; heads also one number for all.
        head_dim: the same in all stages; default: dim // num_heads of the first.
        mlp_ratio: hidden width of the MLPs as a multiple of the width.
        mask, mode, mask_options: as in `ViT`.
        position_std: initial standard deviation of the position embeddings; 1 by default (the paper's), 0.1 is better
            with the mask start "conv", which already directs each head.
        stem: "patch" (linear, the paper's) or "conv" (`ConvStem`: small overlapping convolutions to the same grid).
        pool: "cls", a class token that the mask leaves alone (the paper's), or "mean" of the patches.
        qkv_bias, dropout, drop_path: drop_path is the same in every block.

    Another image size at run time interpolates the position embeddings and recomputes a Gaussian mixture mask.

    Raises ValueError for sizes that do not fit together, naming the argument.
    """

    family = "pit"
    hierarchical = True

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 32,
        patch_size: int | Sequence[int] | None = None,
        channels: int = 3,
        num_classes: int = 10,
        dim: int = 96,
        depth: Sequence[int] = (2, 6, 4),
        num_heads: int | Sequence[int] = (2, 4, 8),
        head_dim: int | None = None,
        mlp_ratio: float = 2.0,
        mask: str = "none",
        mode: str = "multiply",
        mask_options: dict[str, Any] | None = None,
        stem: str = "patch",
        position_std: float = 1.0,
        pool: str = "cls",
        qkv_bias: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(locals())
        one_of("pool", pool, POOLS)
        depths = per_stage(depth, "depth", example=(2, 6, 4))
        heads = per_stage(num_heads, "num_heads", stages=len(depths))
        if head_dim is None and dim % heads[0]:
            raise ValueError(f"dim must be a multiple of num_heads of the first stage, got {dim} and {heads[0]}")
        head_dim = head_dim or dim // heads[0]
        size = pair(image_size, "image_size")
        patch = choose_patch(patch_size, size, cells=16)
        grid = patch_grid(size, patch)
        self.build_embedding(make_stem(stem, patch, channels, dim), grid, dim, dropout, class_token=pool == "cls")
        masking = Masking(mask, mode, mask_options, self.prefix_tokens, dropout)
        self.stages = nn.ModuleList()
        layer = 0
        for stage, count in enumerate(depths):
            width = dim * 2**stage
            blocks = []
            for _ in range(count):
                place = layer / max(1, sum(depths) - 1)
                attention = masking.attention(width, heads[stage], grid, place, head_dim=head_dim, qkv_bias=qkv_bias)
                blocks.append(Block(attention, width, mlp_ratio, dropout, drop_path))
                layer += 1
            last = stage == len(depths) - 1
            reduction = None if last else TokenPooling(width, self.prefix_tokens)
            self.stages.append(Stage(blocks, reduction))
            grid = grid if reduction is None else reduction.next_grid(grid)
        self.build_head(dim * 2 ** (len(depths) - 1), num_classes)

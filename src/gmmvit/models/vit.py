"""ViT: patches, pre-norm blocks, one head. Letters: B batch, N patches, T tokens, C channels.

Source: Dosovitskiy et al., arXiv 2010.11929, at the sizes that arXiv 2309.05375 trains on small images.
"""

from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.layers import (
    MLP,
    DropPath,
    MaskedAttention,
    PatchEmbedding,
    init_weights,
    pair,
    patch_grid,
    resample_position,
)
from gmmvit.masks import create_mask

POOLS = ("mean", "cls")


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, attention: MaskedAttention, dim: int, mlp_ratio: float, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, round(dim * mlp_ratio), dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """Vision transformer with a mask in every attention layer.

    Args:
        image_size: int or (height, width) in pixels, a multiple of the patch.
        patch_size: int or (height, width); an eighth of the image by default, which makes 8 x 8 patches.
        channels, num_classes: of the images; of the head.
        dim, depth, num_heads, head_dim, mlp_ratio: sizes; the defaults are the paper's (2.7 M parameters).
        mask: "none", "elm" or "gmm"; mode: "multiply", "log" or "post"; mask_options: further arguments of
            `GaussianMixtureMask` or `ElementwiseMask`.
        pool: "mean" of the patches or "cls", a class token that is read at the end.
        qkv_bias, dropout, drop_path: drop_path is the same in every block, as in the paper's code.

    Input [B, channels, height, width], normalised; output logits [B, num_classes]. Another image size at run time
    interpolates the position embeddings and recomputes a Gaussian mixture mask.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 32,
        patch_size: int | tuple[int, int] | None = None,
        channels: int = 3,
        num_classes: int = 10,
        dim: int = 192,
        depth: int = 9,
        num_heads: int = 12,
        head_dim: int | None = None,
        mlp_ratio: float = 2.0,
        mask: str = "none",
        mode: str = "multiply",
        mask_options: dict[str, Any] | None = None,
        pool: str = "mean",
        qkv_bias: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        image_size = pair(image_size, "image_size")
        patch_size = pair(patch_size or max(1, min(image_size) // 8), "patch_size")
        if pool not in POOLS:
            raise ValueError(f"pool must be one of {list(POOLS)}, got {pool!r}")
        self.grid = patch_grid(image_size, patch_size)
        self.prefix_tokens = 1 if pool == "cls" else 0
        self.patch_embed = PatchEmbedding(patch_size, channels, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if pool == "cls" else None
        self.pos_embed = nn.Parameter(torch.empty(1, self.prefix_tokens + self.grid[0] * self.grid[1], dim))
        self.dropout = nn.Dropout(dropout)

        def attention(layer: int) -> MaskedAttention:
            place = layer / max(1, depth - 1)
            gmm = create_mask(mask, self.grid, num_heads, mode=mode, depth=place, **(mask_options or {}))
            return MaskedAttention(
                dim,
                num_heads,
                head_dim=head_dim,
                mask=gmm,
                mode=mode,
                prefix_tokens=self.prefix_tokens,
                qkv_bias=qkv_bias,
                dropout=dropout,
            )

        self.blocks = nn.ModuleList(Block(attention(i), dim, mlp_ratio, dropout, drop_path) for i in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self.apply(init_weights)
        for token in (self.cls_token, self.pos_embed):
            if token is not None:
                nn.init.normal_(token)

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens after the last block, prefix first: [B, T, dim]."""
        grid = self.patch_embed.grid(images)
        x = self.patch_embed(images)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        x = self.dropout(x + resample_position(self.pos_embed, self.grid, grid, self.prefix_tokens))
        for block in self.blocks:
            x = block(x, grid)
        return x

    def forward_head(self, x: Tensor) -> Tensor:
        """Tokens [B, T, dim] -> logits [B, num_classes]: pool, norm, linear, in the original's order."""
        pooled = x.mean(1) if self.cls_token is None else x[:, 0]
        return self.head(self.norm(pooled))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

"""Swin: attention in shifted windows, each window a grid of its own, in stages of halved resolution.

Letters: B batch, N patches, W windows per image, T patches per window, H heads, C channels.

Source: Liu et al., arXiv 2103.14030, at the size that arXiv 2309.05375 trains on small images.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.attention import OffsetTable, dense_mask
from gmmvit.checks import pair, per_stage
from gmmvit.models.base import Stage, VisionTransformer
from gmmvit.models.layers import Block, Grid, MaskedAttention, Masking, choose_patch, patch_grid
from gmmvit.models.stem import make_stem


class WindowAttention(MaskedAttention):
    """Masked attention within windows of the patch grid, with a learned bias for each offset in a window.

    Args:
        window: (rows, cols) of patches; the mask belongs to this grid.
        shift: (rows, cols) by which the windows move, cyclically; opposite sides do not see each other.
        image_grid: grid of the whole image at construction.

    Other arguments as in `MaskedAttention`.
    """

    shift_bias: Tensor | None

    def __init__(
        self, dim: int, num_heads: int, *, window: Grid, shift: tuple[int, int], image_grid: Grid, **options: Any
    ) -> None:
        super().__init__(dim, num_heads, **options)
        self.window, self.shift, self.image_grid = window, shift, image_grid
        self.relative_position_bias = nn.Parameter(torch.empty(num_heads, 2 * window[0] - 1, 2 * window[1] - 1))
        nn.init.trunc_normal_(self.relative_position_bias, std=0.02)
        shifted = shift_bias(image_grid, window, shift) if any(shift) else None
        self.register_buffer("shift_bias", shifted, persistent=False)

    def forward(self, x: Tensor, grid: Grid | None = None, bias: Tensor | None = None, **made: Tensor) -> Tensor:
        """[B, N, dim] -> [B, N, dim]; `grid`: of the whole image; `bias`: None, since the layer has its own."""
        if bias is not None:
            raise ValueError("WindowAttention computes its own bias, got another")
        grid = self.image_grid if grid is None else grid
        windows = self._split(x, grid)  # [B*W, T, C]
        out = super().forward(windows, self.window, self._bias(grid), **made)
        return self._join(out, grid)

    def _bias(self, grid: Grid) -> Tensor:
        relative = dense_mask(OffsetTable(self.relative_position_bias, self.window))  # [H, T, T]
        if self.shift_bias is None:
            return relative
        known = grid == self.image_grid
        shifted = self.shift_bias if known else shift_bias(grid, self.window, self.shift).to(relative)
        return relative + shifted  # [W, H, T, T]

    def _split(self, x: Tensor, grid: Grid) -> Tensor:
        (w1, w2), (s1, s2) = self.window, self.shift
        if grid[0] % w1 or grid[1] % w2:
            raise ValueError(f"a grid of {grid[0]} x {grid[1]} patches is not a multiple of the windows of {w1} x {w2}")
        x = x.unflatten(1, grid)
        if s1 or s2:
            x = x.roll((-s1, -s2), (1, 2))
        x = x.unflatten(2, (-1, w2)).unflatten(1, (-1, w1)).transpose(2, 3)  # [B, rows/w1, cols/w2, w1, w2, C]
        return x.flatten(3, 4).flatten(0, 2)

    def _join(self, x: Tensor, grid: Grid) -> Tensor:
        (w1, w2), (s1, s2) = self.window, self.shift
        x = x.unflatten(1, (w1, w2)).unflatten(0, (-1, grid[0] // w1, grid[1] // w2)).transpose(2, 3)
        x = x.flatten(3, 4).flatten(1, 2)  # [B, rows, cols, C]
        if s1 or s2:
            x = x.roll((s1, s2), (1, 2))
        return x.flatten(1, 2)


def shift_bias(grid: Grid, window: Grid, shift: tuple[int, int]) -> Tensor:
    """Bias that keeps the regions of a cyclically shifted grid apart: 0 or -inf, float32 [W, 1, T, T]."""
    regions = []
    for side, w, s in zip(grid, window, shift, strict=True):
        position = torch.arange(side)
        inside = (position >= side - w).long() + (position >= side - s).long()
        regions.append(inside if s else torch.zeros_like(position))
    region = (3 * regions[0].unsqueeze(1) + regions[1]).unflatten(1, (-1, window[1])).unflatten(0, (-1, window[0]))
    region = region.transpose(1, 2).flatten(2).flatten(0, 1)  # [W, T]
    apart = region.unsqueeze(1) != region.unsqueeze(2)
    return torch.zeros(apart.shape).masked_fill(apart, float("-inf")).unsqueeze(1)


class PatchMerging(nn.Module):
    """Joins 2 x 2 patches and halves their channels: [B, N, C] -> [B, N / 4, 2 C]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.proj = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        x = x.unflatten(1, (grid[0] // 2, 2, grid[1] // 2, 2))
        x = x.permute(0, 1, 3, 4, 2, 5)  # within the four, columns vary slower than rows
        return self.proj(self.norm(x.flatten(3).flatten(1, 2)))

    def next_grid(self, grid: Grid) -> Grid:
        """Half the rows and columns."""
        return grid[0] // 2, grid[1] // 2


def side_fits(side: int, stages: int, window: int) -> bool:
    """Whether a side of the first grid can be halved for every stage and cut into windows in each."""
    sides = [side // 2**stage for stage in range(stages)]
    return side % 2 ** (stages - 1) == 0 and all(s > 0 and (s <= window or s % window == 0) for s in sides)


def _checked(size: tuple[int, int], patch: tuple[int, int], stages: int, window: int) -> Grid:
    """The first grid; raises ValueError, with the nearest image size, if patch, stages or windows do not allow it."""
    nearest = []
    for side, p in zip(size, patch, strict=True):
        allowed = [
            p * cells for cells in range(1, 2 * side // p + 2**stages * window) if side_fits(cells, stages, window)
        ]
        nearest.append(min(allowed, key=lambda a: abs(a - side)))
    if tuple(nearest) != size:
        raise ValueError(
            f"image_size {size[0]} x {size[1]} does not fit patches of {patch[0]} x {patch[1]}, {stages} stages and "
            f"windows of {window}; the nearest image size that does: {nearest[0]} x {nearest[1]}"
        )
    return patch_grid(size, patch)


class Swin(VisionTransformer):
    """Shifted-window transformer: the mask weighs the logits of every window before the relative position bias.

    Args:
        image_size: int or (height, width) in pixels; every stage's grid must halve and divide into windows.
        patch_size: int or (height, width); about a sixteenth of the image by default.
        channels, num_classes: of the images; of the head.
        dim: channels of the first stage; they double from stage to stage.
        depth, num_heads: a number for each stage; num_heads also one for all.
        mlp_ratio: hidden channels of the MLP over its own.
        window_size: side of the windows in patches; a stage with a smaller grid has one window and no shift.
        mask, mode, mask_options: as in `ViT`; the mask's grid is the window.
        stem: "patch" (linear, the paper's) or "conv" (`ConvStem`: small overlapping convolutions to the same grid).
        qkv_bias, dropout, drop_path: drop_path grows from 0 in the first block to this value in the last.

    The head reads the mean of the normed patches. Another image size at run time interpolates the position embeddings;
    its grids must divide into the windows of construction.

    Raises ValueError for sizes that do not fit together, naming the argument.
    """

    family = "swin"
    hierarchical = True
    norm_before_pool = True

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 32,
        patch_size: int | Sequence[int] | None = None,
        channels: int = 3,
        num_classes: int = 10,
        dim: int = 96,
        depth: Sequence[int] = (2, 6, 4),
        num_heads: int | Sequence[int] = (3, 6, 12),
        window_size: int = 4,
        mlp_ratio: float = 2.0,
        mask: str = "none",
        mode: str = "multiply",
        mask_options: dict[str, Any] | None = None,
        stem: str = "patch",
        qkv_bias: bool = True,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(locals())
        depths = per_stage(depth, "depth", example=(2, 6, 4))
        heads = per_stage(num_heads, "num_heads", stages=len(depths))
        size = pair(image_size, "image_size")
        patch = choose_patch(
            patch_size, size, 16, lambda grid: all(side_fits(side, len(depths), window_size) for side in grid)
        )
        grid = _checked(size, patch, len(depths), window_size)
        self.build_embedding(make_stem(stem, patch, channels, dim, norm=True), grid, dim, dropout, class_token=False)
        masking = Masking(mask, mode, mask_options, dropout=dropout)

        def block(layer: int, stage: int, index: int) -> Block:
            width, grid = dim * 2**stage, (self.grid[0] // 2**stage, self.grid[1] // 2**stage)
            window = min(window_size, grid[0]), min(window_size, grid[1])
            shift = tuple(w // 2 if index % 2 and w < side else 0 for w, side in zip(window, grid, strict=True))
            place = layer / max(1, sum(depths) - 1)
            attention = masking.attention(
                width,
                heads[stage],
                window,
                place,
                WindowAttention,
                window=window,
                shift=shift,
                image_grid=grid,
                qkv_bias=qkv_bias,
            )
            return Block(attention, width, mlp_ratio, dropout, drop_path * place)

        self.stages = nn.ModuleList()
        for stage, count in enumerate(depths):
            blocks = [block(sum(depths[:stage]) + index, stage, index) for index in range(count)]
            last = stage == len(depths) - 1
            self.stages.append(Stage(blocks, None if last else PatchMerging(dim * 2**stage)))
        self.build_head(dim * 2 ** (len(depths) - 1), num_classes)

    @staticmethod
    def init_layer(module: nn.Module) -> None:
        """torch's own initialisation stays, as in the paper's code."""

    @torch.no_grad()
    def init_tokens(self) -> None:
        """Position embeddings: truncated normal of standard deviation 0.02."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

"""Blocks that the families are built from: masked attention, MLP, the block itself, patch embedding, drop path.

Letters: B batch, T tokens (prefix first), N patches, H heads, D head width, C channels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.attention import MODES, gmm_attention, gmm_attention_packed
from gmmvit.checks import above_zero, boolean, fraction, integer, one_of, pair, real
from gmmvit.masks import Mask, check_mask_options, create_mask
from gmmvit.text import short

Grid = tuple[int, int]  # (rows, cols) in patches
QKV = Tensor | tuple[Tensor, Tensor, Tensor]  # [B, T, 3, H, D], or each [B, H, T, D]


class MaskedAttention(nn.Module):
    """Multi-head self-attention with logits weighted by a mask over the patch grid.

    Args:
        dim: channels in and out.
        num_heads: heads, H.
        head_dim: D; dim // num_heads by default.
        mask: module that returns what `gmm_attention` takes as its mask for a grid, or None.
        mode: "multiply", "log" or "post".
        prefix_tokens: leading tokens that the mask leaves alone.
        qkv_bias: whether the first projection has a bias.
        out_dim: output width, `dim` by default.
        scale: factor of the scores, D ** -0.5 by default.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        mask: nn.Module | None = None,
        mode: str = "multiply",
        prefix_tokens: int = 0,
        qkv_bias: bool = False,
        out_dim: int | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        integer("dim", dim)
        integer("num_heads", num_heads)
        if head_dim is not None:
            integer("head_dim", head_dim)
        elif dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got dim={dim} and num_heads={num_heads}")
        if out_dim is not None:
            integer("out_dim", out_dim)
        if scale is not None:
            real("scale", scale)
        integer("prefix_tokens", prefix_tokens, 0)
        fraction("dropout", dropout)
        boolean("qkv_bias", qkv_bias)
        one_of("mode", mode, MODES)
        if mask is not None and not isinstance(mask, Mask):
            raise TypeError(f"mask must be a mask such as gmmvit.GaussianMixtureMask, or None, got {short(mask)}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads if head_dim is None else head_dim
        self.scale, self.mode, self.prefix_tokens = scale, mode, prefix_tokens
        inner = num_heads * self.head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=qkv_bias)
        self.mask = mask
        self.proj = nn.Linear(inner, dim if out_dim is None else out_dim)
        self.dropout = nn.Dropout(dropout)

    def project(self, x: Tensor) -> Tensor:
        """q, k, v of [B, T, dim], packed: [B, T, 3, H, D]."""
        return self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))

    def attend(self, qkv: QKV, grid: Grid | None, bias: Tensor | None = None, **made: Tensor) -> Tensor:
        """q, k, v packed as `project` returns them, which saves a copy of the gradient, or apart -> [B, H, T, D]."""
        mask = None if self.mask is None else self.mask(grid, **made)
        options: Any = {"scale": self.scale, "bias": bias, "prefix_tokens": self.prefix_tokens, "mode": self.mode}
        if isinstance(qkv, Tensor):
            return gmm_attention_packed(qkv, mask, **options)
        return gmm_attention(*qkv, mask, **options)

    def merge(self, x: Tensor) -> Tensor:
        """Joins and projects the heads: [B, H, T, D] -> [B, T, out_dim]."""
        return self.dropout(self.proj(x.transpose(1, 2).flatten(2)))

    def forward(self, x: Tensor, grid: Grid | None = None, bias: Tensor | None = None, **made: Tensor) -> Tensor:
        """[B, T, dim] -> [B, T, out_dim]; `grid`: of the patches, if not that of construction; `bias`: as in
        `gmm_attention`; `made`: the mask's `table`, if already computed."""
        return self.merge(self.attend(self.project(x), grid, bias, **made))


@dataclass(frozen=True)
class Masking:
    """What the attention layers of one model share: mask by name with its options, mode, prefix tokens, dropout."""

    mask: str = "none"
    mode: str = "multiply"
    options: dict[str, Any] | None = None
    prefix_tokens: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_mask_options(self.mask, self.options or {})

    def attention(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        place: float,
        kind: Callable[..., MaskedAttention] = MaskedAttention,
        **sizes: Any,
    ) -> MaskedAttention:
        """An attention layer of class `kind` with a mask over `grid`; `place` in the network: 0 first to 1 last."""
        mask = create_mask(self.mask, grid, num_heads, mode=self.mode, depth=place, **(self.options or {}))
        return kind(
            dim, num_heads, mask=mask, mode=self.mode, prefix_tokens=self.prefix_tokens, dropout=self.dropout, **sizes
        )


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with `layer_scale` each branch has a learned factor per channel
    that starts at that value (Touvron et al., arXiv 2103.17239)."""

    def __init__(
        self,
        attention: nn.Module,
        dim: int,
        mlp_ratio: float,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        above_zero("mlp_ratio", mlp_ratio)
        hidden = round(dim * mlp_ratio)
        if hidden < 1:
            raise ValueError(f"mlp_ratio must leave at least one hidden channel of dim={dim}, got {mlp_ratio}")
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, hidden, dropout)
        self.drop_path = DropPath(drop_path)
        self.scale1 = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
        self.scale2 = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, x: Tensor, context: Any, **made: Tensor) -> Tensor:
        """[B, T, dim] -> [B, T, dim]; `context` (the grid) and `made` are for the attention."""
        branch = self.attn(self.norm1(x), context, **made)
        x = x + self.drop_path(branch if self.scale1 is None else branch * self.scale1)
        branch = self.mlp(self.norm2(x))
        return x + self.drop_path(branch if self.scale2 is None else branch * self.scale2)

    def next_grid(self, grid: Grid) -> Grid:
        """The grid of the output."""
        return grid


class MLP(nn.Sequential):
    """Linear, GELU, linear: [..., dim] -> [..., dim]."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop2 = nn.Dropout(dropout)


class DropPath(nn.Module):
    """Drops the whole branch of a sample with probability `p` in training and scales the others by 1 / (1 - p).

    Source: Huang et al., "Deep networks with stochastic depth", arXiv 1603.09382.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        fraction("drop_path", p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0 or not self.training:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.p
        return x * (keep / (1 - self.p)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class PatchEmbedding(nn.Module):
    """Cuts images into patches and projects each: [B, C, rows * p1, cols * p2] -> [B, rows * cols, dim].

    A patch is flattened in the order (row, column, channel). `norm` adds a layer norm after the projection.
    """

    def __init__(self, patch_size: tuple[int, int], channels: int, dim: int, norm: bool = False) -> None:
        super().__init__()
        integer("channels", channels)
        integer("dim", dim)
        self.patch_size, self.channels = patch_size, channels
        self.proj = nn.Linear(patch_size[0] * patch_size[1] * channels, dim)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def grid(self, images: Tensor) -> Grid:
        """(rows, cols) of patches in `images`.

        Raises ValueError if the channels or the size do not fit, TypeError for integer pixels.
        """
        check_images(images, self.channels)
        return patch_grid((images.shape[2], images.shape[3]), self.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        rows, cols = self.grid(images)
        p1, p2 = self.patch_size
        x = images.unflatten(3, (cols, p2)).unflatten(2, (rows, p1))  # [B, C, rows, p1, cols, p2]
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(images.shape[0], rows * cols, p1 * p2 * self.channels)
        return self.norm(self.proj(x))


def check_images(images: Tensor, channels: int) -> None:
    """Raises ValueError unless `images` is [B, channels, height, width], TypeError unless it is floating point."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor [batch, {channels}, height, width], got {type(images).__name__}")
    if images.dim() != 4 or images.shape[1] != channels:
        raise ValueError(f"images must be [batch, {channels}, height, width], got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(
            f"images must be floating point and normalised (see gmmvit.augment.normalize), got {images.dtype}"
        )


def patch_grid(image_size: tuple[int, int], patch_size: tuple[int, int]) -> Grid:
    """(rows, cols) of patches.

    Raises ValueError, with the nearest size that fits, unless the image is a multiple of the patch.
    """
    (height, width), (p1, p2) = image_size, patch_size
    if height % p1 or width % p2:
        nearest = tuple(max(p, round(side / p) * p) for side, p in zip(image_size, patch_size, strict=True))
        raise ValueError(
            f"image size {height} x {width} is not a multiple of the patch size {p1} x {p2}; "
            f"the nearest image size that is: {nearest[0]} x {nearest[1]}"
        )
    return height // p1, width // p2


def choose_patch(
    patch_size: int | Sequence[int] | None,
    image_size: tuple[int, int],
    cells: int,
    fits: Callable[[Grid], bool] = lambda grid: True,
) -> tuple[int, int]:
    """The given patch size; for None, a square one with about `cells` patches on the shorter side.

    Its side is the divisor of both image sides nearest to side / cells, at most a factor of 2 away, whose grid `fits`;
    if there is none, side / cells, which the check of the grid then refuses.
    """
    if patch_size is not None:
        return pair(patch_size, "patch_size")
    target = max(1.0, min(image_size) / cells)
    height, width = image_size
    divisors = [p for p in range(math.ceil(target / 2), math.floor(target * 2) + 1) if not (height % p or width % p)]
    fitting = [p for p in divisors if fits((height // p, width // p))]
    best = min(fitting or divisors or [round(target)], key=lambda p: abs(math.log(p / target)))
    return best, best


def init_weights(module: nn.Module) -> None:
    """Normal Xavier weights and zero biases for linear layers and convolutions, as in the original; for `apply`."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def resample_position(position: Tensor, old: Grid, new: Grid, prefix_tokens: int = 0) -> Tensor:
    """Position embeddings [1, prefix + N, dim] of one grid, interpolated (bicubic) to another; the prefix stays."""
    if old == new:
        return position
    prefix, patches = position[:, :prefix_tokens], position[:, prefix_tokens:]
    wide = patches.to(torch.promote_types(patches.dtype, torch.float32))
    image = wide.unflatten(1, old).permute(0, 3, 1, 2)
    image = nn.functional.interpolate(image, new, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([prefix, image.flatten(2).transpose(1, 2).to(position.dtype)], 1)

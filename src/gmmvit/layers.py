"""Blocks that the families are built from: masked attention, MLP, patch embedding, drop path.

Letters: B batch, T tokens (prefix first), N patches, H heads, D head width, C channels.
"""

import torch
from torch import Tensor, nn

from gmmvit.attention import gmm_attention


class MaskedAttention(nn.Module):
    """Multi-head self-attention whose logits a mask over the patch grid weighs.

    Args:
        dim: channels in and out.
        num_heads: H.
        head_dim: D; dim // num_heads by default.
        mask: module that returns what `gmm_attention` takes as its mask for a grid, or None.
        mode: "multiply", "log" or "post".
        prefix_tokens: leading tokens that the mask leaves alone.
        qkv_bias, out_dim: bias of the first projection; width that comes out, `dim` by default.
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
        if head_dim is None and dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got dim={dim} and num_heads={num_heads}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads if head_dim is None else head_dim
        self.scale, self.mode, self.prefix_tokens = scale, mode, prefix_tokens
        inner = num_heads * self.head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=qkv_bias)
        self.mask = mask
        self.proj = nn.Linear(inner, dim if out_dim is None else out_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None, bias: Tensor | None = None) -> Tensor:
        """[B, T, dim] -> [B, T, out_dim]; `grid` of the patches if it is not the one of construction, `bias` as in
        `gmm_attention`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if self.mask is None else self.mask(grid)
        x = gmm_attention(q, k, v, mask, scale=self.scale, bias=bias, prefix_tokens=self.prefix_tokens, mode=self.mode)
        return self.dropout(self.proj(x.transpose(1, 2).flatten(2)))


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
        if not 0 <= p < 1:
            raise ValueError(f"drop_path must lie in [0, 1), got {p}")
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

    A patch is flattened in the order (row, column, channel).
    """

    def __init__(self, patch_size: tuple[int, int], channels: int, dim: int) -> None:
        super().__init__()
        self.patch_size, self.channels = patch_size, channels
        self.proj = nn.Linear(patch_size[0] * patch_size[1] * channels, dim)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """(rows, cols) of patches in `images`.

        Raises ValueError where the channels or the size do not fit.
        """
        if images.dim() != 4 or images.shape[1] != self.channels:
            raise ValueError(f"images must be [batch, {self.channels}, height, width], got {tuple(images.shape)}")
        return patch_grid((images.shape[2], images.shape[3]), self.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        rows, cols = self.grid(images)
        p1, p2 = self.patch_size
        x = images.unflatten(3, (cols, p2)).unflatten(2, (rows, p1))  # [B, C, rows, p1, cols, p2]
        return self.proj(x.permute(0, 2, 4, 3, 5, 1).reshape(images.shape[0], rows * cols, -1))


def pair(value: int | tuple[int, int] | list[int], name: str) -> tuple[int, int]:
    """(height, width) of an int or a pair of ints.

    Raises ValueError that names the argument.
    """
    sides = (value, value) if isinstance(value, int) else tuple(value)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"{name} must be a positive int or a pair (height, width) of them, got {value!r}")
    return sides


def patch_grid(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """(rows, cols) of patches.

    Raises ValueError where the image is not a multiple of the patch, with the nearest sizes that are.
    """
    (height, width), (p1, p2) = image_size, patch_size
    if height % p1 or width % p2:
        nearest = tuple(max(p, round(side / p) * p) for side, p in zip(image_size, patch_size, strict=True))
        raise ValueError(
            f"image size {height} x {width} is not a multiple of the patch size {p1} x {p2}; "
            f"the nearest image size that is: {nearest[0]} x {nearest[1]}"
        )
    return height // p1, width // p2


def init_weights(module: nn.Module) -> None:
    """Normal Xavier weights and zero biases for linear layers and convolutions, as the original; for `Module.apply`."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def resample_position(position: Tensor, old: tuple[int, int], new: tuple[int, int], prefix_tokens: int = 0) -> Tensor:
    """Position embeddings [1, prefix + N, dim] of one grid, interpolated (bicubic) to another; the prefix stays."""
    if old == new:
        return position
    prefix, patches = position[:, :prefix_tokens], position[:, prefix_tokens:]
    image = patches.float().unflatten(1, old).permute(0, 3, 1, 2)
    image = nn.functional.interpolate(image, new, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([prefix, image.flatten(2).transpose(1, 2).to(position.dtype)], 1)

"""CaiT: talking heads over the patches, then a class token that reads them.

Letters: B batch, N patches, H heads, D head width.

Source: Touvron et al., arXiv 2103.17239, at the size that arXiv 2309.05375 trains on small images.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gmmvit.attention.reference import attention_weights, unpack
from gmmvit.checks import pair
from gmmvit.models.base import VisionTransformer
from gmmvit.models.layers import QKV, Block, Grid, MaskedAttention, Masking, choose_patch, patch_grid
from gmmvit.models.stem import make_stem


class TalkingHeads(nn.Module):
    """Attention whose heads are mixed linearly before and after the softmax (Shazeer et al., arXiv 2003.02436)."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.randn(num_heads, num_heads))
        self.after = nn.Parameter(torch.randn(num_heads, num_heads))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, mode: str = "multiply") -> Tensor:
        """q [B, H, Q, D], k and v [B, H, N, D], dense mask [H, Q, N], applied before the mixing -> [B, H, Q, D]."""
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).to(wide)
        mask = None if mask is None else mask.to(wide)

        def mixed_softmax(logits: Tensor) -> Tensor:
            return torch.einsum("bhij,hg->bgij", logits, self.before.to(logits.dtype)).softmax(-1)

        weights = attention_weights(scores, mask, mode=mode, softmax=mixed_softmax)
        weights = torch.einsum("bhij,hg->bgij", weights, self.after.to(weights.dtype))
        return weights.to(v.dtype) @ v


class TalkingHeadsAttention(MaskedAttention):
    """Masked self-attention of the patches with talking heads; arguments of `MaskedAttention`."""

    def __init__(self, dim: int, num_heads: int, **options: Any) -> None:
        super().__init__(dim, num_heads, **options)
        self.talk = TalkingHeads(num_heads)

    def attend(self, qkv: QKV, grid: Grid | None, bias: Tensor | None = None, **made: Tensor) -> Tensor:
        q, k, v = unpack(qkv) if isinstance(qkv, Tensor) else qkv
        mask = None if self.mask is None else self.mask.dense(grid, **made)
        return self.talk(q, k, v, mask, self.mode)


class ClassAttention(nn.Module):
    """The class token [B, 1, dim] reads the patches [B, N, dim], which stay unchanged: -> [B, 1, dim]. No mask: the
    token has no place on the grid."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_dim
        self.q = nn.Linear(dim, inner, bias=False)
        self.kv = nn.Linear(dim, 2 * inner, bias=False)
        self.talk = TalkingHeads(num_heads)
        self.proj = nn.Linear(inner, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, token: Tensor, patches: Tensor) -> Tensor:
        q = self.q(token).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(patches).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.dropout(self.proj(self.talk(q, k, v).transpose(1, 2).flatten(2)))


def layer_scale(layer: int) -> float:
    """Initial factor of the branches in a layer, counted from 0; smaller in deep ones (arXiv 2103.17239, section 2)."""
    return 0.1 if layer < 18 else 1e-5 if layer < 24 else 1e-6


class CaiT(VisionTransformer):
    """Class-attention transformer: the mask is in the patch layers and weighs the logits before the heads are mixed.

    Args:
        image_size: int or (height, width) in pixels, a multiple of the patch.
        patch_size: int or (height, width); about an eighth of the image by default.
        channels, num_classes: of the images; of the head.
        dim, depth, class_depth, num_heads, head_dim, mlp_ratio: sizes; `depth` patch layers, `class_depth` layers of
            the class token. The defaults are the paper's 5.1 M parameters.
        mask, mode, mask_options: as in `ViT`; mode "post" weighs the softmax before the second mixing.
        position_std: initial standard deviation of the position embeddings; 1 by default (the paper's), 0.1 is better
            with the mask start "conv", which already directs each head.
        stem: "patch" (linear, the paper's) or "conv" (`ConvStem`: small overlapping convolutions to the same grid).
        dropout, drop_path: drop_path is the same in every block.

    The class layers do the pooling. Another image size at run time interpolates the position embeddings and
    recomputes a Gaussian mixture mask.

    Raises ValueError for sizes that do not fit together, naming the argument.
    """

    family = "cait"
    sizes: ClassVar = {"tiny": {}, "small": {"dim": 192, "mlp_ratio": 2.0}}
    cls_token: nn.Parameter

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 32,
        patch_size: int | Sequence[int] | None = None,
        channels: int = 3,
        num_classes: int = 10,
        dim: int = 108,
        depth: int = 24,
        class_depth: int = 2,
        num_heads: int = 4,
        head_dim: int | None = 64,
        mlp_ratio: float = 384 / 108,
        mask: str = "none",
        mode: str = "multiply",
        mask_options: dict[str, Any] | None = None,
        stem: str = "patch",
        position_std: float = 1.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(locals())
        size = pair(image_size, "image_size")
        patch = choose_patch(patch_size, size, cells=8)
        # The class token joins after the patch layers: it is not a prefix and has no position.
        self.build_embedding(make_stem(stem, patch, channels, dim), patch_grid(size, patch), dim, dropout, False)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        masking = Masking(mask, mode, mask_options, dropout=dropout)
        self.blocks = nn.ModuleList()
        for layer in range(depth):
            place = layer / max(1, depth - 1)
            attention = masking.attention(dim, num_heads, self.grid, place, TalkingHeadsAttention, head_dim=head_dim)
            self.blocks.append(Block(attention, dim, mlp_ratio, dropout, drop_path, layer_scale(layer)))
        self.class_blocks = nn.ModuleList()
        for layer in range(class_depth):
            reader = ClassAttention(dim, num_heads, head_dim or dim // num_heads, dropout)
            self.class_blocks.append(Block(reader, dim, mlp_ratio, dropout, drop_path, layer_scale(layer)))
        self.build_head(dim, num_classes)

    def pool(self, x: Tensor) -> Tensor:
        token = self.cls_token.expand(x.shape[0], -1, -1)
        for block in self.class_blocks:
            token = self.run(block, token, x)
        return self.norm(token[:, 0])

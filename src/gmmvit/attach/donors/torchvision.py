"""Attentions of torchvision: its ViTs, which use `nn.MultiheadAttention`, and Swin.

Letters: B batch, T tokens, C channels, H heads, D head width, G windows an image.
"""

from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.attach.place import Grid
from gmmvit.attach.surgery import MaskedDonor, Tower


class MultiheadAttention(MaskedDonor):
    """`nn.MultiheadAttention` over patches: torchvision's ViTs, or any model whose grid the caller passes."""

    gmm_parts = frozenset({"out_proj"})
    gmm_rate = "dropout"

    @classmethod
    def gmm_refusal(cls, module: Any, ancestors: list[nn.Module]) -> str:
        parent = ancestors[-1] if ancestors else None
        if isinstance(parent, nn.TransformerEncoderLayer):
            return "nn.TransformerEncoderLayer bypasses its attention in eval mode"
        if isinstance(parent, nn.TransformerDecoderLayer):
            return "nn.TransformerDecoderLayer attends to more than patches"
        if any("PoolingHead" in type(module).__name__ for module in ancestors):
            return "pools the tokens: its queries are not patches"
        if not module._qkv_same_embed_dim or module.bias_k is not None or module.add_zero_attn:
            return "has keys of another width or added keys"
        return ""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if query is not key or key is not value:
            raise ValueError(
                "an attached nn.MultiheadAttention needs one tensor as query, key and value: choose layers= without it"
            )
        if key_padding_mask is not None or is_causal or query.dim() != 3:
            raise ValueError("an attached nn.MultiheadAttention takes batches without key_padding_mask and is_causal")
        x = query if self.batch_first else query.transpose(0, 1)
        qkv = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = ~attn_mask  # here True means ignored
            if attn_mask.dim() == 3:
                attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        weights = None
        if need_weights:
            mask, drop = self.gmm_full(*self.gmm_now(q.shape[2])), self.gmm_dropout()
            out, weights = self.gmm_weighed(mask, q, k, v, attn_mask, dropout_p=drop)
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = self.gmm_attend(q, k, v, attn_mask)
        # Tokens first in memory as in the donor, so that a later dropout draws the same numbers.
        out = self.out_proj(out.permute(2, 0, 1, 3).flatten(2))
        return (out.transpose(0, 1) if self.batch_first else out), weights


class ShiftedWindowAttention(MaskedDonor):
    """swin: shifted windows of the padded feature map; a relative position bias after the mask."""

    gmm_parts = frozenset({"qkv", "proj"})

    @classmethod
    def gmm_window(cls, module: Any) -> Grid:
        return module.window_size[0], module.window_size[1]

    def gmm_project(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B*G, H, D] of windows [B*G, T, C]; q is scaled."""
        qkv = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return q * q.shape[-1] ** -0.5, k, v

    def forward(self, x: Tensor) -> Tensor:
        """[B, rows, cols, C] -> the same."""
        _, rows, cols, _ = x.shape
        high, wide = self.gmm_window(self)
        x = nn.functional.pad(x, (0, 0, 0, -cols % wide, 0, -rows % high))
        padded = (x.shape[1], x.shape[2])
        # The donor does not shift a window that covers the whole axis.
        shift = [0 if w >= p else s for s, w, p in zip(self.shift_size, (high, wide), padded, strict=True)]
        if any(shift):
            x = x.roll((-shift[0], -shift[1]), (1, 2))
        q, k, v = self.gmm_project(_windows(x, high, wide))
        bias = self.get_relative_position_bias()
        if any(shift):
            bias = bias + _window_mask(padded, (high, wide), shift, x).unsqueeze(1)
        drop = self.attention_dropout if self.training else 0.0
        out = self.gmm_attend(q, k, v, bias, scale=1.0, dropout_p=drop).transpose(1, 2).flatten(2)
        out = nn.functional.dropout(self.proj(out), self.dropout, self.training)
        out = _joined(out, padded, high, wide)
        if any(shift):
            out = out.roll((shift[0], shift[1]), (1, 2))
        return out[:, :rows, :cols].contiguous()


class ShiftedWindowAttentionV2(ShiftedWindowAttention):
    """swin_v2: cosine attention with a learned scale per head, keys without bias."""

    gmm_parts = frozenset({"qkv", "proj", "cpb_mlp"})

    def gmm_project(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bias = self.qkv.bias
        if bias is not None:
            q_bias, k_bias, v_bias = bias.chunk(3)
            bias = torch.cat((q_bias, torch.zeros_like(k_bias), v_bias))
        qkv = nn.functional.linear(windows, self.qkv.weight, bias)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scale = self.logit_scale.clamp(max=4.605170185988092).exp()  # log 100
        return nn.functional.normalize(q, dim=-1) * scale, nn.functional.normalize(k, dim=-1), v


class PartitionAttention(MaskedDonor):
    """maxvit: windows and the dilated grid, where one mask step is one dilation step."""

    gmm_parts = frozenset({"to_qkv", "merge"})

    @classmethod
    def gmm_heads(cls, module: Any) -> int:
        return module.n_heads

    @classmethod
    def gmm_window(cls, module: Any) -> Grid:
        return module.size, module.size

    def forward(self, x: Tensor) -> Tensor:
        """[B, G, T, C] -> the same."""
        qkv = self.to_qkv(x).flatten(0, 1).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        bias = self.get_relative_positional_bias()
        out = self.gmm_attend(q, k, v, bias, scale=self.scale_factor, dropout_p=0.0)
        return self.merge(out.transpose(1, 2).flatten(2).unflatten(0, x.shape[:2]))


def _windows(x: Tensor, high: int, wide: int) -> Tensor:
    """[B, rows, cols, C] -> [B*G, high*wide, C]."""
    return x.unflatten(2, (-1, wide)).unflatten(1, (-1, high)).transpose(2, 3).flatten(0, 2).flatten(1, 2)


def _joined(windows: Tensor, padded: tuple[int, int], high: int, wide: int) -> Tensor:
    """[B*G, high*wide, C] -> [B, rows, cols, C]."""
    down, right = padded[0] // high, padded[1] // wide
    x = windows.unflatten(1, (high, wide)).unflatten(0, (-1, down, right))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _window_mask(padded: tuple[int, int], window: tuple[int, int], shift: list[int], like: Tensor) -> Tensor:
    """[G, T, T]: -100 between tokens that the shift joined from opposite edges, else 0."""
    regions = []
    for size, width, step in zip(padded, window, shift, strict=True):
        at = torch.arange(size, device=like.device)
        # As in the donor, an unshifted axis is one region, because slice(-0, None) is the whole axis.
        regions.append((at >= size - width).long() + (at >= size - step).long() if step else torch.zeros_like(at))
    region = (3 * regions[0][:, None] + regions[1])[None, ..., None]
    region = _windows(region, *window).squeeze(-1)  # [G, T]
    return -100.0 * (region.unsqueeze(1) != region.unsqueeze(2)).to(like.dtype)


_SWIN = "torchvision.models.swin_transformer"
ATTENTIONS: dict[str, type[MaskedDonor]] = {
    "torch.nn.modules.activation.MultiheadAttention": MultiheadAttention,
    f"{_SWIN}.ShiftedWindowAttention": ShiftedWindowAttention,
    f"{_SWIN}.ShiftedWindowAttentionV2": ShiftedWindowAttentionV2,
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": PartitionAttention,
}
LEFT_ALONE: dict[str, str] = {}


def tower(ancestors: list[nn.Module]) -> Tower | None:
    """Where an attention's patches come from; `ancestors` run from the whole model down to its parent."""
    for model in reversed(ancestors):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        if kind == "torchvision.models.vision_transformer.VisionTransformer":
            stem: Any = model.conv_proj
            vit: Any = model
            side = vit.image_size // vit.patch_size
            return Tower(stem if isinstance(stem, nn.Conv2d) else stem.conv_last, (side, side), 1)
    return None

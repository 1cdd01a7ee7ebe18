"""Attentions of timm's hierarchical models with the mask: Swin 1, 2 and 2-CR, MaxViT, Twins, NesT, VOLO, LeViT,
TinyViT, ConViT. Inside a window the mask's grid is the window.

Letters: B batch, G windows an image, T tokens, C channels, H heads, D head width.
"""

import math
from typing import Any

from torch import Tensor, nn

from gmmvit.attach.donors.timm import TimmAttention, split_qkv, stage_grid
from gmmvit.attach.place import Grid
from gmmvit.attach.surgery import MaskedDonor
from gmmvit.attention.reference import Steps

_LOG_100 = math.log(100)  # cosine attention scales its logits by at most 100


class WindowAttention(TimmAttention):
    """swin: the relative position bias and the shifted-window mask are added after the mask."""

    gmm_parts = TimmAttention.gmm_parts | {"softmax"}

    @classmethod
    def gmm_window(cls, module: Any) -> Grid:
        return module.window_size[0], module.window_size[1]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B*G, T, C], mask [G, T, T] -> [B*G, T, C]."""
        bias = self._get_rel_pos_bias()
        return self.gmm_forward(x, bias if mask is None else bias + mask.unsqueeze(1))


class CosineWindowAttention(WindowAttention):
    """swinv2: cosine attention with a learned scale, a bias from a small network."""

    gmm_parts = WindowAttention.gmm_parts | {"cpb_mlp"}

    def gmm_bias(self) -> Tensor:
        """[1, H, T, T]."""
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)
        tokens = self.window_size[0] * self.window_size[1]
        bias = table[self.relative_position_index.view(-1)].view(1, tokens, tokens, -1)
        return 16 * bias.permute(0, 3, 1, 2).sigmoid()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B*G, T, C], mask [G, T, T] -> [B*G, T, C]."""
        q, k, v = split_qkv(self, x)
        scale = self.logit_scale.view(-1, 1, 1).clamp(max=_LOG_100).exp()
        bias = self.gmm_bias()
        bias = bias if mask is None else bias + mask.unsqueeze(1)
        q, k = nn.functional.normalize(q, dim=-1) * scale, nn.functional.normalize(k, dim=-1)
        out = self.gmm_attend(q, k, v, bias, scale=1.0).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out))


class CrWindowAttention(CosineWindowAttention):
    """swinv2_cr: as swinv2, with another small network for the bias."""

    gmm_parts = CosineWindowAttention.gmm_parts | {"meta_mlp"}

    @classmethod
    def gmm_refusal(cls, module: Any, ancestors: list[nn.Module]) -> str:
        return "computes its windows one at a time" if module.sequential_attn else ""

    def gmm_bias(self) -> Tensor:
        return self._relative_positional_encodings()


class PartitionAttention(TimmAttention):
    """maxvit, channels last: windows and the dilated grid, where one mask step is one dilation step; coatnet: the whole
    map of the stage."""

    gmm_parts = TimmAttention.gmm_parts | {"rel_pos"}

    @classmethod
    def gmm_refusal(cls, module: Any, ancestors: list[nn.Module]) -> str:
        block = ancestors[-1] if ancestors else None
        known = hasattr(block, "partition_size") or type(block).__name__ == "TransformerBlock2d"
        return "" if known else "is known to gmmvit only inside blocks of MaxViT and CoAtNet"

    @classmethod
    def gmm_window_at(cls, module: Any, ancestors: list[nn.Module]) -> Grid | None:
        block: Any = ancestors[-1] if ancestors else None
        if hasattr(block, "partition_size"):
            return block.partition_size[0], block.partition_size[1]
        rel_pos: Any = module.rel_pos
        return stage_grid(ancestors) if rel_pos is None else (rel_pos.window_size[0], rel_pos.window_size[1])

    def gmm_mixed(self, q: Tensor, k: Tensor, v: Tensor, shared_rel_pos: Tensor | None, grid: Grid) -> Tensor:
        bias = shared_rel_pos if self.rel_pos is None else self.rel_pos.get_bias()
        return self.gmm_attend(q, k, v, bias, grid=grid)

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        """[B*G, rows, cols, C] -> the same."""
        rows, cols = x.shape[1:3]
        qkv = self.qkv(x).flatten(1, 2)
        if self.head_first:
            q, k, v = qkv.unflatten(-1, (self.num_heads, -1)).transpose(1, 2).chunk(3, dim=3)
        else:
            q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).transpose(1, 3).unbind(2)
        out = self.gmm_mixed(q, k, v, shared_rel_pos, (rows, cols)).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out.unflatten(1, (rows, cols))))


class PartitionAttention2d(PartitionAttention):
    """maxvit, channels first."""

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        """[B*G, C, rows, cols] -> the same."""
        rows, cols = x.shape[2:4]
        qkv = self.qkv(x).flatten(2)
        if self.head_first:
            q, k, v = qkv.unflatten(1, (self.num_heads, -1)).transpose(2, 3).chunk(3, dim=3)
        else:
            q, k, v = qkv.unflatten(1, (3, self.num_heads, -1)).transpose(3, 4).unbind(1)
        out = self.gmm_mixed(q, k, v, shared_rel_pos, (rows, cols)).transpose(2, 3).flatten(1, 2)
        return self.proj_drop(self.proj(out.unflatten(2, (rows, cols))))


class LocalAttention(TimmAttention):
    """twins: windows of the padded map; the padding takes part, as in the donor."""

    @classmethod
    def gmm_window(cls, module: Any) -> Grid:
        return module.ws, module.ws

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, rows*cols, C] -> the same."""
        (rows, cols), side = size, self.ws
        x = nn.functional.pad(x.unflatten(1, (rows, cols)), (0, 0, 0, -cols % side, 0, -rows % side))
        x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)  # [B, down, right, side, side, C]
        down, right = x.shape[1:3]
        q, k, v = split_qkv(self, x, (3, 4))
        if self.gmm_unfused():  # weights [B, G, H, T, T] as in the donor
            q, k, v = (y.unflatten(0, (-1, down * right)) for y in (q, k, v))
            mask, drop = self.gmm_mask.dense((side, side)), self.gmm_dropout()
            out = self.gmm_attend_by(mask, q, k, v, scale=self.scale, dropout_p=drop).flatten(0, 1)
        else:
            out = self.gmm_attend(q, k, v)
        out = out.transpose(1, 2).flatten(2)
        out = out.unflatten(1, (side, side)).unflatten(0, (-1, down, right)).transpose(2, 3)
        out = out.flatten(3, 4).flatten(1, 2)[:, :rows, :cols].flatten(1, 2)
        return self.proj_drop(self.proj(out))


class BlockAttention(TimmAttention):
    """nest: square blocks of the map."""

    @classmethod
    def gmm_window_at(cls, module: Any, ancestors: list[nn.Module]) -> Grid | None:
        side = next((a.block_size for a in reversed(ancestors) if hasattr(a, "block_size")), None)
        return None if side is None else (side, side)  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """[B, G, T, C] -> the same."""
        side, drop = math.isqrt(x.shape[2]), self.gmm_dropout()
        q, k, v = (y.unflatten(0, x.shape[:2]) for y in split_qkv(self, x, (2,)))  # [B, G, H, T, D] each
        if drop or self.gmm_unfused():  # dropout and weights [B, H, G, T, T] as in the donor
            mask = self.gmm_mask.dense((side, side)).unsqueeze(1)
            q, k, v = (y.transpose(1, 2) for y in (q, k, v))
            out = self.gmm_attend_by(mask, q, k, v, dropout_p=drop).transpose(1, 2)
        else:
            out = self.gmm_attend(*(y.flatten(0, 1) for y in (q, k, v)), grid=(side, side)).unflatten(0, x.shape[:2])
        out = out.permute(0, 1, 3, 4, 2).flatten(3)  # in the donor's channels heads vary fastest
        return self.proj_drop(self.proj(out))


class MapAttention(TimmAttention):
    """volo: attention over a whole feature map, whose shape gives the grid."""

    @classmethod
    def gmm_window_at(cls, module: Any, ancestors: list[nn.Module]) -> Grid | None:
        position: Any = next((a.pos_embed for a in ancestors if hasattr(a, "pos_embed")), None)
        return None if position is None else (position.shape[1], position.shape[2])

    def forward(self, x: Tensor) -> Tensor:
        """[B, rows, cols, C] -> the same."""
        rows, cols = x.shape[1:3]
        out = self.gmm_attend(*split_qkv(self, x, (1, 2)), grid=(rows, cols)).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out.unflatten(1, (rows, cols))))


class BiasedAttention(MaskedDonor):
    """tiny_vit and levit: values wider than keys, a bias per distance."""

    gmm_parts = frozenset({"norm", "qkv", "proj"})

    @classmethod
    def gmm_window(cls, module: Any) -> Grid:
        return module.resolution[0], module.resolution[1]

    def gmm_weights(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        """Attention weights of q [B, H, Tq, D], k [B, H, Tk, D]. Avoids the donor's bias cache, which keeps a graph."""
        bias = self.attention_biases[:, self.attention_bias_idxs]
        return self.gmm_drop(self.gmm_softmax((q * self.scale) @ k.transpose(-2, -1), mask, bias))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C], or [B, C, rows, cols] in LeViT's convolutional form -> the same."""
        norm = getattr(self, "norm", None)
        conv = getattr(self, "use_conv", False)
        qkv = self.qkv(x if norm is None else norm(x))
        qkv = qkv.flatten(2).transpose(1, 2) if conv else qkv
        sizes = [self.key_dim, self.key_dim, self.val_dim]
        q, k, v = qkv.unflatten(-1, (self.num_heads, -1)).transpose(1, 2).split(sizes, dim=3)
        out = (self.gmm_weights(q, k, self.gmm_dense(self.gmm_window(self), q)) @ v).transpose(1, 2).flatten(2)
        # Channels first in memory as in the donor, so that a later dropout draws the same numbers.
        return self.proj(out.transpose(1, 2).contiguous().unflatten(2, x.shape[2:]) if conv else out)


class StridedAttention(BiasedAttention):
    """levit between stages: only every second row and column queries."""

    gmm_parts = frozenset({"kv", "q", "proj"})

    @classmethod
    def gmm_steps(cls, module: Any, ancestors: list[nn.Module]) -> Steps:
        return Steps(query=(module.stride, module.stride))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, Tq, C'], or maps [B, C, rows, cols] in the convolutional form."""
        kv, q, conv = self.kv(x), self.q(x), self.use_conv
        size = q.shape[2:]
        if conv:
            kv, q = kv.flatten(2).transpose(1, 2), q.flatten(2).transpose(1, 2)
        k, v = kv.unflatten(-1, (self.num_heads, -1)).transpose(1, 2).split([self.key_dim, self.val_dim], dim=3)
        q = q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        out = (self.gmm_weights(q, k, self.gmm_dense(self.gmm_window(self), q)) @ v).transpose(1, 2).flatten(2)
        return self.proj(out.transpose(1, 2).contiguous().unflatten(2, size) if conv else out)


class GatedPositional(MaskedDonor):
    """convit's first blocks: the mask multiplies the content logits; the positional half of the weights stays."""

    gmm_parts = frozenset({"qk", "v", "attn_drop", "proj", "pos_proj", "proj_drop"})

    @classmethod
    def gmm_prefix(cls, module: Any) -> int:
        return 0  # the class token joins after these blocks

    def get_attention(self, x: Tensor) -> Tensor:
        """[B, T, C] -> weights [B, H, T, T]; the donor's forward calls it."""
        q, k = self.qk(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mask = self.gmm_dense(self.gmm_grid(x.shape[1]), q)
        content = self.gmm_softmax((q @ k.transpose(-2, -1)) * self.scale, mask)
        position = self.pos_proj(self.rel_indices.expand(x.shape[0], -1, -1, -1)).permute(0, 3, 1, 2).softmax(-1)
        gate = self.gating_param.view(1, -1, 1, 1).sigmoid()
        weights = (1 - gate) * content + gate * position
        return self.gmm_drop(weights / weights.sum(-1, keepdim=True))


class SimpleAttention(TimmAttention):
    """convit's last blocks."""

    def forward(self, x: Tensor) -> Tensor:
        return self.gmm_forward(x)


_TIMM = "timm.models"
ATTENTIONS: dict[str, type[MaskedDonor]] = {
    f"{_TIMM}.swin_transformer.WindowAttention": WindowAttention,
    f"{_TIMM}.swin_transformer_v2.WindowAttention": CosineWindowAttention,
    f"{_TIMM}.swin_transformer_v2_cr.WindowMultiHeadAttention": CrWindowAttention,
    f"{_TIMM}.maxxvit.AttentionCl": PartitionAttention,
    f"{_TIMM}.maxxvit.Attention2d": PartitionAttention2d,
    f"{_TIMM}.twins.LocallyGroupedAttn": LocalAttention,
    f"{_TIMM}.nest.Attention": BlockAttention,
    f"{_TIMM}.volo.Attention": MapAttention,
    f"{_TIMM}.tiny_vit.Attention": BiasedAttention,
    f"{_TIMM}.levit.Attention": BiasedAttention,
    f"{_TIMM}.levit.AttentionDownsample": StridedAttention,
    f"{_TIMM}.convit.GPSA": GatedPositional,
    f"{_TIMM}.convit.MHSA": SimpleAttention,
}
LEFT_ALONE = {f"{_TIMM}.volo.OutlookAttention": "has no queries and keys: its weights come from one token each"}

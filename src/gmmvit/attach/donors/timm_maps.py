"""Attentions of timm's hybrid models with the mask: whole feature maps and windows whose shape gives the grid
(FastViT, Visformer, BoTNet, SAM, SAM 2, CAFormer, CSATv2, EfficientFormer and 2, DaViT, GCViT, PVT 2).

Letters: B batch, G windows an image, T tokens (q: queries), C channels, H heads, D head width.
"""

import itertools
import math
from typing import Any

from torch import Tensor, nn

from gmmvit.attach.donors.timm import TimmAttention, split_qkv, stage_grid
from gmmvit.attach.donors.timm_pooled import SubSampledAttention
from gmmvit.attach.donors.timm_windows import BiasedAttention
from gmmvit.attach.place import Grid
from gmmvit.attach.surgery import MaskedDonor, Tower
from gmmvit.attention.reference import EVERY_PATCH, Steps, attention_weights
from gmmvit.checks import pair


class DualAttention(MaskedDonor):
    """davit: windows of the padded map, no bias."""

    gmm_parts = frozenset({"qkv", "proj", "softmax"})
    gmm_rate = None

    @classmethod
    def gmm_window(cls, module: Any) -> Grid:
        return module.window_size[0], module.window_size[1]

    def forward(self, x: Tensor) -> Tensor:
        """[B*G, T, C] -> the same."""
        return self.proj(self.gmm_attend(*split_qkv(self, x), scale=self.scale).transpose(1, 2).flatten(2))


class GlobalQueryAttention(TimmAttention):
    """gcvit: windows; in every second attention all windows of an image share one query per position."""

    gmm_parts = TimmAttention.gmm_parts | {"rel_pos"}

    @classmethod
    def gmm_window(cls, module: Any) -> Grid:
        return module.window_size[0], module.window_size[1]

    def forward(self, x: Tensor, q_global: Tensor | None = None) -> Tensor:
        """[B*G, T, C], q_global [B, C, T] or a reshape of it -> [B*G, T, C]."""
        if not self.use_global or q_global is None:
            q, k, v = split_qkv(self, x)
        else:
            k, v = self.qkv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            q = q_global.repeat_interleave(len(x) // len(q_global), dim=0)
            q = q.reshape(len(x), x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)
        bias = self.rel_pos.get_bias()
        out = self.gmm_attend(q, k, v, bias, scale=self.scale).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out))


class _Map(TimmAttention):
    """A whole feature map; before the first image its grid is the stage's at the model's own image size."""

    @classmethod
    def gmm_window_at(cls, module: Any, ancestors: list[nn.Module]) -> Grid | None:
        return stage_grid(ancestors)


class TokensOfMap(_Map):
    """fastvit."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, rows, cols] -> the same."""
        size = (x.shape[2], x.shape[3])
        out = self.gmm_attend(*split_qkv(self, x.flatten(2).transpose(1, 2)), grid=size).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out)).transpose(1, 2).unflatten(2, size)


class ConvolvedMap(_Map):
    """visformer: projections by convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, rows, cols] -> the same."""
        size = (x.shape[2], x.shape[3])
        q, k, v = self.qkv(x).flatten(2).unflatten(1, (3, self.num_heads, -1)).permute(1, 0, 2, 4, 3).unbind(0)
        out = self.gmm_attend(q, k, v, scale=self.scale, grid=size).transpose(2, 3).flatten(1, 2).unflatten(2, size)
        return self.proj_drop(self.proj(out))


class BottleneckAttention(_Map):
    """botnet: the bias depends on relative positions and queries."""

    gmm_parts = frozenset({"qkv", "pos_embed", "pool"})

    @classmethod
    def gmm_window_at(cls, module: Any, ancestors: list[nn.Module]) -> Grid | None:
        return module.pos_embed.height, module.pos_embed.width

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, rows, cols] -> [B, C', rows, cols], or half of each side."""
        size = (x.shape[2], x.shape[3])
        parts = self.qkv(x).flatten(2).split([self.dim_out_qk, self.dim_out_qk, self.dim_out_v], dim=1)
        q, k, v = (y.unflatten(1, (self.num_heads, -1)).transpose(2, 3) for y in parts)
        bias = self.pos_embed(q.flatten(0, 1)).unflatten(0, (-1, self.num_heads))
        bias = bias * self.scale if self.scale_pos_embed else bias
        out = self.gmm_attend_by(self.gmm_dense(size, q), q, k, v, bias, scale=self.scale)  # values may be wider
        return self.pool(out.transpose(2, 3).flatten(1, 2).unflatten(2, size))


class SegmentAttention(_Map):
    """sam: whole maps and windows, channels last; a bias from relative positions and queries, or rotary embeddings."""

    gmm_parts = TimmAttention.gmm_parts | {"rope"}

    @classmethod
    def gmm_window_at(cls, module: Any, ancestors: list[nn.Module]) -> Grid | None:
        side = getattr(ancestors[-1], "window_size", 0) if ancestors else 0
        if side:
            return side, side
        embed: Any = next((a.patch_embed for a in ancestors if hasattr(a, "patch_embed")), None)
        return None if embed is None else (embed.grid_size[0], embed.grid_size[1])

    def forward(self, x: Tensor) -> Tensor:
        """[B*G, rows, cols, C] -> the same."""
        from timm.layers import apply_rot_embed_cat
        from timm.models.vision_transformer_sam import get_decomposed_rel_pos_bias

        size, bias = (x.shape[1], x.shape[2]), None
        q, k, v = split_qkv(self, x.flatten(1, 2))
        # In the donor's norms, too, windows and heads are on one axis.
        q, k = self.q_norm(q.flatten(0, 1)).view_as(q), self.k_norm(k.flatten(0, 1)).view_as(k)
        if self.use_rel_pos:
            bias = get_decomposed_rel_pos_bias(q.flatten(0, 1), self.rel_pos_h, self.rel_pos_w, size, size)
            bias = bias.unflatten(0, q.shape[:2])
        elif self.rope is not None:
            rope = self.rope.get_embed()
            q, k = (apply_rot_embed_cat(y, rope).type_as(v) for y in (q, k))
        out = self.gmm_attend(q, k, v, bias, scale=self.scale, grid=size).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out)).unflatten(1, size)

    def gmm_drop(self, weights: Tensor, dropout_p: float = 0.0) -> Tensor:
        """The donor's dropout has windows and heads on one axis."""
        weights = self.attn_drop(weights.flatten(0, 1)).reshape(weights.shape)
        if self.gmm_seen is not None:
            self.gmm_seen.append(weights)
        return weights


class MultiScaleMap(_Map):
    """sam2's Hiera: whole maps and windows, channels last; between stages queries are max-pooled 2 x 2."""

    gmm_parts = frozenset({"qkv", "proj", "q_pool"})
    gmm_rate = None

    @classmethod
    def gmm_window_at(cls, module: Any, ancestors: list[nn.Module]) -> Grid | None:
        block: Any = ancestors[-1] if ancestors else None
        if getattr(block, "is_windowed", False):
            return block.window_size[0], block.window_size[1]
        model: Any = next((a for a in ancestors if hasattr(a, "blocks")), None)
        size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
        if size is None:
            return None
        rows, cols = (-(-n // s) for n, s in zip(size[-2:], model.patch_embed.proj.stride, strict=True))
        for before in itertools.takewhile(lambda b: b is not block, model.blocks):
            rows, cols = (n // s for n, s in zip((rows, cols), before.q_stride or (1, 1), strict=True))
        return rows, cols

    @classmethod
    def gmm_refusal(cls, module: Any, ancestors: list[nn.Module]) -> str:
        pool = module.q_pool
        if pool is None or (isinstance(pool, nn.MaxPool2d) and pool.kernel_size == pool.stride and not pool.padding):
            return ""
        return "pools its queries by something other than the maximum of a square"

    @classmethod
    def gmm_steps(cls, module: Any, ancestors: list[nn.Module]) -> Steps:
        if module.q_pool is None:
            return EVERY_PATCH
        rows, cols = pair(module.q_pool.stride, "stride")
        return Steps(query=(rows, cols), shift=((rows - 1) / 2, (cols - 1) / 2))

    def forward(self, x: Tensor) -> Tensor:
        """[B*G, rows, cols, C] -> [B*G, rows', cols', C']."""
        size = (x.shape[1], x.shape[2])
        q, k, v = split_qkv(self, x, (1, 2))
        if self.q_pool is None:
            out = self.gmm_attend(q, k, v, scale=self.scale, grid=size)
        else:
            mask = self.gmm_dense(size, q)
            maps = q.transpose(2, 3).flatten(1, 2).unflatten(2, size)
            maps = self.q_pool(maps)
            size = (maps.shape[2], maps.shape[3])
            q = maps.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)
            out = self.gmm_attend_by(mask, q, k, v, scale=self.scale)
        return self.proj(out.transpose(1, 2).flatten(2).unflatten(1, size))


class MetaAttention(TimmAttention):
    """caformer: the stage's tokens; its downsampling gives their grid."""

    @classmethod
    def gmm_prefix(cls, module: Any) -> int:
        return 0

    def forward(self, x: Tensor) -> Tensor:
        return self.gmm_forward(x)


class DistanceAttention(BiasedAttention):
    """efficientformer: a bias per distance on one square map."""

    @classmethod
    def gmm_window(cls, module: Any) -> Grid:
        side = math.isqrt(module.attention_bias_idxs.shape[0])
        return side, side

    @classmethod
    def gmm_refusal(cls, module: Any, ancestors: list[nn.Module]) -> str:
        tokens = module.attention_bias_idxs.shape[0]
        return "" if math.isqrt(tokens) ** 2 == tokens else f"has {tokens} tokens, which do not form a square"


class _FixedMap(MaskedDonor):
    """efficientformer 2: maps of fixed size, projections by convolutions, a bias per distance."""

    @classmethod
    def gmm_window(cls, module: Any) -> Grid:
        return module.resolution[0], module.resolution[1]

    def gmm_project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, T, D] of a map, and the values' map."""
        value = self.v(x)
        maps = (self.q(x), self.k(x), value)
        q, k, v = (y.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3) for y in maps)
        return q, k, v, value

    def gmm_biased(self, q: Tensor, k: Tensor, softmax: Any = None) -> Tensor:
        """Attention weights. Avoids the donor's cache of the bias, which would keep its graph."""
        bias, mask = self.attention_biases[:, self.attention_bias_idxs], self.gmm_dense(self.gmm_window(self), q)
        scores = (q @ k.transpose(-2, -1)) * self.scale
        how = () if softmax is None else (softmax,)
        return attention_weights(scores, mask, bias, self.gmm_site.mode, *how)


class MixedHeads(_FixedMap):
    """Heads are mixed before and after the softmax; the mask multiplies before both."""

    gmm_parts = frozenset({"stride_conv", "upsample", "q", "k", "v", "v_local", "talking_head1", "talking_head2"}) | {
        "act",
        "proj",
    }

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, rows, cols] -> the same."""
        x = x if self.stride_conv is None else self.stride_conv(x)
        q, k, v, value = self.gmm_project(x)
        weights = self.gmm_biased(q, k, lambda logits: self.talking_head1(logits).softmax(-1))
        out = self.gmm_drop(self.talking_head2(weights)) @ v
        out = out.transpose(2, 3).flatten(1, 2).unflatten(2, self.gmm_window(self)) + self.v_local(value)
        return self.proj(self.act(out if self.upsample is None else self.upsample(out)))


class HalvedMap(_FixedMap):
    """Between stages: only every second row and column queries."""

    gmm_parts = frozenset({"q", "k", "v", "v_local", "act", "proj"})

    @classmethod
    def gmm_steps(cls, module: Any, ancestors: list[nn.Module]) -> Steps:
        return Steps(query=(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, rows, cols] -> [B, C', rows', cols']."""
        q, k, v, value = self.gmm_project(x)
        out = (self.gmm_drop(self.gmm_biased(q, k)) @ v).transpose(2, 3).flatten(1, 2)
        local = self.v_local(value)
        return self.proj(self.act(out.unflatten(2, local.shape[2:]) + local))


class ReducedAttention(SubSampledAttention):
    """pvt 2: each key summarises a square of tokens."""

    gmm_parts = SubSampledAttention.gmm_parts | {"pool", "act"}

    @classmethod
    def gmm_refusal(cls, module: Any, ancestors: list[nn.Module]) -> str:
        return "" if module.pool is None else "its keys are 7 x 7 whatever the size of the image"

    @staticmethod
    def gmm_ratio(module: Any) -> int:
        return 1 if module.sr is None else module.sr.stride[0]

    @classmethod
    def gmm_window_at(cls, module: Any, ancestors: list[nn.Module]) -> Grid | None:
        return stage_grid(ancestors)


_TIMM = "timm.models"
ATTENTIONS: dict[str, type[MaskedDonor]] = {
    f"{_TIMM}.davit.WindowAttention": DualAttention,
    f"{_TIMM}.gcvit.WindowAttentionGlobal": GlobalQueryAttention,
    f"{_TIMM}.fastvit.Attention": TokensOfMap,
    f"{_TIMM}.visformer.Attention": ConvolvedMap,
    f"{_TIMM}.vision_transformer_sam.Attention": SegmentAttention,
    f"{_TIMM}.hieradet_sam2.MultiScaleAttention": MultiScaleMap,
    f"{_TIMM}.metaformer.Attention": MetaAttention,
    f"{_TIMM}.efficientformer.Attention": DistanceAttention,
    f"{_TIMM}.efficientformer_v2.Attention2d": MixedHeads,
    f"{_TIMM}.efficientformer_v2.Attention2dDownsample": HalvedMap,
    f"{_TIMM}.pvt_v2.Attention": ReducedAttention,
    "timm.layers.bottleneck_attn.BottleneckAttn": BottleneckAttention,
}
LEFT_ALONE = {
    f"{_TIMM}.nextvit.EfficientAttention": "its keys are means of runs of tokens, which have no place on the grid",
    f"{_TIMM}.coat.FactorAttnConvRelPosEnc": "weighs channels by keys alone: no pairs of queries and keys",
    "timm.layers.lambda_layer.LambdaLayer": "has no pairs of queries and keys",
    "timm.layers.halo_attn.HaloAttn": "its keys reach beyond the queries' blocks",
    "timm.layers.non_local_attn.BilinearAttnTransform": "is not a softmax of queries times keys",
    "timm.layers.global_context.GlobalContext": "pools the map: its query is not a patch",
}


def tower(ancestors: list[nn.Module]) -> Tower | None:
    """Where a map's tokens come from: in MetaFormer the stage's downsampling, in CSATv2 the convolution that gives each
    block its positions."""
    block: Any = ancestors[-1] if ancestors else None
    if type(block).__name__ == "TransformerBlock" and type(block).__module__ == f"{_TIMM}.csatv2":
        return Tower(block.pos_embed.proj, stage_grid(ancestors), 0)
    stage: Any = next((a for a in reversed(ancestors) if type(a).__name__ == "MetaFormerStage"), None)
    conv = getattr(getattr(stage, "downsample", None), "conv", None)
    return Tower(conv, stage_grid(ancestors), 0) if isinstance(conv, nn.Conv2d) else None

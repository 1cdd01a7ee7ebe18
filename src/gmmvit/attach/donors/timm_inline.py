"""Attention inside a larger module of timm: the parallel blocks of its ViTs, differential attention, and the single
heads of SHViT and iFormer over whole feature maps.

Letters: B batch, T tokens (prefix first), N patches, C channels, H heads, D head width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.attach.donors.timm import no_causal, stage_grid
from gmmvit.attach.place import Grid
from gmmvit.attach.surgery import MaskedDonor, additive
from gmmvit.attention.eager import eager_weights

_PARALLEL = frozenset({"in_norm", "in_proj", "q_norm", "k_norm", "attn_drop", "mlp_drop", "mlp_act", "ls", "drop_path"})


class _Parallel(MaskedDonor):
    """Attention and MLP side by side, from one projection of the tokens."""

    gmm_parts = _PARALLEL | {"out_proj", "attn_out_proj", "mlp_out_proj"}

    def gmm_look(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Three [B, T, C] -> [B, T, C]."""
        raise NotImplementedError

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        no_causal(is_causal)
        hidden, q, k, v = self.in_proj(self.in_norm(x)).split(self.in_split, dim=-1)
        if self.mlp_bias is not None:
            hidden = hidden + self.mlp_bias
        seen = self.gmm_look(q, k, v, attn_mask)
        hidden = self.mlp_drop(self.mlp_act(hidden))
        if self.out_proj is None:
            out = self.attn_out_proj(seen) + self.mlp_out_proj(hidden)
        else:
            out = self.out_proj(torch.cat((seen, hidden), dim=-1))
        return x + self.drop_path(self.ls(out))


class ParallelBlock(_Parallel):
    """vit_*_xp and vit_pwee."""

    def gmm_look(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)) for y in (q, k, v))
        q, k, v = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        return self.gmm_attend(q, k, v, bias, scale=self.scale).transpose(1, 2).flatten(2)


class _Differential(MaskedDonor):
    """Each head subtracts two softmaxes. Each softmax has its own queries, keys and mask, so the mask has 2 H heads, in
    pairs."""

    gmm_rate = "attn_drop_p"

    @classmethod
    def gmm_heads(cls, module: Any) -> int:
        return 2 * module.num_heads

    def gmm_differ(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Three [B, T, C] -> [B, T, C]."""
        q, k = (y.unflatten(-1, (2 * self.num_heads, -1)).transpose(1, 2) for y in (q, k))
        q, k, v = self.q_norm(q), self.k_norm(k), v.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        share = self._compute_lambda().type_as(q)
        mask = self.gmm_full(*self.gmm_now(q.shape[2]))
        if self.gmm_unfused():
            options: Any = {"scale": self.scale, "bias": additive(bias), "mode": self.gmm_site.mode}
            weights = self.gmm_drop(eager_weights(q.to(v.dtype), k.to(v.dtype), mask, **options).to(v.dtype))
            first, second = weights.unflatten(1, (-1, 2)).unbind(2)
            out = (first - share * second) @ v
        else:
            (m1, m2), (q1, q2), (k1, k2) = (y.unflatten(-3, (-1, 2)).unbind(-3) for y in (mask, q, k))
            how: Any = {"scale": self.scale, "dropout_p": self.gmm_dropout()}
            first = self.gmm_attend_by(m1, q1, k1, v, bias, **how)
            second = self.gmm_attend_by(m2, q2, k2, v, bias, **how)
            out = first - share * second
        return (self.sub_norm(out) * (1 - self.lambda_init)).transpose(1, 2).flatten(2)


class DifferentialParallelBlock(_Differential, _Parallel):
    """vit_dpwee."""

    gmm_parts = _PARALLEL | {"out_proj", "sub_norm"}

    def gmm_look(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        return self.gmm_differ(q, k, v, bias)


class DifferentialAttention(_Differential):
    """vit_dlittle."""

    gmm_parts = frozenset({"qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop", "sub_norm"})

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        no_causal(is_causal)
        q, k, v = self.qkv(x).chunk(3, dim=2)
        return self.proj_drop(self.proj(self.norm(self.gmm_differ(q, k, v, attn_mask))))


class _SingleHead(MaskedDonor):
    """One head over a whole feature map, whose shape gives the grid."""

    @classmethod
    def gmm_heads(cls, module: Any) -> int:
        return 1

    @classmethod
    def gmm_window_at(cls, module: Any, ancestors: list[nn.Module]) -> Grid | None:
        return stage_grid(ancestors)

    def gmm_look(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
        """q, k [B, D, rows, cols], v [B, C, rows, cols] -> the shape of v."""
        rows, cols = v.shape[2:]
        mask = self.gmm_dense((rows, cols), q)
        q, k, v = (y.flatten(2).transpose(1, 2).unsqueeze(1) for y in (q, k, v))
        out = self.gmm_attend_by(mask, q, k, v, scale=self.scale, dropout_p=dropout_p)
        return out.squeeze(1).transpose(1, 2).unflatten(2, (rows, cols))


class PartialAttention(_SingleHead):
    """shvit: some channels attend, the others pass through."""

    gmm_parts = frozenset({"pre_norm", "qkv", "proj"})

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, rows, cols] -> the same."""
        part, rest = x.split([self.pdim, self.dim - self.pdim], dim=1)
        q, k, v = self.qkv(self.pre_norm(part)).split([self.qk_dim, self.qk_dim, self.pdim], dim=1)
        return self.proj(torch.cat([self.gmm_look(q, k, v), rest], dim=1))


class ModulatedAttention(_SingleHead):
    """iformer: a gate beside the values."""

    gmm_parts = frozenset({"q", "k", "v_gate", "gate_act", "attn_drop", "proj"})

    @classmethod
    def gmm_refusal(cls, module: Any, ancestors: list[nn.Module]) -> str:
        return "works in windows, which no timm model does" if module.window_size else ""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, rows, cols] -> the same."""
        v, gate = self.gate_act(self.v_gate(x)).chunk(2, dim=1)
        return self.proj(self.gmm_look(self.q(x), self.k(x), v, self.gmm_dropout()) * gate)

    def gmm_drop(self, weights: Tensor, dropout_p: float = 0.0) -> Tensor:
        """The donor's dropout has no head axis."""
        weights = self.attn_drop(weights.squeeze(1)).unsqueeze(1)
        if self.gmm_seen is not None:
            self.gmm_seen.append(weights)
        return weights


_TIMM = "timm.models"
ATTENTIONS: dict[str, type[MaskedDonor]] = {
    f"{_TIMM}.vision_transformer.ParallelScalingBlock": ParallelBlock,
    f"{_TIMM}.vision_transformer.DiffParallelScalingBlock": DifferentialParallelBlock,
    "timm.layers.diff_attention.DiffAttention": DifferentialAttention,
    f"{_TIMM}.shvit.SHSA": PartialAttention,
    f"{_TIMM}.iformer.SHMA": ModulatedAttention,
}
LEFT_ALONE = {
    f"{_TIMM}.csatv2.SpatialTransformerBlock": "attends across the images of a batch, not patches",
    f"{_TIMM}.efficientvim.HSMSSD": "mixes states, not patches",
}

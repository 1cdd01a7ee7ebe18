"""Attentions of timm that pool their queries, their keys or both, with the mask: MViTv2, Twins and Hiera.

A pooled query or key lies at the centre of what it pools. Offsets count in steps of the incoming tokens (MViTv2, Twins)
or of the keys (Hiera).
Letters: B batch, G windows an image, T tokens (q: queries, k: keys), C channels, H heads, D head width.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.attach.donors.timm import split_qkv
from gmmvit.attach.place import Grid
from gmmvit.attach.surgery import MaskedDonor
from gmmvit.attention.reference import EVERY_PATCH, Steps
from gmmvit.checks import pair


class PooledAttention(MaskedDonor):
    """mvitv2: queries and keys are pooled to different grids. A kernel of odd width, padded by half of it, is centred
    on every `stride`-th token, so each query and key lies on a token."""

    gmm_parts = frozenset({"qkv", "proj", "pool_q", "pool_k", "pool_v", "norm_q", "norm_k", "norm_v"})

    @classmethod
    def gmm_refusal(cls, module: Any, ancestors: list[nn.Module]) -> str:
        pools = [p for p in (module.pool_q, module.pool_k) if p is not None]
        even = [k for p in pools for k in pair(p.kernel_size, "kernel_size") if k % 2 == 0]
        return f"pools by a kernel of even width {even[0]}, whose centres lie between the tokens" if even else ""

    @classmethod
    def gmm_window_at(cls, module: Any, ancestors: list[nn.Module]) -> Grid | None:
        """The grid of the incoming tokens at the model's own image size. Computed here, because pooling rounds up and
        the sizes that the model stores are rounded down."""
        model: Any = next((a for a in ancestors if hasattr(a, "stages")), None)
        stages: Any = [a for a in ancestors if hasattr(a, "feat_size")] if model is None else model.stages
        if not stages:
            return None
        attentions = [block.attn for stage in stages for block in stage.blocks]
        steps = [cls.gmm_steps(attention, ancestors).query for attention in attentions]
        rows, cols = stages[0].feat_size[0] * steps[0][0], stages[0].feat_size[1] * steps[0][1]
        for down, right in steps[: attentions.index(module)]:
            rows, cols = -(-rows // down), -(-cols // right)
        return rows, cols

    @classmethod
    def gmm_prefix(cls, module: Any) -> int:
        return int(module.has_cls_token)

    @classmethod
    def gmm_steps(cls, module: Any, ancestors: list[nn.Module]) -> Steps:
        query, key = ((1, 1) if p is None else pair(p.stride, "stride") for p in (module.pool_q, module.pool_k))
        return Steps(query, key)

    def forward(self, x: Tensor, feat_size: Any) -> tuple[Tensor, Any]:
        """[B, T, C] of a map of size `feat_size` -> [B, Tq, C] and the pooled size."""
        from timm.models.mvitv2 import cal_rel_pos_type

        q, k, v = split_qkv(self, x)
        q, q_size = self.gmm_pool(q, self.pool_q, self.norm_q, feat_size)
        k, k_size = self.gmm_pool(k, self.pool_k, self.norm_k, feat_size)
        v, _ = self.gmm_pool(v, self.pool_v, self.norm_v, feat_size)
        bias = None
        if self.rel_pos_type == "spatial":
            nothing = q.new_zeros(*q.shape[:3], k.shape[2])
            bias = cal_rel_pos_type(nothing, q, self.has_cls_token, q_size, k_size, self.rel_pos_h, self.rel_pos_w)
        mask = self.gmm_dense((feat_size[0], feat_size[1]), q)
        out = self.gmm_attend_by(mask, q, k, v, bias, scale=self.scale)
        if self.residual_pooling:
            out = out + q
        return self.proj(out.transpose(1, 2).flatten(2)), q_size

    def gmm_pool(self, x: Tensor, pool: Any, norm: Any, size: Any) -> tuple[Tensor, Any]:
        """[B, H, T, D] of a map of this size -> the same of the pooled map, and its size."""
        from timm.models.mvitv2 import reshape_post_pool, reshape_pre_pool

        if pool is not None:
            x, class_token = reshape_pre_pool(x, size, self.has_cls_token)
            x, size = reshape_post_pool(pool(x), self.num_heads, class_token)
        return (x if norm is None else norm(x)), size


class SubSampledAttention(MaskedDonor):
    """twins, global: each key summarises `sr_ratio` x `sr_ratio` tokens."""

    gmm_parts = frozenset({"q", "kv", "attn_drop", "proj", "proj_drop", "sr", "norm"})

    @classmethod
    def gmm_window_at(cls, module: Any, ancestors: list[nn.Module]) -> Grid | None:
        """The grid of the stage, at the model's own image size."""
        model: Any = next((a for a in ancestors if hasattr(a, "patch_embeds")), None)
        if model is None:
            return None
        stage = next(i for i, blocks in enumerate(model.blocks) if any(blocks is a for a in ancestors))
        return model.patch_embeds[stage].H, model.patch_embeds[stage].W

    @staticmethod
    def gmm_ratio(module: Any) -> int:
        return module.sr_ratio

    @classmethod
    def gmm_steps(cls, module: Any, ancestors: list[nn.Module]) -> Steps:
        step = cls.gmm_ratio(module)
        return Steps(key=(step, step), shift=((1 - step) / 2, (1 - step) / 2))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, rows*cols, C] -> the same."""
        (rows, cols), step = size, self.gmm_ratio(self)
        heads = (self.num_heads, -1)
        q = self.q(x).unflatten(-1, heads).transpose(1, 2)
        if self.sr is not None:
            x = self.norm(self.sr(x.transpose(1, 2).unflatten(2, (rows, cols))).flatten(2).transpose(1, 2))
        k, v = self.kv(x).unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4).unbind(0)
        # Leftover rows and columns have no key.
        keys = self.gmm_mask.dense((rows, cols)).unflatten(-1, (-(-rows // step), -(-cols // step)))
        mask = keys[..., : rows // step, : cols // step].flatten(-2)
        out = self.gmm_attend_by(mask, q, k, v, dropout_p=self.gmm_dropout())
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class MaskUnitAttention(MaskedDonor):
    """hiera: inside mask units or across the image, on tokens in the order in which the model will pool them: the
    position in the first pooling window varies slowest, the windows left at the end vary fastest.

    `gmm_strides` are the poolings still to come inside its grid, its own first.
    """

    gmm_parts = frozenset({"qkv", "proj"})
    gmm_rate = None
    gmm_strides: list[tuple[int, int]]

    @classmethod
    def gmm_heads(cls, module: Any) -> int:
        return module.heads

    @classmethod
    def gmm_refusal(cls, module: Any, ancestors: list[nn.Module]) -> str:
        model = _hiera(ancestors)
        if model is None:
            return "is known to gmmvit only inside Hiera"
        if len(model.unroll.size) != 2:
            return f"attends over {len(model.unroll.size)} axes, the mask has two"
        left = _strides_left(module, model)
        if module.q_stride != 1 and (not left or module.q_stride != math.prod(left[0])):
            return f"pools {module.q_stride} queries, the poolings left to its model are {left}"
        if module.use_mask_unit_attn and math.prod(_side(_strides_inside(module, model))) != _tokens(module):
            return f"has mask units of {_tokens(module)} tokens, the poolings left to its model are {left}"
        return ""

    @classmethod
    def gmm_window_at(cls, module: Any, ancestors: list[nn.Module]) -> Grid | None:
        model = _hiera(ancestors)
        if module.use_mask_unit_attn:
            return _side(_strides_inside(module, model))
        left = _strides_left(module, model)
        pooled = _side([pair(s, "stride") for s in model.unroll.schedule][: len(model.unroll.schedule) - len(left)])
        return model.unroll.size[0] // pooled[0], model.unroll.size[1] // pooled[1]

    @classmethod
    def gmm_steps(cls, module: Any, ancestors: list[nn.Module]) -> Steps:
        if module.q_stride == 1:
            return EVERY_PATCH
        step = _strides_left(module, _hiera(ancestors))[0]
        return Steps(query=step, shift=((step[0] - 1) / 2, (step[1] - 1) / 2))

    @classmethod
    def gmm_state(cls, module: Any, ancestors: list[nn.Module]) -> dict[str, Any]:
        model = _hiera(ancestors)
        inside = _strides_inside if module.use_mask_unit_attn else _strides_left
        return {"gmm_strides": inside(module, model)}

    def forward(self, x: Tensor) -> Tensor:
        """[B, G*T, C] in the donor's order -> [B, G*Tq, C]."""
        windows = x.shape[1] // _tokens(self) if self.use_mask_unit_attn else 1
        (rows, cols), strides = self.gmm_site.now(x.shape[1] // windows)[0], self.gmm_strides
        # Windows vary faster than the tokens inside them.
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim)).unflatten(1, (-1, windows))
        q, k, v = qkv.permute(3, 0, 2, 4, 1, 5).flatten(1, 2).unbind(0)  # [B*G, H, T, D] each
        keys = _unrolled((rows, cols), strides, x.device)
        mask = self.gmm_mask.dense((rows, cols))[:, :, keys]
        if self.q_stride == 1:
            out = self.gmm_attend(q, k, v, mask=mask[:, keys])
        else:
            pooled = (rows // strides[0][0], cols // strides[0][1])
            q = q.unflatten(2, (self.q_stride, -1)).amax(2)
            out = self.gmm_attend_by(mask[:, _unrolled(pooled, strides[1:], x.device)], q, k, v)
        out = out.unflatten(0, (-1, windows)).permute(0, 3, 1, 2, 4)  # [B, Tq, G, H, D]
        return self.proj(out.flatten(3).flatten(1, 2))


def _side(strides: list[tuple[int, int]]) -> Grid:
    """The grid that these poolings reduce to one token."""
    return math.prod(s[0] for s in strides), math.prod(s[1] for s in strides)


def _hiera(ancestors: list[nn.Module]) -> Any:
    return next((a for a in reversed(ancestors) if hasattr(a, "unroll")), None)


def _tokens(module: Any) -> int:
    """Keys per mask unit; the donor's own number counts queries."""
    return module.q_stride * module.window_size


def _strides_left(module: Any, model: Any) -> list[tuple[int, int]]:
    """The poolings of a Hiera from this attention on, its own first."""
    block = next(i for i, b in enumerate(model.blocks) if b.attn is module)
    done = sum(b.attn.q_stride > 1 for b in model.blocks[:block])
    return [pair(s, "stride") for s in model.unroll.schedule[done:]]


def _strides_inside(module: Any, model: Any) -> list[tuple[int, int]]:
    """The poolings left that stay inside a mask unit."""
    left = _strides_left(module, model)
    return left[: sum(math.prod(_side(left[: n + 1])) <= _tokens(module) for n in range(len(left)))]


def _unrolled(grid: Grid, strides: list[tuple[int, int]], device: torch.device) -> Tensor:
    """The row-by-row numbers of a grid's patches, in the token order that has these poolings still ahead."""
    order = torch.arange(grid[0] * grid[1], device=device).view(1, *grid)
    for row, col in strides:
        windows = order.unflatten(2, (-1, col)).unflatten(1, (-1, row))  # [W, rows, row, cols, col]
        order = windows.permute(0, 2, 4, 1, 3).flatten(0, 2)
    return order.flatten()


_TIMM = "timm.models"
ATTENTIONS: dict[str, type[MaskedDonor]] = {
    f"{_TIMM}.mvitv2.MultiScaleAttention": PooledAttention,
    f"{_TIMM}.twins.GlobalSubSampleAttn": SubSampledAttention,
    f"{_TIMM}.hiera.MaskUnitAttention": MaskUnitAttention,
}
LEFT_ALONE = {f"{_TIMM}.mvitv2.MultiScaleAttentionPoolFirst": "pools before it projects: timm's own forward fails"}

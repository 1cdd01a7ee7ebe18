"""Attentions of timm (1.0.26 and later) with the mask: plain ViTs, NaFlex, rotary, relative position, BEiT, CaiT, PiT,
TNT.

Each class repeats what its donor does around the softmax. Others are in `timm_windows.py`, `timm_pooled.py` (pooled
queries and keys), `timm_maps.py` (maps instead of tokens), `timm_inline.py` (no module of their own), `timm_gemma.py`.
Letters: B batch, T tokens (prefix first), N patches, C channels, H heads, D head width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.attach.place import Grid
from gmmvit.attach.surgery import GridRecorder, MaskedDonor, Tower
from gmmvit.attention.reference import attention_weights
from gmmvit.checks import pair

_PROJECTIONS = frozenset({"qkv", "q_proj", "k_proj", "v_proj", "attn_drop", "proj", "proj_drop"})
_NORMS = frozenset({"q_norm", "k_norm", "norm", "gate"})


class TimmAttention(MaskedDonor):
    """What most of timm's attentions share: projections, query and key norms, gate, output."""

    gmm_parts = _PROJECTIONS | _NORMS

    def gmm_forward(self, x: Tensor, bias: Tensor | None = None, rope: Tensor | None = None) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        gate = getattr(self, "gate", None)
        q, k, v = split_qkv(self, x)
        if getattr(self, "q_norm", None) is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = self.gmm_rotate(q, rope), self.gmm_rotate(k, rope)
        out = self.gmm_attend(q, k, v, bias, scale=self.scale).transpose(1, 2).flatten(2)
        if getattr(self, "norm", None) is not None:
            out = self.norm(out)
        if gate is not None:
            out = out * gate(x).sigmoid()
        return self.proj_drop(self.proj(out))

    def gmm_rotate(self, q: Tensor, rope: Tensor) -> Tensor:
        """Applies the rotary embedding to the patches, not to the prefix."""
        from timm.layers import apply_rot_embed_cat

        half = {"half": True} if getattr(self, "rotate_half", False) else {}
        prefix = self.num_prefix_tokens
        return torch.cat([q[:, :, :prefix], apply_rot_embed_cat(q[:, :, prefix:], rope, **half)], dim=2)


def split_qkv(module: Any, x: Tensor, dims: tuple[int, ...] = (1,)) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, H, T, D] of x [B, T, C], from one joint projection or three. A joint one takes x as it comes, so that
    its hooks see what they saw; `dims` then are those of x that are the tokens, the ones before them the batch."""
    heads = module.num_heads
    if module.qkv is None:
        groups = getattr(module, "num_kv_groups", 1)  # fewer heads of keys and values than of queries
        q = module.q_proj(x).unflatten(-1, (heads, -1)).transpose(1, 2)
        k = module.k_proj(x).unflatten(-1, (heads // groups, -1)).transpose(1, 2).repeat_interleave(groups, dim=1)
        v = module.v_proj(x).unflatten(-1, (heads // groups, -1)).transpose(1, 2).repeat_interleave(groups, dim=1)
        return q, k, v
    if getattr(module, "q_bias", None) is None:
        qkv = module.qkv(x)
    else:
        bias = torch.cat((module.q_bias, module.k_bias, module.v_bias))
        separate = getattr(module, "qkv_bias_separate", False)
        qkv = module.qkv(x) + bias if separate else nn.functional.linear(x, module.qkv.weight, bias)
    qkv = qkv.flatten(dims[0], dims[-1]).flatten(0, dims[0] - 1)
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def no_causal(is_causal: bool) -> None:
    """Raises ValueError if the caller asks for causal attention."""
    if is_causal:
        raise ValueError("is_causal=True: patches have no order in time, an attached mask needs is_causal=False")


class PlainAttention(TimmAttention):
    """vit, deit, deit3, dinov2, pit, naflexvit without rotary embedding."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        no_causal(is_causal)
        return self.gmm_forward(x, attn_mask)


class RotaryAttention(TimmAttention):
    """eva, eva02, dinov3 and the ViTs with rotary embedding: the mask multiplies the logits of rotated queries."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        no_causal(is_causal)
        return self.gmm_forward(x, attn_mask, rope)


class RelPosAttention(TimmAttention):
    """vit_relpos: a relative position bias, the layer's own or shared by all layers."""

    gmm_parts = TimmAttention.gmm_parts | {"rel_pos"}

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        return self.gmm_forward(x, shared_rel_pos if self.rel_pos is None else self.rel_pos.get_bias())


class BeitAttention(TimmAttention):
    """beit, beitv2: the biases of the layer and of the model add up."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        bias = None if self.relative_position_bias_table is None else self._get_rel_pos_bias()
        if shared_rel_pos_bias is not None:
            bias = shared_rel_pos_bias if bias is None else bias + shared_rel_pos_bias
        return self.gmm_forward(x, bias)


class TalkingHeads(MaskedDonor):
    """cait: the mask multiplies the logits of each head before the heads are mixed."""

    gmm_parts = frozenset({"qkv", "attn_drop", "proj", "proj_l", "proj_w", "proj_drop"})

    @classmethod
    def gmm_prefix(cls, module: Any) -> int:
        return 0  # the class token joins after these blocks

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split_qkv(self, x)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        mask = self.gmm_dense(self.gmm_grid(x.shape[1]), scores)

        def mixed_softmax(logits: Tensor) -> Tensor:
            return self.gmm_mix(logits, self.proj_l).softmax(-1)

        weights = attention_weights(scores, mask, None, self.gmm_site.mode, mixed_softmax)
        weights = self.gmm_mix(weights, self.proj_w)
        out = (self.gmm_drop(weights) @ v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out))

    @staticmethod
    def gmm_mix(x: Tensor, mixer: nn.Module) -> Tensor:
        """A linear map over the heads of [B, H, T, T]."""
        return mixer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NestedAttention(MaskedDonor):
    """tnt: over the patches of the image or the cells of one patch; values have their own projection."""

    gmm_parts = frozenset({"qk", "v", "attn_drop", "proj", "proj_drop"})

    @classmethod
    def gmm_window_at(cls, module: Any, ancestors: list[nn.Module]) -> Grid | None:
        model: Any = next((a for a in ancestors if hasattr(a, "pixel_embed")), None)
        inside = getattr(ancestors[-1], "attn_in", None) is module if ancestors else False
        return pair(model.pixel_embed.new_patch_size, "patch_size") if inside and model is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> the same."""
        q, k = self.qk(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        v = self.v(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        mask = self.gmm_full(*self.gmm_now(x.shape[1]))  # values may be wider than keys
        out = self.gmm_attend_by(mask, q, k, v, scale=self.scale, dropout_p=self.gmm_dropout())
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class NestedRecorder(GridRecorder):
    """tnt's embedding of each patch's cells, on one grid of patches."""

    def gmm_note(self, out: Any, *args: Any, **kwargs: Any) -> None:
        self.gmm_write((self.grid_size[0], self.grid_size[1]), None, out)


class NaFlexRecorder(GridRecorder):
    """naflexvit's embedding: a batch of images has one grid, a batch of patches comes with their rows and columns."""

    def gmm_note(
        self, out: Any, x: Tensor, patch_coord: Tensor | None = None, patch_valid: Tensor | None = None
    ) -> None:
        made, grid = out
        if patch_coord is not None:  # no extra synchronisation: the donor reads its samples' grids here too
            grid = (patch_coord.amax((0, 1)) + 1).tolist()
        self.gmm_write((grid[0], grid[1]), patch_coord, made)


class FoldRecorder(GridRecorder):
    """mobilevit: a block cuts its map into patches; each pixel attends to the same pixel of the other patches."""

    @staticmethod
    def gmm_cut(block: Any, rows: int, cols: int) -> Grid:
        """The grid of patches on a map of this size, which the donor resizes to whole patches."""
        return -(-rows // block.patch_size[0]), -(-cols // block.patch_size[1])

    def forward(self, x: Tensor) -> Tensor:
        self.gmm_write(self.gmm_cut(self, *x.shape[-2:]), None, x)  # before its attentions run
        return super(GridRecorder, self).forward(x)


_VIT = "timm.models.vision_transformer"
ATTENTIONS: dict[str, type[MaskedDonor]] = {
    "timm.layers.attention.Attention": PlainAttention,
    f"{_VIT}.Attention": PlainAttention,
    "timm.layers.attention.AttentionRope": RotaryAttention,
    "timm.models.eva.EvaAttention": RotaryAttention,
    f"{_VIT}_relpos.RelPosAttention": RelPosAttention,
    "timm.models.beit.Attention": BeitAttention,
    "timm.models.cait.TalkingHeadAttn": TalkingHeads,
    "timm.models.tnt.Attention": NestedAttention,
}
_POOLING = "pools the tokens: its queries are not patches"
LEFT_ALONE = {
    "timm.layers.attention_pool.AttentionPoolLatent": _POOLING,
    "timm.layers.attention_pool.AttentionPoolPrr": _POOLING,
    "timm.layers.attention_pool2d.AttentionPool2d": _POOLING,
    "timm.layers.attention_pool2d.RotAttentionPool2d": _POOLING,
    "timm.models.cait.ClassAttn": "only the class token queries: its queries are not patches",
    "timm.models.volo.ClassAttention": "only the class token queries: its queries are not patches",
    "timm.models.xcit.XCA": "attends across channels, not patches",
    "timm.models.davit.ChannelAttention": "attends across channels, not patches",
    "timm.models.davit.ChannelAttentionV2": "attends across channels, not patches",
    "timm.models.edgenext.CrossCovarianceAttn": "attends across channels, not patches",
    "timm.models.mobilevit.LinearSelfAttention": "weighs each patch by one score: no pairs of queries and keys",
    "timm.models.crossvit.CrossAttention": "attends from one image scale to another",
}


def tower(ancestors: list[nn.Module]) -> Tower | None:
    """Where an attention's patches come from; `ancestors` run from the whole model down to its parent."""
    for model in reversed(ancestors):
        if any(cls.__name__ == "MobileVitBlock" for cls in type(model).__mro__):
            return _fold_tower(model, ancestors)
        if not type(model).__module__.startswith("timm."):
            continue
        if type(model).__name__ == "PoolingVisionTransformer":
            return _pit_tower(model, ancestors)
        if type(model).__name__ == "NaFlexVit":
            return _naflex_tower(model)
        if type(model).__name__ == "TNT":
            embed: Any = model.pixel_embed
            return Tower(embed, (embed.grid_size[0], embed.grid_size[1]), 1, NestedRecorder)
        if type(model).__name__ == "CrossVit":
            return _branch_tower(model, ancestors)
        patch_embed = getattr(model, "patch_embed", None)
        source = getattr(patch_embed, "proj", None)
        if isinstance(source, nn.Conv2d | nn.Identity):  # Identity after a stem of several convolutions
            # timm 1.0.24's ConViT has a class token but no num_prefix_tokens.
            prefix = getattr(model, "num_prefix_tokens", int(getattr(model, "cls_token", None) is not None))
            grid = getattr(patch_embed, "grid_size", None)
            return Tower(source, None if grid is None else (grid[0], grid[1]), prefix)
    return None


def _pit_tower(model: Any, ancestors: list[nn.Module]) -> Tower:
    """The pooling before a stage makes its grid, the patch embedding that of the first stage."""
    source, (rows, cols) = model.patch_embed.conv, model.patch_embed.grid_size
    for stage in model.transformers:
        if stage.pool is not None:
            source, rows, cols = stage.pool.conv, (rows + 1) // 2, (cols + 1) // 2
        if any(stage is module for module in ancestors):
            break
    return Tower(source, (rows, cols), model.num_tokens)


def _branch_tower(model: Any, ancestors: list[nn.Module]) -> Tower:
    """crossvit: each branch has its own image scale and patch embedding."""
    stages: Any = next(a for a in ancestors if type(a).__name__ == "MultiScaleBlock")
    embed = model.patch_embed[next(i for i, blocks in enumerate(stages.blocks) if any(blocks is a for a in ancestors))]
    source = embed.proj if isinstance(embed.proj, nn.Conv2d) else embed.proj[-1]
    rows, cols = (side // patch for side, patch in zip(embed.img_size, embed.patch_size, strict=True))
    return Tower(source, (rows, cols), 1)


def _fold_tower(block: Any, ancestors: list[nn.Module]) -> Tower:
    """Each block cuts its own feature map into patches."""
    size = stage_grid(ancestors)
    return Tower(block, None if size is None else FoldRecorder.gmm_cut(block, *size), 0, FoldRecorder)


def stage_grid(ancestors: list[nn.Module]) -> Grid | None:
    """The size of a stage's feature maps at the model's own image size, from timm's `feature_info`."""
    model: Any = next((a for a in ancestors if isinstance(getattr(a, "feature_info", None), list)), None)
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if size is None or not model.feature_info:
        return None
    inside = {name for name, module in model.named_modules() if any(module is a for a in ancestors)}
    notes = (note["reduction"] for note in model.feature_info if note["module"] in inside)
    step = next(notes, model.feature_info[-1]["reduction"])  # after the last entry the end
    return -(-size[-2] // step), -(-size[-1] // step)


def _naflex_tower(model: Any) -> Tower:
    """The grid of the position embedding or, without one, of the images the model was trained on."""
    grid = model.embeds.pos_embed_grid_size
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if grid is None and size is not None:
        grid = model.embeds.dynamic_feat_size(size[-2:])
    return Tower(model.embeds, None if grid is None else (grid[0], grid[1]), model.num_prefix_tokens, NaFlexRecorder)

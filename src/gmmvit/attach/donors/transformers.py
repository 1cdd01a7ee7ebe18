"""Attentions of transformers (5 and later) with the mask, through the library's own attention interface.

The donor's forward runs unchanged. Each attached attention gets a copy of its configuration that names our function;
the model's configuration, and so what `save_pretrained` writes, stays unchanged.
Letters: B batch, T tokens, H heads, D head width.
"""

import copy
import math
from typing import Any, ClassVar

from torch import Tensor, nn

from gmmvit.attach.place import Grid
from gmmvit.attach.surgery import MaskedDonor, Tower, additive, hooked
from gmmvit.checks import pair

IMPLEMENTATION = "gmmvit"


def interface(
    module: MaskedDonor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function of attached modules: q, k, v [B, H, T, D] -> [B, T, H, D], and the weights [B, H, T, T] if
    the donor was loaded with attn_implementation="eager"."""
    refuse_unmaskable(module, attention_mask, kwargs)
    module.gmm_site.ran.set(True)
    bias = bias_of(attention_mask, position_bias)
    weights = None
    if module.gmm_config._attn_implementation == "eager":
        mask = module.gmm_full(*module.gmm_now(query.shape[2]))
        out, weights = module.gmm_weighed(mask, query, key, value, bias, scale=scaling, dropout_p=dropout)
    else:
        out = module.gmm_attend(query, key, value, bias, scale=scaling, dropout_p=dropout)
    return out.transpose(1, 2).contiguous(), weights


def refuse_unmaskable(module: Any, attention_mask: Any, options: dict[str, Any]) -> None:
    """Raises ValueError for what an attached attention would ignore: causality, packed masks, a logit cap."""
    causal = options.get("is_causal")
    if causal is None and attention_mask is None:
        causal = getattr(module, "is_causal", True)  # as the library takes it
    if causal:
        raise ValueError("is_causal=True: patches have no order in time, an attached mask needs is_causal=False")
    if attention_mask is not None and (not isinstance(attention_mask, Tensor) or attention_mask.dim() != 4):
        raise ValueError(
            "an attached attention needs its attention_mask as a tensor [batch, 1, tokens, tokens]: load the model "
            "with attn_implementation='sdpa' or 'eager'"
        )
    for name in ("softcap", "s_aux", "sliding_window"):
        if options.get(name) is not None:
            raise ValueError(f"an attached attention does not support {name}: detach(model)")


def bias_of(attention_mask: Tensor | None, position_bias: Tensor | None) -> Tensor | None:
    bias = additive(attention_mask)
    if position_bias is None:
        return bias
    return position_bias if bias is None else position_bias + bias


class InterfaceAttention(MaskedDonor):
    """vit, deit, dinov2 (with or without registers), dinov3, beit, the vision towers of clip and siglip."""

    gmm_parts: ClassVar[frozenset[str] | None] = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "out_proj"})

    @classmethod
    def gmm_refusal(cls, module: Any, ancestors: list[nn.Module]) -> str:
        if not hasattr(module, "config"):
            return "comes from a transformers older than 5.24, the oldest that attach knows"
        return "" if hasattr(module.config, "patch_size") else "attends to words, not patches"

    @classmethod
    def gmm_ready(cls) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(IMPLEMENTATION, interface)

    @classmethod
    def gmm_prepare(cls, module: Any) -> None:
        module.gmm_config = module.config
        config = copy.copy(module.config)
        config._attn_implementation = IMPLEMENTATION
        module.config = config

    @classmethod
    def gmm_undo(cls, module: Any) -> None:
        module.config = module.gmm_config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.gmm_site.ran.set(False)
        out = super().forward(*args, **kwargs)
        if not self.gmm_site.ran.get():
            raise RuntimeError(
                f"{self.gmm_donor.__qualname__} computed without the attention interface of transformers, so the mask "
                "had no effect: detach(model); this version of the model cannot carry a mask"
            )
        return out


class SwinAttention(InterfaceAttention):
    """swin: square windows; the donor cuts one that is larger than the feature map."""

    gmm_parts = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "relative_position_bias"})

    @classmethod
    def gmm_window(cls, module: Any) -> Grid:
        side = module.config.window_size
        return side, side

    def gmm_now(self, tokens: int) -> tuple[Grid, None]:
        side = math.isqrt(tokens)
        return (side, side), None


class QueryAttention(InterfaceAttention):
    """vit, deit and dinov2 (with or without registers) of the first transformers 5 releases."""

    gmm_parts = frozenset({"query", "key", "value"})


def _look(module: MaskedDonor, show: bool | None, *qkv_bias: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """Masked attention, and its weights if `show`."""
    if show:
        return module.gmm_attend_and_show(*qkv_bias, **options)
    return module.gmm_attend(*qkv_bias, **options), None


def _asked(out: Tensor, weights: Tensor | None) -> tuple[Tensor | None, ...]:
    """What these donors return: the weights only if they are asked for."""
    return (out,) if weights is None else (out, weights)


class _ExplicitAttention(MaskedDonor):
    """Attentions of the first transformers 5 releases that compute by themselves, without the interface."""

    gmm_parts = frozenset({"query", "key", "value", "dropout", "relative_position_bias"})
    gmm_rate = "dropout"

    def gmm_split(self, x: Tensor) -> list[Tensor]:
        """[B, T, C] -> queries, keys and values [B, H, T, D]."""
        heads = (self.num_attention_heads, self.attention_head_size)
        return [project(x).unflatten(-1, heads).transpose(1, 2) for project in (self.query, self.key, self.value)]

    def gmm_output(self, x: Tensor, bias: Tensor | None, show: bool | None) -> tuple[Tensor | None, ...]:
        """[B, T, C] -> [B, T, C], and the weights [B, H, T, T] if `show`."""
        out, weights = _look(self, show, *self.gmm_split(x), bias)
        return _asked(out.transpose(1, 2).flatten(2), weights)


class BeitSelfAttention(_ExplicitAttention):
    """beit: the biases of the layer and of the model add up."""

    def forward(
        self,
        hidden_states: Tensor,
        output_attentions: bool = False,
        relative_position_bias: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        resolution: tuple[int, int] | None = None,
    ) -> tuple[Tensor | None, ...]:
        bias = relative_position_bias
        if self.has_relative_position_bias:
            window = tuple(side // self.config.patch_size for side in resolution)  # type: ignore[union-attr]
            tokens = hidden_states.shape[1]
            own = self.relative_position_bias(window, interpolate_pos_encoding, dim_size=tokens)
            bias = own if bias is None else own + bias
        return self.gmm_output(hidden_states, bias, output_attentions)


class BeitSdpaSelfAttention(BeitSelfAttention):
    """The version whose donor calls `scaled_dot_product_attention`, which shows no weights, and says so."""

    def gmm_output(self, x: Tensor, bias: Tensor | None, show: bool | None) -> tuple[Tensor | None, ...]:
        return *super().gmm_output(x, bias, False), None

    def gmm_dropout(self) -> float:
        return self.config.attention_probs_dropout_prob if self.training else 0.0


class SwinSelfAttention(_ExplicitAttention):
    """swin: the relative position bias and the shifted-window mask are added after the mask."""

    @classmethod
    def gmm_window(cls, module: Any) -> Grid:
        return module.window_size[0], module.window_size[1]

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, output_attentions: bool | None = False
    ) -> tuple[Tensor | None, ...]:
        """[B*G, T, C], mask [G, T, T] -> [B*G, T, C], and the weights [B*G, H, T, T] where they are asked for."""
        tokens = hidden_states.shape[1]
        table = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        bias = table.view(1, tokens, tokens, -1).permute(0, 3, 1, 2)
        if attention_mask is not None:
            bias = bias + attention_mask.unsqueeze(1)
        return self.gmm_output(hidden_states, bias, output_attentions)


class CosineSwinSelfAttention(SwinSelfAttention):
    """swinv2: cosine attention with a learned scale per head; the donor adds the shifted-window mask twice."""

    gmm_parts = frozenset({"query", "key", "value", "dropout", "continuous_position_bias_mlp"})

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, output_attentions: bool | None = False
    ) -> tuple[Tensor | None, ...]:
        """[B*G, T, C], mask [G, T, T] -> [B*G, T, C], and the weights [B*G, H, T, T] where they are asked for."""
        tokens, (q, k, v) = hidden_states.shape[1], self.gmm_split(hidden_states)
        scale = self.logit_scale.clamp(max=math.log(100)).exp()
        table = self.continuous_position_bias_mlp(self.relative_coords_table).view(-1, self.num_attention_heads)
        bias = (
            16 * table[self.relative_position_index.view(-1)].view(1, tokens, tokens, -1).permute(0, 3, 1, 2).sigmoid()
        )
        if attention_mask is not None:
            bias = bias + 2 * attention_mask.unsqueeze(1)
        q, k = nn.functional.normalize(q, dim=-1) * scale, nn.functional.normalize(k, dim=-1)
        out, weights = _look(self, output_attentions, q, k, v, bias, scale=1.0)
        return _asked(out.transpose(1, 2).flatten(2), weights)


class JointAttention(MaskedDonor):
    """blip's vision tower: one projection for queries, keys and values."""

    gmm_parts = frozenset({"qkv", "projection", "dropout"})
    gmm_rate = "dropout"

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """[B, T, C] -> the same, and the weights if hooks watch: the library collects them that way."""
        q, k, v = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out, weights = _look(self, hooked(self), q, k, v, scale=self.scale)
        return self.projection(out.transpose(1, 2).flatten(2)), weights


class SegmentAttention(MaskedDonor):
    """sam and vitdet: whole maps and windows, channels last; a bias from relative positions and queries."""

    gmm_parts = frozenset({"qkv", "proj"})

    @classmethod
    def gmm_window_at(cls, module: Any, ancestors: list[nn.Module]) -> Grid | None:
        side = getattr(ancestors[-1], "window_size", 0) if ancestors else 0
        if side:
            return side, side
        config: Any = next((a.config for a in reversed(ancestors) if hasattr(a, "config")), None)
        if config is None:
            return None
        (rows, cols), patch = pair(config.image_size, "image_size"), pair(config.patch_size, "patch_size")
        return rows // patch[0], cols // patch[1]

    def gmm_bias(self, q: Tensor, size: Grid) -> Tensor | None:
        if not self.use_rel_pos:
            return None
        return self.get_decomposed_rel_pos(q, self.rel_pos_h, self.rel_pos_w, size, size)

    def gmm_dropout(self) -> float:
        return self.dropout if self.training and "Sdpa" not in self.gmm_donor.__name__ else 0.0

    def forward(self, hidden_states: Tensor, output_attentions: bool | None = None) -> tuple[Tensor, Tensor | None]:
        """[B*G, rows, cols, C] -> the same, and the weights [B*G*H, T, T] if hooks watch, as in the library."""
        show = hooked(self) and "Sdpa" not in self.gmm_donor.__name__
        out, weights = self.gmm_output(hidden_states, show)
        return out, None if weights is None else weights.flatten(0, 1)

    def gmm_output(self, hidden_states: Tensor, show: bool | None) -> tuple[Tensor, Tensor | None]:
        """[B*G, rows, cols, C] -> the same, and the weights [B*G, H, T, T] if `show`."""
        size = (hidden_states.shape[1], hidden_states.shape[2])
        qkv = self.qkv(hidden_states).flatten(1, 2).unflatten(-1, (3, self.gmm_heads(self), -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.gmm_bias(q.flatten(0, 1), size)
        if bias is not None:
            bias = bias.reshape(*q.shape[:3], q.shape[2])
        out, weights = _look(self, show, q, k, v, bias, scale=self.scale, grid=size)
        return self.proj(out.transpose(1, 2).flatten(2).unflatten(1, size)), weights


class DetectionAttention(SegmentAttention):
    """vitdet."""

    def gmm_bias(self, q: Tensor, size: Grid) -> Tensor | None:
        from transformers.models.vitdet.modeling_vitdet import add_decomposed_relative_positions

        if not self.use_relative_position_embeddings:
            return None
        nothing = q.new_zeros(*q.shape[:2], q.shape[1])
        return add_decomposed_relative_positions(nothing, q, self.rel_pos_h, self.rel_pos_w, size, size)

    def gmm_dropout(self) -> float:
        return 0.0

    def forward(self, hidden_state: Tensor, output_attentions: bool | None = False) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return _asked(*self.gmm_output(hidden_state, output_attentions))


def _name(model: str, cls: str, file: str = "") -> str:
    return f"transformers.models.{model}.modeling_{file or model}.{cls}"


ATTENTIONS: dict[str, type[MaskedDonor]] = {
    _name("vit", "ViTAttention"): InterfaceAttention,
    _name("deit", "DeiTAttention"): InterfaceAttention,
    _name("dinov2", "Dinov2Attention"): InterfaceAttention,
    _name("dinov2_with_registers", "Dinov2WithRegistersAttention"): InterfaceAttention,
    _name("dinov3_vit", "DINOv3ViTAttention"): InterfaceAttention,
    _name("beit", "BeitAttention"): InterfaceAttention,
    _name("clip", "CLIPAttention"): InterfaceAttention,
    _name("siglip", "SiglipAttention"): InterfaceAttention,
    _name("swin", "SwinAttention"): SwinAttention,
    # First transformers 5 releases.
    _name("vit", "ViTSelfAttention"): QueryAttention,
    _name("deit", "DeiTSelfAttention"): QueryAttention,
    _name("dinov2", "Dinov2SelfAttention"): QueryAttention,
    _name("dinov2_with_registers", "Dinov2WithRegistersSelfAttention"): QueryAttention,
    _name("beit", "BeitSelfAttention"): BeitSelfAttention,
    _name("beit", "BeitSdpaSelfAttention"): BeitSdpaSelfAttention,
    _name("swin", "SwinSelfAttention"): SwinSelfAttention,
    # Copies of those, unchanged since.
    _name("data2vec", "Data2VecVisionSelfAttention", "data2vec_vision"): BeitSelfAttention,
    _name("data2vec", "Data2VecVisionSdpaSelfAttention", "data2vec_vision"): BeitSdpaSelfAttention,
    _name("donut", "DonutSwinSelfAttention", "donut_swin"): SwinSelfAttention,
    _name("maskformer", "MaskFormerSwinSelfAttention", "maskformer_swin"): SwinSelfAttention,
    _name("swinv2", "Swinv2SelfAttention"): CosineSwinSelfAttention,
    _name("blip", "BlipAttention"): JointAttention,
    _name("sam", "SamVisionAttention"): SegmentAttention,
    _name("sam", "SamVisionSdpaAttention"): SegmentAttention,
    _name("sam_hq", "SamHQVisionAttention"): SegmentAttention,
    _name("sam_hq", "SamHQVisionSdpaAttention"): SegmentAttention,
    _name("vitdet", "VitDetAttention"): DetectionAttention,
}
_POINTS = "samples points: no pairs of queries and keys"
LEFT_ALONE: dict[str, str] = {
    _name("mobilevitv2", "MobileViTV2LinearSelfAttention"): "weighs each patch by one score: no pairs",
    _name("swiftformer", "SwiftFormerEfficientAdditiveAttention"): "weighs each patch by one score: no pairs",
    _name("groupvit", "GroupViTAssignAttention"): "assigns patches to groups",
    _name("timesformer", "TimesformerSelfAttention"): "its patches have time as a third axis, the mask has two",
    _name("aimv2", "Aimv2AttentionPoolingHead"): "pools the tokens: its queries are not patches",
    _name("deformable_detr", "MultiScaleDeformableAttention"): _POINTS,
    _name("rt_detr", "MultiScaleDeformableAttention"): _POINTS,
    _name("rf_detr", "MultiScaleDeformableAttention"): _POINTS,
    _name("lw_detr", "MultiScaleDeformableAttention"): _POINTS,
}
# Class, distillation and register tokens before the patches, by the configuration's `model_type`.
_PREFIX = {
    "vit": 1,
    "deit": 2,
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "dinov3_vit": 1,
    "beit": 1,
    "data2vec-vision": 1,
    "blip_vision_model": 1,
    "clip_vision_model": 1,
    "siglip_vision_model": 0,
    "swin": 0,
}


def tower(ancestors: list[nn.Module]) -> Tower | None:
    """Where an attention's patches come from; `ancestors` run from the whole model down to its parent."""
    for model in reversed(ancestors):
        config: Any = getattr(model, "config", None)
        if not type(model).__module__.startswith("transformers.") or not hasattr(config, "patch_size"):
            continue
        patch, size = pair(config.patch_size, "patch_size"), getattr(config, "image_size", None)
        sources = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == m.stride == patch]
        if sources:
            prefix = _PREFIX.get(config.model_type)
            if prefix is not None:
                prefix += getattr(config, "num_register_tokens", 0)
            image = None if size is None else pair(size, "image_size")
            return Tower(sources[0], image and (image[0] // patch[0], image[1] // patch[1]), prefix)
    return None

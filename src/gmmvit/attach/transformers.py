"""Attentions of transformers (5 and later) with the mask, through the library's own attention interface.

The donor's forward runs as it is. Each attached attention alone gets a copy of its configuration that names our
function; the configuration of the model, and with it what `save_pretrained` writes, stays as it was.
Letters: B batch, T tokens, H heads, D head width.
"""

import copy
import math
from typing import Any

from torch import Tensor, nn

from gmmvit.attach.surgery import Grid, MaskedDonor, Tower, additive

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
) -> tuple[Tensor, None]:
    """The attention function of an attached module: [B, H, T, D] each -> [B, T, H, D] and no weights."""
    if kwargs.get("is_causal"):
        raise ValueError("is_causal=True: patches have no order in time, an attached mask needs is_causal=False")
    if attention_mask is not None and (not isinstance(attention_mask, Tensor) or attention_mask.dim() != 4):
        raise ValueError(
            "an attached attention needs its attention_mask as a tensor [batch, 1, tokens, tokens]: load the model "
            "with attn_implementation='sdpa' or 'eager'"
        )
    module.gmm_site.ran = True
    bias = additive(attention_mask)
    if position_bias is not None:
        bias = position_bias if bias is None else position_bias + bias
    out = module.gmm_attend(query, key, value, bias, scale=scaling, dropout_p=dropout)
    return out.transpose(1, 2).contiguous(), None


class InterfaceAttention(MaskedDonor):
    """vit, deit, dinov2 (with and without registers), dinov3, beit, the vision towers of clip and siglip."""

    gmm_parts = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "out_proj"})

    @classmethod
    def gmm_heads(cls, module: Any) -> int:
        heads = getattr(module, "num_attention_heads", None)
        return module.num_heads if heads is None else heads

    @classmethod
    def gmm_refusal(cls, module: Any, ancestors: list[nn.Module]) -> str:
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
        self.gmm_site.ran = False
        out = super().forward(*args, **kwargs)
        if not self.gmm_site.ran:
            raise RuntimeError(
                f"{self.gmm_donor.__qualname__} computed without the attention interface of transformers, so the mask "
                "had no effect: detach(model); this version of the model cannot carry a mask"
            )
        return out


class SwinAttention(InterfaceAttention):
    """swin: square windows; one that is larger than the feature map is cut to it by the donor."""

    gmm_parts = InterfaceAttention.gmm_parts | {"relative_position_bias"}

    @classmethod
    def gmm_window(cls, module: Any) -> Grid:
        side = module.config.window_size
        return side, side

    def gmm_grid(self, tokens: int) -> Grid:
        side = math.isqrt(tokens)
        return side, side


def _name(model: str, cls: str) -> str:
    return f"transformers.models.{model}.modeling_{model}.{cls}"


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
}
LEFT_ALONE: dict[str, str] = {}
# Class, distillation and register tokens before the patches, by the `model_type` of the configuration.
_PREFIX = {
    "vit": 1,
    "deit": 2,
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "dinov3_vit": 1,
    "beit": 1,
    "clip_vision_model": 1,
}


def tower(ancestors: list[nn.Module]) -> Tower | None:
    """Where the patches of an attention come from; `ancestors` from the whole model down to its parent."""
    for model in reversed(ancestors):
        config: Any = getattr(model, "config", None)
        if not type(model).__module__.startswith("transformers.") or not hasattr(config, "patch_size"):
            continue
        patch, image = _pair(config.patch_size), _pair(config.image_size)
        sources = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == m.stride == patch]
        if sources:
            prefix = _PREFIX.get(config.model_type, 0) + getattr(config, "num_register_tokens", 0)
            return Tower(sources[0], (image[0] // patch[0], image[1] // patch[1]), prefix)
    return None


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])

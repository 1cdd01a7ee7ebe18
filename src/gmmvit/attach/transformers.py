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
    def gmm_prepare(cls, module: Any) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(IMPLEMENTATION, interface)
        module.gmm_config = module.config
        config = copy.copy(module.config)
        config._attn_implementation = IMPLEMENTATION
        module.config = config

    @classmethod
    def gmm_undo(cls, module: Any) -> None: ...


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

"""Masked attention in plain torch: runs anywhere and compiles into fused code."""

from collections.abc import Callable

import torch
from torch import Tensor

from gmmvit.attention.reference import SOFTMAX, attention_weights


def eager_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    scale: float,
    bias: Tensor | None = None,
    mode: str = "multiply",
    dropout_p: float = 0.0,
) -> Tensor:
    """Masked attention; arguments and result as in `reference_attention`.

    The two matrix products run in the dtype of q, the mask and the softmax in float32 or wider.
    """
    if mask is None and (bias is None or bias.dim() < 4 or bias.shape[0] in (1, q.shape[0])):
        bias = None if bias is None else bias.to(q.dtype)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, bias, dropout_p, scale=scale)
    weights = eager_weights(q, k, mask, scale=scale, bias=bias, mode=mode)
    weights = torch.nn.functional.dropout(weights, dropout_p)
    return weights.to(v.dtype) @ v


def eager_weights(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    *,
    scale: float,
    bias: Tensor | None = None,
    mode: str = "multiply",
    softmax: Callable[[Tensor], Tensor] = SOFTMAX,
) -> Tensor:
    """The attention weights before dropout: [B, H, Tq, Tk] in float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    # Scale q: D values per token instead of T, and half-precision scores stay in range.
    scores = ((q * scale) @ k.transpose(-2, -1)).to(wide)
    mask = None if mask is None else mask.to(wide)
    return attention_weights(scores, mask, bias, mode, softmax)

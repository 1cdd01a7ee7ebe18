"""Plain torch in the precision of its inputs: runs anywhere and compiles into fused code."""

import torch
from torch import Tensor

from gmmvit.attention.reference import modulate


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
    wide = torch.promote_types(q.dtype, torch.float32)
    # The scale goes onto q: D values a token instead of T, and half-precision scores stay in range.
    scores = ((q * scale) @ k.transpose(-2, -1)).to(wide)
    weights = modulate(scores, None if mask is None else mask.to(wide), bias, mode).softmax(-1)
    if mask is not None and mode == "post":
        weights = weights * mask
    weights = torch.nn.functional.dropout(weights, dropout_p)
    return weights.to(v.dtype) @ v

"""What a masked donor must compute, independent of our attention: its own forward pass with changed logits.

The mask is written out by four nested loops; it is multiplied in where the donor calls scaled_dot_product_attention or
multiplies queries with keys, before any bias.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from places import places
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from zoo import logits

from gmmvit.attach import attach
from gmmvit.attach.surgery import MaskedDonor

_PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.einsum)


def mixture(sigma, alpha, queries, keys, prefix):
    """[H, Tq, Tk] by loops over the places (row, column) of queries and keys; ones for the prefix."""
    heads = [list(zip(s, a, strict=True)) for s, a in zip(sigma.tolist(), alpha.tolist(), strict=True)]
    mask = torch.ones(len(heads), prefix + len(queries), prefix + len(keys), dtype=torch.float64)
    for h, gaussians in enumerate(heads):
        for i, (r1, c1) in enumerate(queries):
            for j, (r2, c2) in enumerate(keys):
                d2 = (r1 - r2) ** 2 + (c1 - c2) ** 2
                mask[h, prefix + i, prefix + j] = sum(a * math.exp(-d2 / (2 * (s * s + 1e-5))) for s, a in gaussians)
    return mask


class _ScoreMode(TorchFunctionMode):
    """Multiplies the next mask into every product of queries and keys that has its size."""

    def __init__(self, masks):
        super().__init__()
        self.masks = masks

    def __torch_function__(self, func, types, args=(), kwargs=None):
        options = dict(kwargs or {})
        if func.__name__ == "softmax" and options.get("dtype") == torch.float32:
            del options["dtype"]  # sam's would round float64
        out = func(*args, **options)
        given = [x for arg in args for x in (arg if isinstance(arg, list) else [arg])]  # einsum takes a list too
        factors = [x for x in given if isinstance(x, torch.Tensor) and x.dim() >= 3]
        if func in _PRODUCTS and self.masks and len(factors) == 2 and factors[0].shape[-1] != out.shape[-1]:
            size = self.masks[0].shape
            heads = size[-3] in out.shape[1:-2] or (out.dim() == 3 and out.shape[0] % size[-3] == 0)
            if out.shape[-2:] == size[-2:] and heads:
                return _times(out, self.masks.pop(0))
        return out


def _times(scores, mask):
    """A mask [H, T, T] or [B, H, T, T] multiplied into [..., H, ..., T, T] (groups may follow the heads), or into
    [B*H, T, T]."""
    if scores.dim() == 3 and mask.dim() == 3:
        return (scores.unflatten(0, (-1, len(mask))) * mask).flatten(0, 1)
    return scores * (mask if mask.dim() == 4 or scores.shape[-3] == mask.shape[0] else mask.unsqueeze(1))


@contextmanager
def masks_in(masks: list[torch.Tensor]) -> Iterator[None]:
    """Inside, the donor's attentions use `masks` in order; all must be used."""
    left = list(masks)

    def sdpa(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
        # Written so that `_ScoreMode`, meant for donors without this call, does not see it.
        scores = (q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        if left and scores.shape[-2:] == left[0].shape[-2:]:
            scores = _times(scores, left.pop(0))
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, -math.inf)
            scores = scores + attn_mask
        return torch.einsum("...ts,...sd->...td", F.dropout(scores.softmax(-1), dropout_p), v)

    with patch.object(F, "scaled_dot_product_attention", sdpa), _ScoreMode(left):
        yield
    assert not left, f"the donor's attention never came to {len(left)} masks"


def masked_logits(donor):
    """Logits of the attached donor with random masks, and of the donor itself with the same masks inserted; float64."""
    model = donor.make(dtype=torch.float64)
    torch.manual_seed(2)
    attach(model, init="paper", num_kernels=3)
    images = donor.images(dtype=torch.float64)
    layers = [m for m in model.modules() if isinstance(m, MaskedDonor)]
    masks = []
    for layer, prefix in zip(layers, donor.prefixes, strict=True):
        parameters = (layer.gmm_mask.sigma, layer.gmm_mask.alpha)
        samples = [mixture(*parameters, queries, keys, prefix) for queries, keys in places(model, layer, images)]
        mask = samples[0] if len(samples) == 1 else torch.stack(samples)
        masks += [mask[0::2], mask[1::2]] if "Diff" in type(layer).__name__ else [mask]
    got = logits(model, images)
    with masks_in(masks):
        return got, logits(donor.make(dtype=torch.float64), images)

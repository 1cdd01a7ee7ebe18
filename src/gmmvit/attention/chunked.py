"""Masked attention for the CPU: forward and backward over chunks of samples and heads that fit in the cache.

Plain torch writes the [B, H, T, T] scores to memory after every operation. Here each chunk passes through all
operations in place while it is in the cache; only the weights are kept for the backward pass.
`benchmarks/attention_cpu.py` measures it against SDPA without a mask.

Letters: B batch, T tokens, H heads, D head width, b samples and h heads of a chunk.
"""

import functools
import math

import torch
from torch import Tensor

from gmmvit.attention.reference import log_mask, unpack

# Scores of one chunk: about the level-2 and level-3 cache of two cores.
CHUNK_BYTES = 3 << 20
LOG2_E = math.log2(math.e)


def chunked_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    mask: Tensor | None,
    *,
    scale: float,
    bias: Tensor | None = None,
    mode: str = "multiply",
    dropout_p: float = 0.0,
) -> Tensor:
    """Masked attention on the CPU, with arguments and result as in `reference_attention`, modes "multiply" and "log",
    no dropout. Scores are float32 or wider. Without k and v, q is the projection of `gmm_attention_packed`."""
    if mode == "log" and mask is not None:
        logarithm = log_mask(mask)
        mask, bias = None, logarithm if bias is None else bias + logarithm
    wide = torch.promote_types(q.dtype, torch.float32)
    factor = None if mask is None else mask.to(wide)
    bias = None if bias is None else bias.to(wide)
    keep_weights = torch.is_grad_enabled()  # inside `forward` gradients are always off
    with torch.autocast("cpu", enabled=False):  # the dtypes are chosen here
        return _ChunkedAttention.apply(q, k, v, factor, bias, scale, keep_weights)


@functools.cache
def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32."""
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def _chunks(batch: int, heads: int, tokens: int, bias: Tensor | None, itemsize: int) -> list[tuple[slice, slice]]:
    """Samples and heads of each chunk; whole groups and all heads if a bias repeats along the batch."""
    groups = bias.shape[0] if bias is not None and bias.dim() == 4 and bias.shape[0] != batch else 1
    at_once = max(1, CHUNK_BYTES // max(1, tokens * tokens * itemsize))  # heads, of any sample
    if at_once < heads and groups == 1:
        parts = [slice(first, min(first + at_once, heads)) for first in range(0, heads, at_once)]
        return [(slice(i, i + 1), part) for i in range(batch) for part in parts]
    samples = -(-max(1, at_once // heads) // groups) * groups
    return [(slice(i, min(i + samples, batch)), slice(0, heads)) for i in range(0, batch, samples)]


def _flat(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[b, h, T, D] -> contiguous [b*h, T, D]."""
    # One pass over memory; `to` and `reshape` would take two.
    return torch.empty(x.shape, dtype=dtype, device=x.device).copy_(x).flatten(0, 1)


def _buffer(q: Tensor, chunks: list[tuple[slice, slice]], dtype: torch.dtype) -> Tensor:
    """A buffer for the scores of the first chunk, the largest."""
    tokens = q.shape[2]
    return q.new_empty(*(q[chunks[0]].shape[:2] if chunks else (0, 0)), tokens, tokens, dtype=dtype)


def _like(buffer: Tensor, part: Tensor) -> Tensor:
    """The start of a buffer, shaped as the scores of a part [b, h, T, D] of q."""
    return buffer[: part.shape[0], : part.shape[1]]


def _of(x: Tensor, chunk: tuple[slice, slice], batch: int) -> Tensor:
    """The part of a factor or bias [T, T], [H or 1, T, T] or [G, H or 1, T, T] that a chunk of the batch needs."""
    if x.dim() == 4 and x.shape[0] == batch:
        x = x[chunk[0]]
    return x[..., chunk[1], :, :] if x.dim() > 2 and x.shape[-3] > 1 else x


def _softmax2_(x: Tensor) -> Tensor:
    """2^x over its sum along the last dimension, in place. Within the cache it takes 4/5 of the time of
    `torch.softmax`, because exp2 takes 1/3 of the time of exp."""
    x.sub_(x.amax(-1, keepdim=True)).exp2_()
    return x.div_(x.sum(-1, keepdim=True))


def _grouped(scores: Tensor, bias: Tensor) -> Tensor:
    """Scores [b, h, T, T] in the shape a bias broadcasts to: [b / G, G, h, T, T] for one of G groups."""
    groups = bias.shape[0] if bias.dim() == 4 else 1
    return scores if groups == 1 else scores.unflatten(0, (-1, groups))


class _ChunkedAttention(torch.autograd.Function):
    """softmax(scale * q k^T * factor + bias) v with factor [H, T, T] or [T, T].

    Scores and their gradients are float32 or wider. If q is bfloat16 and the CPU multiplies it fast (`narrow`), the
    weights are stored and multiplied in bfloat16, as in flash attention. Without k and v, q is all three packed.
    """

    @staticmethod
    def forward(ctx, q, k, v, factor, bias, scale, keep_weights):  # type: ignore[no-untyped-def]
        ctx.packed = k is None
        if ctx.packed:
            q, k, v = unpack(q)
        batch, heads, tokens, width = q.shape
        wide = torch.promote_types(q.dtype, torch.float32)
        narrow = q.dtype if q.dtype == torch.bfloat16 and fast_bfloat16() else wide
        factor2 = None if factor is None else factor * (scale * LOG2_E)  # the softmax is in base 2
        bias2 = None if bias is None else bias * LOG2_E
        # In memory [B, T, H, D], so the next layer gets [B, T, H*D] as a view.
        out = q.new_empty(batch, tokens, heads, width).transpose(1, 2)
        weights = q.new_empty(batch, heads, tokens, tokens, dtype=narrow) if keep_weights else None
        ctx.chunks = _chunks(batch, heads, tokens, bias, wide.itemsize) if tokens else []
        buffer = None if keep_weights and narrow == wide else _buffer(q, ctx.chunks, wide)
        for chunk in ctx.chunks:
            qc, kc = _flat(q[chunk], wide), _flat(k[chunk], wide)
            # The scores become the weights in place, in the tensor that keeps those unless they are converted.
            scores = (weights[chunk] if buffer is None else _like(buffer, q[chunk])).flatten(0, 1)
            torch.bmm(qc, kc.transpose(1, 2), out=scores)
            scores = scores.unflatten(0, q[chunk].shape[:2])
            scores.mul_(scale * LOG2_E if factor2 is None else _of(factor2, chunk, batch))
            if bias2 is not None:
                part = _of(bias2, chunk, batch)
                _grouped(scores, part).add_(part)
            w = _softmax2_(scores)
            if buffer is not None:
                w = w.to(narrow) if weights is None else weights[chunk].copy_(w)
            out[chunk] = torch.bmm(w.flatten(0, 1), _flat(v[chunk], narrow)).view_as(q[chunk])
        ctx.save_for_backward(q, k, v, factor, bias, weights, out)
        ctx.scale = scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx, grad_out):  # type: ignore[no-untyped-def]
        q, k, v, factor, bias, weights, out = ctx.saved_tensors
        batch = q.shape[0]
        wide, narrow = torch.promote_types(q.dtype, torch.float32), weights.dtype
        scaled = None if factor is None else factor * ctx.scale
        if ctx.packed:
            packed = q.new_empty(batch, q.shape[2], 3, q.shape[1], q.shape[3])
            grad_q, grad_k, grad_v = unpack(packed)
        else:
            grad_q, grad_k, grad_v = (torch.empty_like(out) for _ in range(3))
        grad_factor = torch.zeros_like(factor) if ctx.needs_input_grad[3] else None
        grad_bias = torch.zeros_like(bias) if ctx.needs_input_grad[4] else None
        # Reused by every chunk: new allocations cost page faults.
        one, two = (_buffer(q, ctx.chunks, wide) for _ in range(2))
        small = one if narrow == wide else _buffer(q, ctx.chunks, narrow)
        for chunk in ctx.chunks:
            qc, kc = _flat(q[chunk], narrow), _flat(k[chunk], narrow)
            go, vc = _flat(grad_out[chunk], wide), _flat(v[chunk], wide)
            w = weights[chunk].flatten(0, 1)  # [b*h, T, T]
            grad_s, other, cast = (_like(x, q[chunk]).flatten(0, 1) for x in (one, two, small))
            grad_v[chunk] = torch.bmm(w.transpose(1, 2), go.to(narrow)).view_as(q[chunk])
            # Softmax backward: dS = P * (dP - rowsum(P * dP)), and that row sum is <dO, O>.
            rowsum = (go * _flat(out[chunk], wide)).sum(-1, keepdim=True)
            torch.bmm(go, vc.transpose(1, 2), out=grad_s)
            grad_s.sub_(rowsum).mul_(w if narrow == wide else other.copy_(w))
            if grad_bias is not None:
                _accumulate(_of(grad_bias, chunk, batch), grad_s.view_as(weights[chunk]))
            if grad_factor is not None:
                torch.bmm(qc, kc.transpose(1, 2), out=other if narrow == wide else cast)
                raw = other if narrow == wide else other.copy_(cast)
                own = _of(grad_factor, chunk, batch)
                own += raw.mul_(grad_s).view_as(weights[chunk]).sum_to_size(own.shape)
            grad_s.view_as(weights[chunk]).mul_(ctx.scale if scaled is None else _of(scaled, chunk, batch))
            grad_s = grad_s if narrow == wide else cast.copy_(grad_s)
            grad_q[chunk] = torch.bmm(grad_s, kc).view_as(q[chunk])
            grad_k[chunk] = torch.bmm(grad_s.transpose(1, 2), qc).view_as(q[chunk])
        if grad_factor is not None:
            grad_factor *= ctx.scale
        grads = (packed, None, None) if ctx.packed else (grad_q, grad_k, grad_v)
        return *grads, grad_factor, grad_bias, None, None


def _accumulate(grad_bias: Tensor, grad_s: Tensor) -> None:
    """Adds the score gradients of a chunk [b, h, T, T] to those of a bias that may repeat along the batch."""
    grad_s = _grouped(grad_s, grad_bias)
    if grad_s.dim() == 5:
        grad_s = grad_s.sum(0)
    grad_bias += grad_s.sum_to_size(grad_bias.shape)

"""Masked attention for the CPU: forward and backward over chunks of the batch that stay in the cache.

Plain torch writes the [B, H, T, T] scores to memory once an operation; here each chunk goes through all of them while
it is in the cache, in place, and only the weights are kept for the backward pass. Measured against plain SDPA without
any mask by `benchmarks/attention_cpu.py`.

Letters: B batch, T tokens, H heads, D head width, c chunk.
"""

import torch
from torch import Tensor

from gmmvit.attention.reference import add_bias, log_mask

CHUNK_BYTES = 3 << 20  # scores of one chunk: about the level-2 and level-3 cache that two cores have to themselves


def chunked_attention(
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
    """Masked attention on the CPU; arguments and result as in `reference_attention`, modes "multiply" and "log" and no
    dropout. Half precisions are computed in float32 chunk by chunk."""
    if mode == "log" and mask is not None:
        logarithm = log_mask(mask)
        mask, bias = None, logarithm if bias is None else bias + logarithm
    wide = torch.promote_types(q.dtype, torch.float32)
    factor = None if mask is None else mask.to(wide)
    bias = None if bias is None else bias.to(wide)
    keep_weights = torch.is_grad_enabled()  # asked here: inside of `forward` gradients are always off
    with torch.autocast("cpu", enabled=False):  # the dtypes are chosen here
        return _ChunkedAttention.apply(q, k, v, factor, bias, scale, keep_weights)


def _step(batch: int, heads: int, tokens: int, bias: Tensor | None, wide: torch.dtype) -> int:
    """Samples in a chunk, at least one; with a bias of G groups, whole groups."""
    groups = bias.shape[0] if bias is not None and bias.dim() == 4 else 1
    samples = max(1, CHUNK_BYTES // max(1, heads * tokens * tokens * wide.itemsize))
    return max(1, min(batch, -(-samples // groups) * groups))


def _flat(x: Tensor, chunk: slice, wide: torch.dtype) -> Tensor:
    """[B, H, T, D] -> contiguous [c*H, T, D] of one chunk, in the dtype to compute in."""
    part = x[chunk]
    return torch.empty(part.shape, dtype=wide).copy_(part).flatten(0, 1)  # one pass; `to` and `reshape` would be two


class _ChunkedAttention(torch.autograd.Function):
    """softmax(scale * q k^T * factor + bias) v with factor [H, T, T] or [T, T]."""

    @staticmethod
    def forward(ctx, q, k, v, factor, bias, scale, keep_weights):  # type: ignore[no-untyped-def]
        batch, heads, tokens, width = q.shape
        wide = torch.promote_types(q.dtype, torch.float32)
        scaled = scale if factor is None else factor * scale
        # Laid out as the layer wants it next: [B, T, H, D], a view away from [B, T, H*D].
        out = q.new_empty(batch, tokens, heads, width).transpose(1, 2)
        step = _step(batch, heads, tokens, bias, wide)
        weights = torch.empty(batch if keep_weights else step, heads, tokens, tokens, dtype=wide)
        for start in range(0, batch, step):
            chunk = slice(start, start + step)
            scores = torch.bmm(_flat(q, chunk, wide), _flat(k, chunk, wide).transpose(1, 2))
            scores = scores.unflatten(0, (-1, heads)).mul_(scaled)
            if bias is not None:
                scores = add_bias(scores, bias)
            w = torch.softmax(scores, -1, out=weights[chunk] if keep_weights else weights[: len(scores)])
            out[chunk] = torch.bmm(w.flatten(0, 1), _flat(v, chunk, wide)).unflatten(0, (-1, heads))
        ctx.save_for_backward(q, k, v, factor, bias, weights, out)
        ctx.scale = scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx, grad_out):  # type: ignore[no-untyped-def]
        q, k, v, factor, bias, weights, out = ctx.saved_tensors
        batch, heads, tokens, _ = q.shape
        wide = weights.dtype
        scaled = ctx.scale if factor is None else factor * ctx.scale
        grad_q, grad_k, grad_v = (torch.empty_like(out) for _ in range(3))
        grad_factor = torch.zeros_like(factor) if ctx.needs_input_grad[3] else None
        grad_bias = torch.zeros_like(bias) if ctx.needs_input_grad[4] else None
        step = _step(batch, heads, tokens, bias, wide)
        for start in range(0, batch, step):
            chunk = slice(start, start + step)
            qc, kc, vc, go = (_flat(x, chunk, wide) for x in (q, k, v, grad_out))
            w = weights[chunk].flatten(0, 1)  # [c*H, T, T]
            grad_v[chunk] = torch.bmm(w.transpose(1, 2), go).unflatten(0, (-1, heads))
            # Softmax backward: dS = P * (dP - rowsum(P * dP)), and that row sum is <dO, O>.
            rowsum = (go * _flat(out, chunk, wide)).sum(-1, keepdim=True)
            grad_s = torch.bmm(go, vc.transpose(1, 2)).sub_(rowsum).mul_(w).unflatten(0, (-1, heads))
            if grad_bias is not None:
                _accumulate(grad_bias, grad_s)
            if grad_factor is not None:
                raw = torch.bmm(qc, kc.transpose(1, 2)).view_as(grad_s)
                grad_factor += raw.mul_(grad_s).sum_to_size(grad_factor.shape)
            grad_s = grad_s.mul_(scaled).flatten(0, 1)
            grad_q[chunk] = torch.bmm(grad_s, kc).unflatten(0, (-1, heads))
            grad_k[chunk] = torch.bmm(grad_s.transpose(1, 2), qc).unflatten(0, (-1, heads))
        if grad_factor is not None:
            grad_factor *= ctx.scale
        return grad_q, grad_k, grad_v, grad_factor, grad_bias, None, None


def _accumulate(grad_bias: Tensor, grad_s: Tensor) -> None:
    """Adds the score gradients of a chunk [c, H, T, T] to those of a bias that may repeat along the batch."""
    groups = grad_bias.shape[0] if grad_bias.dim() == 4 else 1
    if groups > 1:
        grad_s = grad_s.unflatten(0, (-1, groups)).sum(0)
    grad_bias += grad_s.sum_to_size(grad_bias.shape)

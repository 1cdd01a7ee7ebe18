"""The fused kernels as one `torch.library` op: refusals, fake versions, autograd.

The op takes q, k, v with any strides, or the joint projection, whose gradient it then writes as a whole. The mask is an
offset table or dense. Nothing of size B x H x N x N is stored.

Letters: B batch, T tokens, N patches, H heads, D head width, G groups of a bias that repeats along the batch.
"""

import functools
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from gmmvit.attention.reference import OffsetTable, log_mask, unpack
from gmmvit.attention.triton.launch import (
    SHORT,
    WIDEST,
    Inputs,
    Sums,
    forward,
    like_tokens,
    long_backward,
    short_backward,
)


def interpreted() -> bool:
    """Whether Triton interprets its kernels, which works on any device."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _device_refusal(kind: str, index: int | None) -> str | None:
    if not _installed():
        return "Triton is not installed"
    if kind != "cuda":
        return f"it runs on CUDA devices, or by name in Triton's interpreter (TRITON_INTERPRET=1), not on {kind}"
    if torch.version.hip is None and torch.cuda.get_device_capability(index) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or newer"
    return None


# As torch.compiler.assume_constant_result does, without loading the whole compiler.
_device_refusal._dynamo_marked_constant = True  # type: ignore[attr-defined]


def triton_refusal(
    q: Tensor, mask: Tensor | OffsetTable | None, bias: Tensor | None, mode: str, named: bool
) -> str | None:
    """Why the kernels cannot take this call, or None; the interpreter is used only if the backend is `named`."""
    emulated = interpreted() and named
    if not emulated and (reason := _device_refusal(q.device.type, q.device.index)):
        return reason
    # In torch 2.11 `is_exporting` is also true inside torch.compile.
    if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
        return "torch.export needs plain operations"
    if mode not in ("multiply", "log") and mask is not None:
        return f"it does not support mode {mode!r}: its backward pass handles only factors and terms of the logits"
    if q.dtype not in SHORT:
        return f"it does not support {str(q.dtype)[6:]}"
    if emulated and q.dtype == torch.bfloat16:
        return "Triton's interpreter multiplies bfloat16 wrongly"
    if q.shape[3] > WIDEST:
        return f"it supports heads up to {WIDEST} wide, got {q.shape[3]}"
    if not torch.is_grad_enabled():
        return None
    if bias is not None and bias.requires_grad and not _own_gradient(bias, q):
        return "it has no gradient for a bias that repeats over tokens, or over heads as well as the batch"
    values = mask.values if isinstance(mask, OffsetTable) else None
    learned = values is not None and values.requires_grad
    if learned and q.shape[2] > SHORT[q.dtype] and torch.are_deterministic_algorithms_enabled():
        return "it sums an offset table's gradient in no fixed order, and deterministic algorithms were requested"
    return None


def _own_gradient(bias: Tensor, q: Tensor) -> bool:
    """Whether a bias is about as large as the gradient [G, H, T, T] that the kernels write for it."""
    shape = (1,) * (4 - bias.dim()) + tuple(bias.shape)
    return shape[2] == shape[3] == q.shape[2] and (shape[0] == 1 or shape[1] == q.shape[1])


def triton_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    mask: Tensor | OffsetTable | None,
    *,
    scale: float,
    bias: Tensor | None = None,
    prefix_tokens: int = 0,
    mode: str = "multiply",
    dropout_p: float = 0.0,
) -> Tensor:
    """Masked attention in fused kernels; arguments as in `gmm_attention`, with a mask over the patches only. Modes
    "multiply" and "log". Without k and v, q is the projection of `gmm_attention_packed`."""
    values, cols = (mask.values, mask.grid[1]) if isinstance(mask, OffsetTable) else (mask, 0)
    if values is not None and mode == "log":
        values = log_mask(values.to(torch.float32))
    if bias is not None:
        bias = bias[(None,) * (4 - bias.dim())]
    # Drawn on the device: no synchronisation, and every replay of a captured graph draws a new seed.
    seed = torch.randint(2**31 - 1, (1,), device=q.device) if dropout_p > 0 else None
    call = torch.ops.gmmvit.masked_attention
    return call(q, k, v, values, bias, seed, cols, prefix_tokens, float(scale), mode == "log", float(dropout_p))[0]


@torch.library.custom_op("gmmvit::masked_attention", mutates_args=())
def masked_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    cols: int,
    prefix: int,
    scale: float,
    log: bool,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """softmax(scale * q k^T * mask + bias) v -> out [B, H, T, D] and log2 of the softmax sums [B, H, T].

    Without k and v, q is all three packed, [B, T, 3, H, D].
    mask is an offset table [H, 2*rows-1, 2*cols-1], or dense [H, N, N] or [N, N] with cols = 0; with `log` it is added
    to the scores. bias has four dimensions: size 1 where it repeats, G along the batch. seed: int64 [1] for dropout.
    """
    with torch.cuda.device_of(q):  # Triton launches on the current device
        return forward(_inputs(q, k, v, mask, bias, seed, cols, prefix, scale, log, dropout_p))


def _inputs(q: Tensor, k: Tensor | None, v: Tensor | None, mask: Tensor | None, *rest: Any) -> Inputs:
    if mask is not None:
        # Empty if all tokens are prefix.
        mask = None if mask.numel() == 0 else mask.contiguous() if rest[2] else mask
    return Inputs(*_parts(q, k, v), mask, *rest)


def _parts(q: Tensor, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return unpack(q) if k is None or v is None else (q, k, v)


@masked_attention.register_fake
def _(q, k, v, mask, bias, seed, cols, prefix, scale, log, dropout_p):  # type: ignore[no-untyped-def]
    part = _parts(q, k, v)[0]
    return like_tokens(part), part.new_empty(part.shape[:3], dtype=torch.float32)


@torch.library.custom_op("gmmvit::masked_attention_backward", mutates_args=())
def masked_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    cols: int,
    prefix: int,
    scale: float,
    log: bool,
    dropout_p: float,
    mask_wanted: bool,
    bias_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, mask and bias; empty for k and v if q is all three packed, and for mask and bias if not
    wanted."""
    grads = _empty_gradients(q, k)
    parts = _parts(grads[0], None if k is None else grads[1], grads[2])
    x = _inputs(q, k, v, mask, bias, seed, cols, prefix, scale, log, dropout_p)
    sums: Sums = (None, None)
    wanted = mask_wanted and x.mask is not None, bias_wanted
    with torch.cuda.device_of(q):
        if x.short and q.numel():
            sums = short_backward(x, lse, grad_out, parts, *wanted)
        elif q.numel():
            sums = long_backward(x, out, lse, grad_out, parts, *wanted)
    grad_mask = _sum_to(sums[0], mask, mask_wanted, q)
    return (*grads, grad_mask, _sum_to(sums[1], bias, bias_wanted, q))


def _empty_gradients(q: Tensor, k: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    if k is None:
        return q.new_empty(q.shape), q.new_empty(0), q.new_empty(0)
    return like_tokens(q), like_tokens(q), like_tokens(q)


def _sum_to(summands: Tensor | None, like: Tensor | None, wanted: bool, q: Tensor) -> Tensor:
    """The gradient of `like` from float32 summands [slices, H, ...]; for a bias the slices repeat its groups."""
    if like is None or not wanted:
        return q.new_empty(0)
    if summands is None:
        return torch.zeros_like(like)
    parts = summands.unflatten(0, (-1, like.shape[0] if like.dim() == 4 else 1))
    total = parts[0] if parts.shape[0] == 1 else parts.sum(0)
    return total.sum_to_size(like.shape).to(like.dtype)


@masked_attention_backward.register_fake
def _(grad_out, q, k, v, out, lse, mask, bias, seed, cols, prefix, scale, log, dropout_p, mask_wanted, bias_wanted):  # type: ignore[no-untyped-def]
    def like(x, wanted):  # type: ignore[no-untyped-def]
        return x.new_empty(x.shape) if wanted and x is not None else q.new_empty(0)

    return *_empty_gradients(q, k), like(mask, mask_wanted), like(bias, bias_wanted)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, mask, bias, seed, *rest = inputs
    ctx.save_for_backward(q, k, v, *output, mask, bias, seed)
    ctx.rest = rest


def _backward(ctx, grad_out, grad_lse):  # type: ignore[no-untyped-def]
    q, k, v, out, lse, mask, bias, seed = ctx.saved_tensors
    mask_wanted, bias_wanted = ctx.needs_input_grad[3:5]
    *grads, grad_mask, grad_bias = torch.ops.gmmvit.masked_attention_backward(
        grad_out, q, k, v, out, lse, mask, bias, seed, *ctx.rest, mask_wanted, bias_wanted
    )
    if k is None:
        grads[1:] = None, None
    return *grads, grad_mask if mask_wanted else None, grad_bias if bias_wanted else None, *[None] * 6


def _no_second(ctx, *grads):  # type: ignore[no-untyped-def]
    raise NotImplementedError("the backend 'triton' of gmm_attention has no second derivative; backend='eager' has one")


masked_attention.register_autograd(_backward, setup_context=_setup_context)
masked_attention_backward.register_autograd(_no_second)

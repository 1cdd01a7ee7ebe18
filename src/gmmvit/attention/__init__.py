"""`gmm_attention`: the masked attention op. Checks the arguments and chooses a backend.

Letters: B batch, T tokens (prefix first, then patches), N patches, H heads, D head width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmmvit.attention.chunked import chunked_attention
from gmmvit.attention.eager import eager_attention
from gmmvit.attention.reference import (
    MODES,
    OffsetTable,
    check_table,
    dense_mask,
    gaussian_mixture_table,
    patch_offsets,
    reference_attention,
    unpack,
    with_prefix,
)
from gmmvit.attention.triton.op import triton_attention, triton_refusal
from gmmvit.checks import fraction, integer, one_of, real
from gmmvit.text import short

__all__ = [
    "BACKENDS", "MODES", "OffsetTable", "dense_mask", "explain", "gaussian_mixture_table", "gmm_attention",
    "gmm_attention_packed", "patch_offsets", "reference_attention", "unpack", "with_prefix",
]  # fmt: skip

#: The backends by name, in order of preference where several support a device. "triton" reads offset tables, the others
#: take dense masks. `explain` says why a backend cannot take a call.
BACKENDS: dict[str, Callable[..., Tensor]] = {
    "triton": triton_attention,
    "chunked": chunked_attention,
    "eager": eager_attention,
    "reference": reference_attention,
}


class _Request(NamedTuple):
    """What the choice of a backend depends on."""

    q: Tensor
    mask: Tensor | OffsetTable | None
    bias: Tensor | None
    mode: str
    dropout_p: float


def _refusal(backend: str, request: _Request, named: bool) -> str | None:
    """Why `backend` cannot compute this call, None if it can; `named`: the caller requested it by name."""
    q, mask, bias, mode, dropout_p = request
    if backend not in ("triton", "chunked"):
        return None
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return "torch.func (vmap, grad, jvp) needs plain operations"
    if backend == "triton":
        return triton_refusal(q, mask, bias, mode, named)
    if q.device.type != "cpu":
        return f"it runs only on the CPU, q is on {q.device}"
    if mode not in ("multiply", "log") and mask is not None:
        return f"it does not support mode {mode!r}"
    if dropout_p > 0:
        return "it does not support attention dropout"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "torch.compile, torch.export and torch.jit.trace need plain operations"
    return None


def explain(
    q: Tensor,
    mask: Tensor | OffsetTable | None = None,
    *,
    bias: Tensor | None = None,
    mode: str = "multiply",
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> str:
    """Which backend `gmm_attention` takes for these arguments, and why not the others: one line each.

    Arguments as in `gmm_attention`. Raises ValueError for a backend that does not exist or cannot take the call.
    """
    request = _Request(q, mask, bias, mode, dropout_p)
    chosen = _choose(backend, request)
    lines = [f"{chosen}: taken, {'the fastest that can' if backend == 'auto' else 'requested by name'}"]
    for name in BACKENDS:
        if name != chosen:
            refusal = _refusal(name, request, named=False)
            lines.append(
                f"{name}: not taken, {refusal or ('slower' if backend == 'auto' else 'another was requested')}"
            )
    return "\n".join(lines)


def _choose(backend: str, request: _Request) -> str:
    if backend == "auto":
        return next(name for name in BACKENDS if _refusal(name, request, named=False) is None)
    one_of("backend", backend, ("auto", *BACKENDS))
    reason = _refusal(backend, request, named=True)
    if reason:
        raise ValueError(f"backend={backend!r} cannot take this call: {reason}")
    return backend


def gmm_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | OffsetTable | None,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    prefix_tokens: int = 0,
    mode: str = "multiply",
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Attention with logits weighted by a mask over the patch grid: softmax(scale * q k^T * M + bias) v.

    Args:
        q, k, v: [B, H, T, D], first the `prefix_tokens`, then the N patches in row-major order.
        mask: dense [H, N, N] or [N, N]; or an `OffsetTable` of [H, 2*rows-1, 2*cols-1] with its grid; None means ones.
        scale: factor of the scores, by default D ** -0.5.
        bias: added to the logits after the mask; broadcasts to [B, H, T, T], or is [G, H or 1, T, T] with G dividing B.
        prefix_tokens: leading tokens without a place on the grid (class, register, distillation); never masked.
        mode: "multiply" (the paper), "log" (softmax(S + log M), M > 0) or "post" (softmax(S) * M, not renormalised).
        dropout_p: dropout of the attention weights, in [0, 1). Pass 0 outside training.
        backend: "auto" or a name from `BACKENDS`. A named backend is used or refused with the reason, never replaced.

    Returns:
        [B, H, T, D] in the dtype of q; differentiable in q, k, v, mask and bias.

    Raises:
        ValueError, TypeError: names the argument, its value and what is allowed.

    Source: arXiv 2309.05375, section 3.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor) or x.dim() != 4:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} must be a tensor [batch, heads, tokens, head width], got {got}")
    return _attend((q, k, v), (q, k, v), mask, scale, bias, prefix_tokens, mode, dropout_p, backend)


def gmm_attention_packed(
    qkv: Tensor,
    mask: Tensor | OffsetTable | None,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    prefix_tokens: int = 0,
    mode: str = "multiply",
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """`gmm_attention` of a joint qkv projection. The fused backends write its gradient as one tensor, which saves a
    copy.

    Args:
        qkv: [B, T, 3, H, D]: the query, key and value of each token for all heads.
        mask, scale, bias, prefix_tokens, mode, dropout_p, backend: as in `gmm_attention`.

    Returns:
        [B, H, T, D] in the dtype of qkv; equals `gmm_attention`, gradients included.

    Raises:
        ValueError, TypeError: names the argument, its value and what is allowed.
    """
    if not isinstance(qkv, Tensor) or qkv.dim() != 5 or qkv.shape[2] != 3:
        got = tuple(qkv.shape) if isinstance(qkv, Tensor) else type(qkv).__name__
        raise TypeError(f"qkv must be a tensor [batch, tokens, 3, heads, head width], got {got}")
    parts = unpack(qkv)
    return _attend(parts, (qkv, None, None), mask, scale, bias, prefix_tokens, mode, dropout_p, backend)


def _attend(
    parts: tuple[Tensor, Tensor, Tensor],
    given: tuple[Tensor, Tensor | None, Tensor | None],
    mask: Tensor | OffsetTable | None,
    scale: float | None,
    bias: Tensor | None,
    prefix_tokens: int,
    mode: str,
    dropout_p: float,
    backend: str,
) -> Tensor:
    """Checks the arguments of both functions and calls a backend. `parts` are q, k and v; `given` are the caller's
    tensors, which fused backends take unsplit."""
    q = parts[0]
    _check_tokens(*parts, mode, dropout_p, prefix_tokens)
    _check_mask(mask, q, prefix_tokens)
    _check_bias(bias, q)
    if scale is None:
        scale = q.shape[-1] ** -0.5
    else:
        real("scale", scale)
    chosen = _choose(backend, _Request(q, mask, bias, mode, dropout_p))
    rest: dict[str, Any] = {"scale": scale, "bias": bias, "mode": mode, "dropout_p": dropout_p}
    if chosen == "triton":
        return triton_attention(*given, mask, prefix_tokens=prefix_tokens, **rest)
    dense = dense_mask(mask) if isinstance(mask, OffsetTable) else mask
    dense = None if dense is None else with_prefix(dense, prefix_tokens)
    return BACKENDS[chosen](*(given if chosen == "chunked" else parts), dense, **rest)


def _check_tokens(q: Tensor, k: Tensor, v: Tensor, mode: str, dropout_p: float, prefix_tokens: int) -> None:
    if q.shape != k.shape or q.shape != v.shape:
        raise ValueError(f"q, k and v must have one shape, got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    if q.shape[1] == 0 or q.shape[3] == 0:
        raise ValueError(f"q, k and v must have at least one head of width 1 or more, got {tuple(q.shape)}")
    if q.dtype != k.dtype or q.dtype != v.dtype or not q.is_floating_point():
        raise TypeError(f"q, k and v must have one floating-point dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if q.device != k.device or q.device != v.device:
        raise ValueError(f"q, k and v must be on one device, got {q.device}, {k.device}, {v.device}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check_dense(name, x)
    one_of("mode", mode, MODES)
    fraction("dropout_p", dropout_p)
    integer("prefix_tokens", prefix_tokens, 0, q.shape[2])


def _check_mask(mask: Tensor | OffsetTable | None, q: Tensor, prefix_tokens: int) -> None:
    if mask is None:
        return
    heads, patches = q.shape[1], q.shape[2] - prefix_tokens
    if isinstance(mask, OffsetTable):
        check_table(mask)
        _check_place("mask", mask.values, q)
        rows, cols = mask.grid
        if mask.values.shape[0] != heads:
            raise ValueError(f"mask: the offset table has {mask.values.shape[0]} heads, q has {heads}")
        if rows * cols != patches:
            raise ValueError(f"mask: the grid {rows} x {cols} has {rows * cols} patches, q has {patches}")
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, an OffsetTable or None, got {type(mask).__name__}")
    _check_place("mask", mask, q)
    if tuple(mask.shape) not in ((heads, patches, patches), (patches, patches)):
        raise ValueError(
            f"mask must be {(heads, patches, patches)} or {(patches, patches)} for {heads} heads and {patches} patches "
            f"({prefix_tokens} prefix tokens), got {tuple(mask.shape)}"
        )


def _check_place(name: str, x: Tensor, q: Tensor) -> None:
    if x.device != q.device:
        raise ValueError(f"{name} must be on the device of q, {q.device}, got {x.device}")
    _check_dense(name, x)


def _check_dense(name: str, x: Tensor) -> None:
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {str(x.layout)[6:]}: call to_dense()")


def _check_bias(bias: Tensor | None, q: Tensor) -> None:
    if bias is None:
        return
    if not isinstance(bias, Tensor) or not bias.is_floating_point():
        got = bias.dtype if isinstance(bias, Tensor) else short(bias)
        raise TypeError(f"bias must be a floating-point tensor that is added to the logits, or None, got {got}")
    _check_place("bias", bias, q)
    batch, heads, tokens, _ = q.shape
    shape = (1,) * (4 - bias.dim()) + tuple(bias.shape)
    fits = len(shape) == 4 and shape[1] in (1, heads) and shape[2] in (1, tokens) and shape[3] in (1, tokens)
    if not fits or shape[0] == 0 or batch % shape[0]:
        raise ValueError(
            f"bias must broadcast to {(batch, heads, tokens, tokens)}, or have a leading size that divides {batch}, "
            f"got {tuple(bias.shape)}"
        )

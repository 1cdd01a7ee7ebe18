"""The fused kernels as one `torch.library` op: launches, fake versions, autograd.

The op takes q, k, v as they lie in memory (views of a packed projection included) and the mask as it is, an offset
table or dense; nothing of size B x H x N x N is stored. Triton is imported at the first launch.

Letters: B batch, T tokens, N patches, H heads, D head width, G groups of a bias that repeats along the batch.
"""

import functools
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmmvit.attention.reference import OffsetTable, log_mask

SHORT = 64  # tokens that one tile holds; beyond, the kernels go over the keys in blocks
WIDEST = 128  # head width


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on any device."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def triton_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | OffsetTable | None,
    *,
    scale: float,
    bias: Tensor | None = None,
    prefix_tokens: int = 0,
    mode: str = "multiply",
    dropout_p: float = 0.0,
) -> Tensor:
    """Masked attention in fused kernels; arguments as in `gmm_attention`, the mask an offset table or dense over the
    patches alone. Modes "multiply" and "log"."""
    values, cols = (mask.values, mask.grid[1]) if isinstance(mask, OffsetTable) else (mask, 0)
    if values is not None and mode == "log":
        values = log_mask(values.to(torch.float32))
    if bias is not None:
        bias = bias[(None,) * (4 - bias.dim())]
    # Drawn on the device: no wait for it, and a captured graph draws anew in every replay.
    seed = torch.randint(2**31 - 1, (1,), device=q.device) if dropout_p > 0 else None
    call = torch.ops.gmmvit.masked_attention
    return call(q, k, v, values, bias, seed, cols, prefix_tokens, float(scale), mode == "log", float(dropout_p))[0]


class Tiles(NamedTuple):
    """Sizes of a launch: queries and keys of a tile, warps of a program, stages of its pipeline."""

    BM: int
    BN: int
    num_warps: int
    num_stages: int


def short_tiles(tokens: int) -> Tiles:
    """One tile that holds all tokens."""
    side = max(16, 1 << (tokens - 1).bit_length())
    return Tiles(side, side, {16: 1, 32: 2, 64: 4}[side], 2)


def long_tiles(kernel: str, tokens: int, width: int, dtype: torch.dtype) -> Tiles:
    """For more than `SHORT` tokens: kernel is "forward", "q", "kv" or "dense"; width is D rounded up."""
    if dtype == torch.float32:  # products without tensor cores: tiles that registers hold
        return Tiles(32, 32, 4, 1)
    if kernel == "forward":
        return Tiles(128, 64, 8, 3) if width > 64 or tokens > 512 else Tiles(64, 64, 4, 3)
    if kernel == "dense":
        return Tiles(64, 64, 4, 2)
    return Tiles(64, 64, 8, 2) if width > 64 else Tiles(64, 64, 4, 2)


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _slices(batch: int, groups: int, programs: int, device: torch.device) -> int:
    """Into how many parts the batch is cut, each a program's for every one of the `programs` it takes anyway: enough
    for four programs a processor, of equal length, and a multiple of the groups, so that a part shares its bias."""
    wanted = max(1, 4 * _processors(device) // programs)
    samples = batch // groups
    parts = max(1, min(samples, wanted // groups))
    return groups * -(-samples // -(-samples // parts))


def _precision(dtype: torch.dtype) -> str:
    """Of products of float32: what `torch.set_float32_matmul_precision` allows."""
    exact = dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    return "ieee" if exact else "tf32"


def _like_tokens(q: Tensor) -> Tensor:
    """An empty [B, H, T, D] laid out as [B, T, H, D]: a view away from what the next layer takes."""
    batch, heads, tokens, width = q.shape
    return q.new_empty(batch, tokens, heads, width).transpose(1, 2)


class _Call(NamedTuple):
    """What the launches of one call share."""

    strides: tuple[int, ...]  # of mask and bias
    sizes: tuple[Any, ...]  # B, H, T, rows, cols, groups
    constants: dict[str, Any]
    width: int  # D rounded up


def _describe(
    q: Tensor, mask: Tensor | None, bias: Tensor | None, seed: Tensor | None, cols: int, prefix: int, log: bool
) -> _Call:
    batch, heads, tokens, width = q.shape
    kind = "none" if mask is None else "table" if cols else "dense"
    rows = 1
    mask_strides: tuple[int, ...] = (0, 0, 0)
    if mask is not None:
        rows, cols = ((mask.shape[1] + 1) // 2, cols) if cols else (1, tokens - prefix)
        mask_strides = mask.stride() if mask.dim() == 3 else (0, *mask.stride())
    bias_strides: tuple[int, ...] = (0, 0, 0, 0)
    groups = 1
    if bias is not None:
        groups = bias.shape[0]
        bias_strides = tuple(0 if size == 1 else step for size, step in zip(bias.shape, bias.stride(), strict=True))
    padded = max(16, 1 << (width - 1).bit_length())
    constants = {
        "PREFIX": prefix,
        "MASK": kind,
        "LOG": log,
        "BIAS": bias is not None,
        "DROPOUT": seed is not None,
        "PRECISION": _precision(q.dtype),
        "D": width,
        "BD": padded,
    }
    sizes = (batch, heads, tokens, rows, max(cols, 1), groups)
    return _Call((*mask_strides, *bias_strides), sizes, constants, padded)


def _even(call: _Call, tiles: Tiles) -> bool:
    tokens, width = call.sizes[2], call.constants["D"]
    return tokens % tiles.BM == 0 and tokens % tiles.BN == 0 and width == call.width


def _table_of(mask: Tensor | None, cols: int) -> Tensor | None:
    return mask.contiguous() if mask is not None and cols else mask  # the kernels read its cells by one number


@torch.library.custom_op("gmmvit::masked_attention", mutates_args=())
def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    cols: int,
    prefix: int,
    scale: float,
    log: bool,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """softmax(scale * q k^T * mask + bias) v -> out [B, H, T, D] and the logarithm of the softmax's sums [B, H, T].

    mask is an offset table [H, 2*rows-1, 2*cols-1], or dense [H, N, N] or [N, N] with cols = 0; with `log` it is added
    to the scores. bias has four dimensions, sizes 1 where it repeats, G along the batch. seed: int64 [1] for dropout.
    """
    batch, heads, tokens, _ = q.shape
    out, lse = _like_tokens(q), q.new_empty(batch, heads, tokens, dtype=torch.float32)
    if out.numel() == 0:
        return out, lse
    mask = _table_of(mask, cols)
    call = _describe(q, mask, bias, seed, cols, prefix, log)
    pointers = (q, k, v, out, lse, mask, bias, seed, *q.stride(), *k.stride(), *v.stride(), *call.strides)
    if tokens <= SHORT:
        from gmmvit.attention.kernels import short_forward

        tiles = short_tiles(tokens)
        slices = _slices(batch, call.sizes[-1], heads, q.device)
        short_forward[(heads * slices,)](
            *pointers, *call.sizes, slices, scale, dropout_p, **call.constants, EVEN=_even(call, tiles),
            BT=tiles.BM, num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
        return out, lse
    from gmmvit.attention.long_kernels import long_forward

    tiles = long_tiles("forward", tokens, call.width, q.dtype)
    long_forward[(-(-tokens // tiles.BM) * batch * heads,)](
        *pointers, *call.sizes, scale, dropout_p, **call.constants, EVEN=_even(call, tiles), **tiles._asdict()
    )
    return out, lse


@masked_attention.register_fake
def _(q, k, v, mask, bias, seed, cols, prefix, scale, log, dropout_p):  # type: ignore[no-untyped-def]
    return _like_tokens(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("gmmvit::masked_attention_backward", mutates_args=())
def masked_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
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
    """Gradients of q, k, v, mask and bias; the last two empty where they are not wanted."""
    grads = tuple(_like_tokens(q) for _ in range(3))
    table = _table_of(mask, cols)
    call = _describe(q, table, bias, seed, cols, prefix, log)
    if out.numel() == 0:
        sums: tuple[Tensor | None, Tensor | None] = (None, None)
    else:
        common = (q, k, v, out, grad_out, lse, table, bias, seed)
        launch = _short_backward if q.shape[2] <= SHORT else _long_backward
        sums = launch(call, common, grads, scale, dropout_p, mask_wanted, bias_wanted)
    grad_mask = _sum_to(sums[0], mask, mask_wanted, q)
    grad_bias = _sum_to(sums[1], bias, bias_wanted, q)
    return (*grads, grad_mask, grad_bias)


def _sum_to(summands: Tensor | None, like: Tensor | None, wanted: bool, q: Tensor) -> Tensor:
    """The gradient of `like` from float32 summands [slices, H, ...]; slices are groups of a bias, repeated."""
    if like is None or not wanted:
        return q.new_empty(0)
    if summands is None:
        return torch.zeros_like(like)
    if like.dim() == 4:
        summands = summands.unflatten(0, (-1, like.shape[0])).sum(0)
    else:
        summands = summands.sum(0)
    return summands.sum_to_size(like.shape).to(like.dtype)


@masked_attention_backward.register_fake
def _(grad_out, q, k, v, out, lse, mask, bias, seed, cols, prefix, scale, log, dropout_p, mask_wanted, bias_wanted):  # type: ignore[no-untyped-def]
    def like(x, wanted):  # type: ignore[no-untyped-def]
        return x.new_empty(x.shape) if wanted and x is not None else q.new_empty(0)

    return _like_tokens(q), _like_tokens(q), _like_tokens(q), like(mask, mask_wanted), like(bias, bias_wanted)


def _short_backward(
    call: _Call,
    common: tuple[Any, ...],
    grads: tuple[Tensor, ...],
    scale: float,
    dropout_p: float,
    mask_wanted: bool,
    bias_wanted: bool,
) -> tuple[Tensor | None, Tensor | None]:
    from gmmvit.attention.kernels import short_backward

    q, k, v, _, grad_out, lse, mask, bias, seed = common
    batch, heads, tokens, *_, groups = call.sizes
    tiles = short_tiles(tokens)
    slices = _slices(batch, groups, heads, q.device)
    wide = functools.partial(torch.empty, dtype=torch.float32, device=q.device)
    grad_mask = wide(slices, heads, *mask.shape[-2:]) if mask_wanted else None
    grad_bias = wide(slices, heads, tokens, tokens) if bias_wanted else None
    short_backward[(heads * slices,)](
        q, k, v, grad_out, lse, mask, bias, seed, *grads, grad_mask, grad_bias,
        *q.stride(), *k.stride(), *v.stride(), *grad_out.stride(), *call.strides, *call.sizes, slices, scale, dropout_p,
        **call.constants, GRAD_MASK=mask_wanted, GRAD_BIAS=bias_wanted, EVEN=_even(call, tiles),
        BT=tiles.BM, num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return grad_mask, grad_bias


def _long_backward(
    call: _Call,
    common: tuple[Any, ...],
    grads: tuple[Tensor, ...],
    scale: float,
    dropout_p: float,
    mask_wanted: bool,
    bias_wanted: bool,
) -> tuple[Tensor | None, Tensor | None]:
    from gmmvit.attention.long_kernels import long_backward_dense, long_backward_kv, long_backward_q

    q, k, v, out, grad_out, lse, mask, bias, seed = common
    batch, heads, tokens, rows, cols, groups = call.sizes
    grad_q, grad_k, grad_v = grads
    delta = torch.empty_like(lse)
    strides = (*q.stride(), *k.stride(), *v.stride(), *grad_out.stride(), *call.strides)
    table_wanted = mask_wanted and call.constants["MASK"] == "table"
    grad_table = torch.zeros_like(mask, dtype=torch.float32).unsqueeze(0) if table_wanted else None

    tiles = long_tiles("q", tokens, call.width, q.dtype)
    aligned = call.constants["PREFIX"] == 0 and tiles.BM == tiles.BN == cols
    long_backward_q[(-(-tokens // tiles.BM) * batch * heads,)](
        q, k, v, out, grad_out, lse, delta, mask, bias, seed, grad_q, grad_table, *strides, *call.sizes, scale,
        dropout_p, **call.constants, GRAD_TABLE=table_wanted, ALIGNED=aligned, EVEN=_even(call, tiles),
        **tiles._asdict(),
    )  # fmt: skip
    tiles = long_tiles("kv", tokens, call.width, q.dtype)
    long_backward_kv[(-(-tokens // tiles.BN) * batch * heads,)](
        q, k, v, grad_out, lse, delta, mask, bias, seed, grad_k, grad_v, *strides, *call.sizes, scale, dropout_p,
        **call.constants, EVEN=_even(call, tiles), **tiles._asdict(),
    )  # fmt: skip
    dense_wanted = mask_wanted and not table_wanted
    if not (dense_wanted or bias_wanted):
        return grad_table, None
    tiles = long_tiles("dense", tokens, call.width, q.dtype)
    pairs = -(-tokens // tiles.BM) * -(-tokens // tiles.BN)
    slices = _slices(batch, groups, pairs * heads, q.device)
    wide = functools.partial(torch.empty, dtype=torch.float32, device=q.device)
    grad_mask = wide(slices, heads, *mask.shape[-2:]) if dense_wanted else None
    grad_bias = wide(slices, heads, tokens, tokens) if bias_wanted else None
    long_backward_dense[(pairs * heads * slices,)](
        q, k, v, grad_out, lse, delta, mask, bias, seed, grad_mask, grad_bias, *strides, *call.sizes, slices, scale,
        dropout_p, **call.constants, GRAD_MASK=dense_wanted, GRAD_BIAS=bias_wanted, EVEN=_even(call, tiles),
        **tiles._asdict(),
    )  # fmt: skip
    return (grad_table if table_wanted else grad_mask), grad_bias


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
    return *grads, grad_mask if mask_wanted else None, grad_bias if bias_wanted else None, *[None] * 6


def _no_second(ctx, *grads):  # type: ignore[no-untyped-def]
    raise NotImplementedError(
        "the backend 'triton' of gmm_attention has no second derivative; backend='eager' has one"
    )


masked_attention.register_autograd(_backward, setup_context=_setup_context)
masked_attention_backward.register_autograd(_no_second)


"""Launches the kernels: chooses kernel, tiles and grid, and allocates outputs.

Triton is imported at the first launch. Tiles depend only on shape and dtype; nothing is tuned at run time.

Letters: B batch, T tokens, N patches, H heads, D head width, G groups of a bias that repeats along the batch.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Tokens that fit in one tile; beyond, the kernels loop over blocks of keys. float32 products need more registers.
SHORT = {torch.float16: 64, torch.bfloat16: 64, torch.float32: 32}
WIDEST = 128  # head width
MOST_CELLS = 8 << 20  # of a laid-out mask, 32 MB


class Tiles(NamedTuple):
    """Sizes of a launch: queries and keys per tile, warps per program, pipeline stages."""

    BM: int
    BN: int
    num_warps: int
    num_stages: int


def short_tiles(kernel: str, tokens: int, width: int, dtype: torch.dtype) -> Tiles:
    """One tile for all tokens; kernel is "forward" or "backward", width is D rounded up."""
    side = max(16, 1 << (tokens - 1).bit_length())
    warps = {16: 1, 32: 2, 64: 4}[side]
    if kernel == "backward" and side == 64 and width > 32:
        return Tiles(side, side, 8, 1)  # with more stages ptxas spills thousands of bytes on sm_80
    return Tiles(side, side, warps * 2 if width > 64 or dtype == torch.float32 else warps, 2)


def long_tiles(kernel: str, tokens: int, width: int, dtype: torch.dtype, roomy: bool = True) -> Tiles:
    """For more tokens than SHORT: kernel is "forward", "q", "kv", "table" (BM = BN) or "dense"; width is D rounded up;
    `roomy` as in `is_roomy`."""
    if dtype == torch.float32:
        return Tiles(64, 32, 8, 1) if kernel == "dense" else Tiles(32, 32, 8 if width > 64 else 4, 1)
    if kernel == "table":
        return Tiles(64, 64, 8, 1) if width > 64 else Tiles(64, 64, 4, 2)
    if width > 64:
        if not roomy:
            return Tiles(64, 32, 4, 2)
        return Tiles(128, 64, 8, 2) if kernel == "forward" else Tiles(64, 64, 8, 2)
    if kernel == "forward":
        return Tiles(64, 32, 4, 3)
    if kernel == "kv":
        return Tiles(64, 64, 4, 3 if roomy else 2) if tokens > 512 else Tiles(32, 64, 4, 2)
    return Tiles(64, 64, 4, 2)


def whole_tiles(x: "Inputs") -> Tiles | None:
    """For a backward pass with one program for each head of each sample; None where that spills registers (dropout,
    wide heads, float32: docs/log.md), exceeds the shared memory or leaves processors idle."""
    batch, heads, tokens, _ = x.q.shape
    fits = tokens <= (256 if is_roomy(x.q.device) else 128) and x.width <= 32
    if not fits or x.seed is not None or x.q.dtype == torch.float32 or batch * heads < _processors(x.q.device):
        return None
    return Tiles(128, 32, 4, 2) if tokens <= 128 else Tiles(256, 32, 8, 2)


def mask_layout(heads: int, tokens: int, cols: int, prefix: int) -> str:
    """How the long kernels read an offset table: "shifted" or "whole", both from `lay_out_mask`, or the "table" itself,
    cell by cell. "shifted" takes twice the table's memory, but its loads are wide only without prefix tokens and with
    grid rows that start at multiples of eight tokens."""
    if prefix == 0 and cols % 8 == 0:
        return "shifted"
    return "whole" if heads * _padded(tokens) ** 2 <= MOST_CELLS else "table"


def _padded(tokens: int) -> int:
    """The token count rounded up to the blocks of every kernel."""
    return -(-tokens // 128) * 128


@functools.cache
def is_roomy(device: torch.device) -> bool:
    """Whether a program gets the shared memory of data centre GPUs, 163 kB or more; others have about 99 kB."""
    if device.type != "cuda":
        return True
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0) > 160 << 10


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def slices_of(batch: int, groups: int, programs: int, device: torch.device) -> int:
    """Into how many slices of equal length the batch is cut; each multiplies the number of `programs`. Enough for four
    programs per processor, and a multiple of the groups, so that a slice shares its bias."""
    wanted = max(1, 4 * _processors(device) // programs)
    samples = batch // groups
    parts = max(1, min(samples, wanted // groups))
    return groups * -(-samples // -(-samples // parts))


def _precision(dtype: torch.dtype) -> str:
    """Precision of float32 products on tensor cores: three TF32 products keep the digits, a single one is used if
    `torch.set_float32_matmul_precision` allows less than "highest"."""
    exact = dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    return "tf32x3" if exact else "tf32"


def like_tokens(q: Tensor) -> Tensor:
    """An empty [B, H, T, D] that is [B, T, H, D] in memory, so the next layer gets it as a view."""
    batch, heads, tokens, width = q.shape
    return q.new_empty(batch, tokens, heads, width).transpose(1, 2)


class Inputs(NamedTuple):
    """Inputs of forward and backward: q, k, v [B, H, T, D]; the mask, a contiguous offset table, or dense with
    cols = 0; the four-dimensional bias; the dropout seed."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    bias: Tensor | None
    seed: Tensor | None
    cols: int
    prefix: int
    scale: float
    log: bool
    dropout_p: float
    kind: str = "table"  # the kernels' name for the layout of a mask with cols > 0

    @property
    def width(self) -> int:
        """D rounded up to a size that matrix products support."""
        return max(16, 1 << (self.q.shape[3] - 1).bit_length())

    @property
    def short(self) -> bool:
        return self.q.shape[2] <= SHORT[self.q.dtype]

    @property
    def groups(self) -> int:
        return 1 if self.bias is None else self.bias.shape[0]

    def tiles(self, kernel: str) -> Tiles:
        if self.short:
            return short_tiles(kernel, self.q.shape[2], self.width, self.q.dtype)
        return long_tiles(kernel, self.q.shape[2], self.width, self.q.dtype, is_roomy(self.q.device))

    def strides(self, *more: Tensor) -> tuple[int, ...]:
        """Strides of q, k, v, the tensors `more`, mask and bias, in the kernels' order; 0 for repeated axes."""
        mask, bias = self.mask, self.bias
        mask_strides = (0, 0, 0)
        if mask is not None:
            mask_strides = (mask.stride(0) if mask.dim() > 2 else 0, mask.stride(-2), mask.stride(-1))
        bias_strides: tuple[int, ...] = (0, 0, 0, 0)
        if bias is not None:
            bias_strides = tuple(0 if n == 1 else step for n, step in zip(bias.shape, bias.stride(), strict=True))
        tokens = (self.q, self.k, self.v, *more)
        return (*(step for x in tokens for step in x.stride()), *mask_strides, *bias_strides)

    def sizes(self) -> tuple[int, ...]:
        """B, H, T, rows of the grid, G."""
        batch, heads, tokens, _ = self.q.shape
        rows = (tokens - self.prefix) // self.cols if self.cols and self.mask is not None else 1
        return batch, heads, tokens, rows, self.groups

    def constants(self, tiles: Tiles) -> dict[str, Any]:
        """The compile-time constants of the kernels."""
        tokens, width = self.q.shape[2:]
        even = tokens % tiles.BM == 0 and tokens % tiles.BN == 0 and width == self.width
        sides = {"BT": tiles.BM} if self.short else {"BM": tiles.BM, "BN": tiles.BN}
        return sides | {
            "COLS": max(self.cols, 1),
            "PREFIX": self.prefix,
            "MASK": "none" if self.mask is None else self.kind if self.cols else "dense",
            "LOG": self.log,
            "BIAS": self.bias is not None,
            "DROPOUT": self.seed is not None,
            "EVEN": even,
            "PRECISION": _precision(self.q.dtype),
            "D": width,
            "BD": self.width,
            "num_warps": tiles.num_warps,
            "num_stages": tiles.num_stages,
        }


def laid_out(x: Inputs, backward: bool) -> tuple[Inputs, ...]:
    """x with its offset table laid out as `mask_layout` says, for tiles with keys as neighbours; with `backward` a
    second one for tiles with queries as neighbours."""
    _, heads, tokens, rows, _ = x.sizes()
    layout = mask_layout(heads, tokens, x.cols, x.prefix) if x.mask is not None and x.cols else "table"
    if x.mask is None or layout == "table":
        return (x,) * (1 + backward)
    from gmmvit.attention.triton.long_kernels import lay_out_mask

    centre = -(-_padded(tokens) // x.cols) - 1
    sides = (_padded(tokens),) * 2 if layout == "whole" else (2 * centre + 1, 2, 2 * x.cols)
    out = x.mask.new_empty(1 + backward, heads, *sides, dtype=torch.float32)
    cells, block = out[0, 0].numel(), 1024
    lay_out_mask[(-(-cells // block), heads, 1 + backward)](
        x.mask, out, heads, tokens, rows, centre, cells, x.scale, COLS=x.cols, PREFIX=x.prefix, LOG=x.log,
        WHOLE=layout == "whole", SIDE=sides[-1], BLOCK=block, num_warps=4, num_stages=1,
    )  # fmt: skip
    if layout == "whole":
        views = ((out[0], "whole"), *([(out[1].transpose(-2, -1), "whole")] if backward else []))
    else:
        views = tuple(zip(out[:, :, centre:].unbind(0), ("by keys", "by queries"), strict=False))
    return tuple(x._replace(mask=view, kind=kind) for view, kind in views)


def forward(x: Inputs) -> tuple[Tensor, Tensor]:
    """The output [B, H, T, D] and log2 of the softmax sums [B, H, T]."""
    batch, heads, tokens, _ = x.q.shape
    out, lse = like_tokens(x.q), x.q.new_empty(batch, heads, tokens, dtype=torch.float32)
    if out.numel() == 0:
        return out, lse
    if not x.short:
        (x,) = laid_out(x, backward=False)
    tiles = x.tiles("forward")
    arguments = (x.q, x.k, x.v, out, lse, x.mask, x.bias, x.seed, *x.strides(), *x.sizes())
    if x.short:
        from gmmvit.attention.triton.kernels import short_forward

        slices = slices_of(batch, x.groups, heads, x.q.device)
        short_forward[(heads * slices,)](*arguments, slices, x.scale, x.dropout_p, **x.constants(tiles))
    else:
        from gmmvit.attention.triton.long_kernels import long_forward

        programs = -(-tokens // tiles.BM) * batch * heads
        long_forward[(programs,)](*arguments, x.scale, x.dropout_p, **x.constants(tiles))
    return out, lse


Sums = tuple[Tensor | None, Tensor | None]  # float32 summands of the gradients of mask and bias: [slices, H, ...]


def short_backward(
    x: Inputs, lse: Tensor, grad_out: Tensor, grads: tuple[Tensor, ...], mask_wanted: bool, bias_wanted: bool
) -> Sums:
    """Fills `grads` of q, k and v: separate tensors from `like_tokens`, or parts of a packed one."""
    from gmmvit.attention.triton.kernels import short_backward as kernel

    batch, heads = x.q.shape[:2]
    slices = slices_of(batch, x.groups, heads, x.q.device)
    grad_mask, grad_bias = _summands(x, slices, mask_wanted, bias_wanted)
    kernel[(heads * slices,)](
        x.q, x.k, x.v, grad_out, lse, x.mask, x.bias, x.seed, *grads, grad_mask, grad_bias,
        *x.strides(grad_out), *x.sizes(), slices, grads[0].stride(2), x.scale, x.dropout_p,
        GRAD_MASK=mask_wanted, GRAD_BIAS=bias_wanted, **x.constants(x.tiles("backward")),
    )  # fmt: skip
    return grad_mask, grad_bias


def long_backward(
    x: Inputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grads: tuple[Tensor, ...],
    mask_wanted: bool,
    bias_wanted: bool,
) -> Sums:
    """Fills `grads` of q, k and v like `short_backward`, in one launch or two; one more lays out a table, and one more
    computes the gradient of an offset table, a dense mask or a bias."""
    from gmmvit.attention.triton.long_kernels import (
        long_backward_dense,
        long_backward_kv,
        long_backward_q,
        long_backward_table,
        whole_backward,
    )

    batch, heads, tokens, _ = x.q.shape
    delta = torch.empty_like(lse)  # row sums

    def common(x: Inputs, outputs: tuple[Any, ...], more: tuple[int, ...] = ()) -> tuple[Any, ...]:
        reads = (x.q, x.k, x.v, grad_out, lse, delta, x.mask, x.bias, x.seed)
        return *reads, *outputs, *x.strides(grad_out), *x.sizes(), *more, x.scale, x.dropout_p

    grad_t = (grads[0].stride(2),)
    whole = whole_tiles(x)
    by_keys, *by_queries = laid_out(x, backward=whole is None)
    if whole:
        whole_backward[(batch * heads,)](*common(by_keys, (out, *grads), grad_t), **by_keys.constants(whole))
    else:
        tiles = x.tiles("q")
        programs = -(-tokens // tiles.BM) * batch * heads
        long_backward_q[(programs,)](*common(by_keys, (out, grads[0]), grad_t), **by_keys.constants(tiles))
        tiles = x.tiles("kv")
        programs = -(-tokens // tiles.BN) * batch * heads
        long_backward_kv[(programs,)](*common(by_queries[0], grads[1:], grad_t), **by_queries[0].constants(tiles))
    grad_table = None
    if x.mask is not None and x.cols and mask_wanted:
        grad_table = torch.zeros_like(x.mask, dtype=torch.float32).unsqueeze(0)
        tiles = x.tiles("table")
        band = max(1, tiles.BM // x.cols) * x.cols
        programs = -(-(tokens - x.prefix) // band) * heads * (-(-band // tiles.BM)) ** 2
        slices = slices_of(batch, 1, programs, x.q.device)
        even = (tokens - x.prefix) % band == 0 and band % tiles.BM == 0 and x.q.shape[3] == x.width
        long_backward_table[(programs * slices,)](
            *common(by_keys, (grad_table,), (slices,)), BAND=band, **(by_keys.constants(tiles) | {"EVEN": even})
        )
    dense_wanted = mask_wanted and grad_table is None
    if not dense_wanted and not bias_wanted:
        return grad_table, None
    tiles = x.tiles("dense")
    pairs = -(-tokens // tiles.BM) * -(-tokens // tiles.BN)
    slices = slices_of(batch, x.groups, pairs * heads, x.q.device)
    sums = _summands(x, slices, dense_wanted, bias_wanted)
    long_backward_dense[(pairs * heads * slices,)](
        *common(x, sums, (slices,)), GRAD_MASK=dense_wanted, GRAD_BIAS=bias_wanted, **x.constants(tiles)
    )
    return sums[0] if dense_wanted else grad_table, sums[1]


def _summands(x: Inputs, slices: int, mask_wanted: bool, bias_wanted: bool) -> Sums:
    _, heads, tokens, _ = x.q.shape
    wide = functools.partial(torch.empty, dtype=torch.float32, device=x.q.device)
    grad_mask = wide(slices, heads, *x.mask.shape[-2:]) if x.mask is not None and mask_wanted else None
    return grad_mask, wide(slices, heads, tokens, tokens) if bias_wanted else None

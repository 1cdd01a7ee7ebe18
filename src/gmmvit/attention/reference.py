"""The formula in plain torch: its only statement, and the oracle of every test.

Letters: B batch, T tokens (prefix and patches), N patches (rows * cols), H heads, D head width, K Gaussians per head,
R = 2*rows-1 and C = 2*cols-1 the sides of an offset table.

    S[b,h,i,j] = scale * <q[b,h,i], k[b,h,j]>
    M[h,i,j]   = sum_k alpha[h,k] * exp(-d2(i,j) / (2 * (sigma[h,k]^2 + 1e-5)))
    O          = softmax(S * M + bias) @ v

Source: Li and Zhang, "Gaussian mixture mask attention", arXiv 2309.05375, section 3. The exponential is taken of the
whole quotient, because exp(-d2) alone underflows beyond ten patches in float32.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gmmvit.checks import is_integer, pair

EPSILON = 1e-5  # added to sigma^2, as in the paper, so that a Gaussian cannot collapse


class OffsetTable(NamedTuple):
    """A mask as one value per offset between two patches.

    `values` is [H, 2*rows-1, 2*cols-1]; `values[h, rows-1+dr, cols-1+dc]` is the mask between a query and the key
    `dr` rows below and `dc` columns to the right. `grid` is (rows, cols). Functions that take a table raise TypeError
    for values that are not a tensor, ValueError for a wrong shape.
    """

    values: Tensor
    grid: tuple[int, int]


class Steps(NamedTuple):
    """Places of queries and keys that do not cover every patch, for example pooled ones.

    Query (r, c) lies at row `query[0] * r + shift[0]` and column `query[1] * c + shift[1]` of the grid, key (r, c) at
    row `key[0] * r` and column `key[1] * c`.
    """

    query: tuple[int, int] = (1, 1)
    key: tuple[int, int] = (1, 1)
    shift: tuple[float, float] = (0.0, 0.0)


EVERY_PATCH = Steps()


def patch_offsets(
    grid: tuple[int, int], device: torch.device | str | None = None, shift: tuple[float, float] = (0.0, 0.0)
) -> Tensor:
    """Row and column offsets of every cell of an offset table, in grid steps: float32 [2, 2*rows-1, 2*cols-1].

    `shift` is how far the queries lie below and right of their patches, as in `Steps`.
    """
    rows, cols = grid
    dr = torch.arange(1 - rows, rows, device=device, dtype=torch.float32) - shift[0]
    dc = torch.arange(1 - cols, cols, device=device, dtype=torch.float32) - shift[1]
    return torch.stack(torch.meshgrid(dr, dc, indexing="ij"))


def gaussian_mixture_table(
    sigma: Tensor, alpha: Tensor, offsets: Tensor, *, correlation: Tensor | None = None, center: Tensor | None = None
) -> Tensor:
    """The Gaussian mixture mask over all offsets: [H, R, C].

    sigma [H, K] in grid steps (one width for both axes) or [H, K, 2] (rows, columns); alpha [H, K]; offsets [2, R, C]
    from `patch_offsets`; correlation [H, K], any real number, squashed to (-0.99, 0.99), rotates the axes; center
    [H, 2] in grid steps moves a head's peak. float64 stays float64, everything else is computed in float32.
    """
    dtype = torch.promote_types(sigma.dtype, torch.float32)
    sigma, alpha, offsets = sigma.to(dtype), alpha.to(dtype), offsets.to(dtype)
    variance = sigma.square() + EPSILON  # [H, K] or [H, K, 2]
    if sigma.dim() == 2 and center is None and correlation is None:
        exponent = offsets.square().sum(0) / (-2 * variance)[..., None, None]  # [H, K, R, C]
    else:
        shift = 0 if center is None else center.to(dtype)[:, :, None, None]
        d_row, d_col = (offsets - shift).expand(sigma.shape[0], -1, -1, -1).unsqueeze(1).unbind(2)  # [H, 1, R, C] each
        var_row, var_col = (variance, variance) if sigma.dim() == 2 else variance.unbind(-1)
        z_row = d_row / var_row.sqrt()[..., None, None]
        z_col = d_col / var_col.sqrt()[..., None, None]
        exponent = -0.5 * (z_row.square() + z_col.square())
        if correlation is not None:
            rho = 0.99 * correlation.to(dtype).tanh()[..., None, None]
            exponent = (exponent + rho * z_row * z_col) / (1 - rho.square())
    return torch.einsum("hk,hkrc->hrc", alpha, exponent.exp())


def check_table(table: OffsetTable) -> None:
    """Raises TypeError if the table's values are not a tensor, ValueError if they do not fit its grid."""
    values = table.values
    if not isinstance(values, Tensor):
        raise TypeError(f"the values of an OffsetTable must be a tensor, got {type(values).__name__}")
    if is_integer(table.grid):
        raise TypeError(f"the grid of an OffsetTable must be a pair (rows, cols), got {table.grid}")
    rows, cols = pair(table.grid, "the grid of an OffsetTable", "(rows, cols)")
    if values.dim() != 3 or tuple(values.shape[1:]) != (2 * rows - 1, 2 * cols - 1):
        raise ValueError(
            f"mask: the offset table of a {rows} x {cols} grid must be [heads, {2 * rows - 1}, {2 * cols - 1}], got "
            f"{tuple(values.shape)}"
        )


def dense_mask(table: OffsetTable, steps: Steps = EVERY_PATCH) -> Tensor:
    """The offset table as a mask for every pair of patches, [H, R, C] -> [H, N, N], or only for the queries and keys
    that `steps` selects, -> [H, Nq, Nk]."""
    check_table(table)
    values, (rows, cols) = table
    (q_row, q_col), (k_row, k_col) = steps.query, steps.key
    # The window of query (r, c) starts at (rows-1-r, cols-1-c): windows in reverse order, then a plain reshape.
    windows = _windows(values, rows, cols)
    windows = windows[:, (rows - 1) % q_row :: q_row, (cols - 1) % q_col :: q_col, ::k_row, ::k_col].flip(1, 2)
    return windows.flatten(3).flatten(1, 2)


def _windows(values: Tensor, rows: int, cols: int) -> Tensor:
    """Every window of a table: [H, R, C] -> [H, rows, cols, rows, cols], a view."""
    if type(rows) is int and type(cols) is int:
        return values.unfold(1, rows, 1).unfold(2, cols, 1)
    values = values.contiguous()  # `unfold` would fix sizes that torch.export keeps dynamic
    head, row, col = values.stride()
    return values.as_strided((values.shape[0], rows, cols, rows, cols), (head, row, col, row, col))


def mask_at(table: OffsetTable, positions: Tensor) -> Tensor:
    """The offset table as a mask for each sample's own patch positions: [H, R, C] -> [B, H, N, N].

    positions [B, N, 2], integers: row and column of each patch, inside the table's grid.
    """
    check_table(table)
    values, (rows, cols) = table
    offsets = positions.unsqueeze(1) - positions.unsqueeze(2)  # [B, query, key, 2]
    cells = (offsets[..., 0] + rows - 1) * (2 * cols - 1) + offsets[..., 1] + cols - 1
    return values.flatten(1).index_select(1, cells.flatten()).unflatten(1, cells.shape).transpose(0, 1)


def unpack(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as views [B, H, T, D] of a joint projection [B, T, 3, H, D]."""
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    return q, k, v


def with_prefix(mask: Tensor, prefix_tokens: int) -> Tensor:
    """Adds rows and columns of ones for tokens without a place on the grid: [..., N, N] -> [..., T, T]."""
    if prefix_tokens == 0:
        return mask
    return torch.nn.functional.pad(mask, (prefix_tokens, 0, prefix_tokens, 0), value=1.0)


def log_mask(mask: Tensor) -> Tensor:
    """log M for mode "log", with M clamped to the smallest positive float32."""
    return mask.clamp_min(torch.finfo(torch.float32).tiny).log()


def add_bias(scores: Tensor, bias: Tensor) -> Tensor:
    """Scores [B, H, T, T] plus a bias that broadcasts to them, or a bias [G, H or 1, T, T] that repeats along the batch
    (the windows of Swin), with G dividing B."""
    groups = bias.shape[0] if bias.dim() == 4 else 1
    if groups in (1, scores.shape[0]):
        return scores + bias
    return (scores.unflatten(0, (-1, groups)) + bias).flatten(0, 1)


class Mode(NamedTuple):
    """How a mask acts: on the scaled scores before the softmax, or on the weights after it, without renormalising;
    `positive` if it needs M > 0."""

    on_scores: Callable[[Tensor, Tensor], Tensor] | None = None
    on_weights: Callable[[Tensor, Tensor], Tensor] | None = None
    positive: bool = False


MODES: dict[str, Mode] = {
    "multiply": Mode(on_scores=torch.mul),  # the paper's
    "log": Mode(on_scores=lambda scores, mask: scores + log_mask(mask), positive=True),
    "post": Mode(on_weights=torch.mul),
}
SOFTMAX = partial(torch.softmax, dim=-1)


def attention_weights(
    scores: Tensor,
    mask: Tensor | None,
    bias: Tensor | None = None,
    mode: str = "multiply",
    softmax: Callable[[Tensor], Tensor] = SOFTMAX,
) -> Tensor:
    """The attention weights for scaled scores [B, H, T, T], a dense mask [H, T, T] or [T, T] and a bias as in
    `add_bias`."""
    on_scores, on_weights, _ = Mode() if mask is None else MODES[mode]
    if on_scores is not None:
        scores = on_scores(scores, mask)  # type: ignore[arg-type]
    weights = softmax(scores if bias is None else add_bias(scores, bias))
    return weights if on_weights is None else on_weights(weights, mask)  # type: ignore[arg-type]


def reference_attention(
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
    """Masked attention, literally the formula: q, k, v [B, H, T, D], dense mask [H, T, T] or [T, T], bias as in
    `add_bias` -> [B, H, T, D]. Half precisions are computed in float32 and rounded once at the end."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = scale * (q.to(dtype) @ k.to(dtype).transpose(-2, -1))
    mask = None if mask is None else mask.to(dtype)
    weights = attention_weights(scores, mask, bias, mode)
    weights = torch.nn.functional.dropout(weights, dropout_p)
    return (weights @ v.to(dtype)).to(q.dtype)

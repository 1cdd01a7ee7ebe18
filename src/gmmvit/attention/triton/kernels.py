"""Triton kernels of masked attention: shared functions, and the pair for up to 64 tokens. `launch.py` launches them.

A program of the short pair handles one head and several samples of the batch. Its mask tile is loaded once and stays in
registers, the softmax sees whole rows, and the gradients of mask and bias are summed in registers over the samples and
written once: no atomics, and the same sum in every run.

Logits, biases and softmax sums are in base 2, because exp2 is one instruction and exp several. A multiplying mask comes
from `mask_at` already times the scale, so a logit is a single product with q k^T.

Letters: B batch, T tokens, H heads, D head width, i queries, j keys; BT, BD the powers of two that hold T and D.
Strides are named by tensor and axis: `q_t` steps one token in q. The output is [B, T, H, D] in memory; the gradients of
q, k and v are too, or all three are [B, T, 3, H, D]: `grad_t` steps one token in them.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(
    base, t, d, stride_t, stride_d, T, D: tl.constexpr, EVEN: tl.constexpr, CLAMP: tl.constexpr = True
):  # fmt: skip
    """Rows t of one head's q, k or v: [len(t), len(d)], 0 beyond D. Beyond T it repeats the last row (CLAMP) or gives
    0, whichever takes fewer instructions for the caller. EVEN: nothing is out of range."""
    rows = tl.minimum(t, T - 1) if CLAMP and not EVEN else t
    at = base + rows[:, None] * stride_t + d[None, :] * stride_d
    if EVEN or (CLAMP and d.shape[0] == D):
        return tl.load(at)
    elif CLAMP:
        return tl.load(at, mask=d[None, :] < D, other=0.0)
    else:
        return tl.load(at, mask=(t[:, None] < T) & (d[None, :] < D), other=0.0)


@triton.jit
def load_sums(at, t, T, EVEN: tl.constexpr, BEYOND: tl.constexpr = 0.0):
    """One number per row t, BEYOND for rows beyond T."""
    if EVEN:
        return tl.load(at + t)
    else:
        return tl.load(at + t, mask=t < T, other=BEYOND)


@triton.jit
def store_rows(base, t, d, stride_t, value, T, D: tl.constexpr, EVEN: tl.constexpr):
    at = base + t[:, None] * stride_t + d[None, :]
    if EVEN:
        tl.store(at, value.to(base.dtype.element_ty))
    else:
        tl.store(at, value.to(base.dtype.element_ty), mask=(t[:, None] < T) & (d[None, :] < D))


@triton.jit
def place(t, COLS: tl.constexpr, PREFIX: tl.constexpr):
    """Place of token t in cells of an offset table, whose rows have 2 * COLS - 1: a pair's cell is the table's centre +
    place(key) - place(query)."""
    patch = t - PREFIX
    return patch + (patch // COLS) * (COLS - 1)


@triton.jit
def centre_of(rows, COLS: tl.constexpr):
    """The offset table's cell for a token paired with itself."""
    return (rows - 1) * (2 * COLS - 1) + COLS - 1


@triton.jit
def shifted(t, COLS: tl.constexpr):
    """Start of the row that `lay_out_mask` wrote for token t: an even cell of one of two copies."""
    start = COLS - 1 - t % COLS
    return start % 2 * (2 * COLS) + start // 2 * 2


@triton.jit
def mask_factor(scale, LOG: tl.constexpr):
    """What `mask_at` multiplies the mask by."""
    return LOG2E if LOG else scale * LOG2E


@triton.jit
def mask_at(
    mask, i, j, mask_i, mask_j, T, rows, scale, COLS: tl.constexpr, PREFIX: tl.constexpr, MASK: tl.constexpr,
    LOG: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The mask of queries i and keys j (broadcast) times `mask_factor`; neutral for the prefix, any value beyond T. The
    layouts of `lay_out_mask`, "by keys", "by queries" and "whole", already contain the factor."""
    if MASK == "none":
        return 0.0
    elif MASK == "whole":
        return tl.load(mask + i * mask_i + j * mask_j)
    elif MASK == "by keys":
        return tl.load(mask + (j // COLS - i // COLS) * (4 * COLS) + shifted(i, COLS) + j % COLS)
    elif MASK == "by queries":
        return tl.load(mask + (j // COLS - i // COLS) * (4 * COLS) + shifted(j, COLS) + i % COLS)
    else:
        if not EVEN:  # beyond T any value will do, and clamped indices cost less than masked loads
            i = tl.minimum(i, T - 1)
            j = tl.minimum(j, T - 1)
        at_i = tl.maximum(i, PREFIX) if PREFIX > 0 else i
        at_j = tl.maximum(j, PREFIX) if PREFIX > 0 else j
        if MASK == "table":
            m = tl.load(mask + (centre_of(rows, COLS) + place(at_j, COLS, PREFIX) - place(at_i, COLS, PREFIX)))
        else:
            m = tl.load(mask + (at_i - PREFIX) * mask_i + (at_j - PREFIX) * mask_j)
        if PREFIX > 0:
            m = tl.where((i >= PREFIX) & (j >= PREFIX), m, 0.0 if LOG else 1.0)
        return m.to(tl.float32) * mask_factor(scale, LOG)


@triton.jit
def bias_at(bias, i, j, bias_i, bias_j, T, BIAS: tl.constexpr):
    if not BIAS:
        return 0.0
    else:  # needed: Triton drops an untaken branch, but not code after a return. Beyond T any value will do.
        at = bias + tl.minimum(i, T - 1) * bias_i + tl.minimum(j, T - 1) * bias_j
        return tl.load(at).to(tl.float32) * LOG2E


@triton.jit
def logits_of(
    dots, m, a, j, T, scale, MASK: tl.constexpr, LOG: tl.constexpr, BIAS: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """Base-2 logits from dots = q k^T, m of `mask_at` and a of `bias_at`; keys beyond T get -inf."""
    if MASK == "none":
        logits = dots * (scale * LOG2E)
    elif LOG:
        logits = dots * (scale * LOG2E) + m
    else:
        logits = dots * m
    if BIAS:
        logits += a
    if not EVEN:
        logits = tl.where(j < T, logits, float("-inf"))
    return logits


@triton.jit
def logit_unit(scale, MASK: tl.constexpr, LOG: tl.constexpr):
    """The unit of logit gradients in the backward pass. It cancels the factor in `mask_at`, so that float16 products
    keep their digits."""
    if MASK == "none" or LOG:
        return 1.0
    else:
        return LN2 / tl.where(scale == 0.0, 1.0, scale)


@triton.jit
def mask_grad_factor(scale, LOG: tl.constexpr):
    """Turns sums of (logit gradient in `logit_unit`) * q k^T, with LOG of the logit gradient alone, into the mask's
    gradient."""
    return 1.0 if LOG else scale * scale * LOG2E


@triton.jit
def dropout_factor(seed, head, i, j, T, dropout_p):
    """1 / (1 - p) for kept weights, 0 for dropped ones. It depends only on seed, head of the batch and pair, so the
    backward pass recomputes it."""
    stream = tl.load(seed) + (head.to(tl.int64) << 32)
    return tl.where(tl.rand(stream, i * T + j) >= dropout_p, 1.0 / (1.0 - dropout_p), 0.0)


@triton.jit
def add_diagonals(
    table, g, factor, first_i, first_j, rows, COLS: tl.constexpr, PREFIX: tl.constexpr, BI: tl.constexpr,
    BJ: tl.constexpr, ALIGNED: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """Sums a tile g [BI, BJ <= BI] of mask gradients over pairs of equal offset and adds it, times factor, to the
    table's gradient.

    The tile is transposed and its rows, the keys j, are rolled so that column c holds the pairs with key - query = c,
    or c - BI beyond the tile's edge. Each difference stands for two grid offsets, depending on whether the key wraps
    into the next grid row. ALIGNED: tiles are single grid rows, so both edges coincide. A tile writes each cell at most
    once, so without other writers (not ATOMIC) a plain store suffices.
    """
    c = tl.arange(0, BI)
    j = tl.arange(0, BJ)
    rolled = tl.gather(tl.trans(g), (j[:, None] - c[None, :]) & (BI - 1), axis=1)
    beyond = j[:, None] < c[None, :]
    key_col = (first_j + j - PREFIX) % COLS
    for edge in tl.static_range(2):
        difference = first_j - first_i + c - edge * BI + rows * COLS  # whole grid rows added to make it positive
        across = difference % COLS
        down = difference // COLS - rows
        x = tl.where(beyond if edge else ~beyond, rolled, 0.0)
        wraps = key_col[:, None] < across[None, :]
        for wrap in tl.static_range(2):
            if not ALIGNED or wrap == edge:
                part = x if ALIGNED else tl.where(wraps if wrap else ~wraps, x, 0.0)
                row = rows - 1 + down + wrap
                col = COLS - 1 + across - wrap * COLS
                at = table + row * (2 * COLS - 1) + col
                known = (row >= 0) & (row < 2 * rows - 1) & (col >= 0)
                if ATOMIC:
                    tl.atomic_add(at, tl.sum(part, 0) * factor, mask=known, sem="relaxed")
                else:
                    tl.store(at, tl.sum(part, 0) * factor, mask=known)


@triton.jit
def short_forward(
    q, k, v, out, lse, mask, bias, seed,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d,
    mask_h, mask_i, mask_j, bias_g, bias_h, bias_i, bias_j,
    B, H, T, rows, groups, slices, scale, dropout_p,
    COLS: tl.constexpr, PREFIX: tl.constexpr, MASK: tl.constexpr, LOG: tl.constexpr, BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program: head h of samples s, s + slices, ...; slices is a multiple of groups, so that they share a bias."""
    h = tl.program_id(0) % H
    s = tl.program_id(0) // H
    t = tl.arange(0, BT)
    d = tl.arange(0, BD)
    i, j = t[:, None], t[None, :]
    own_mask = mask + h * mask_h if MASK != "none" else mask
    own_bias = bias + (s % groups).to(tl.int64) * bias_g + h * bias_h if BIAS else bias
    m = mask_at(own_mask, i, j, mask_i, mask_j, T, rows, scale, COLS, PREFIX, MASK, LOG, EVEN)
    a = bias_at(own_bias, i, j, bias_i, bias_j, T, BIAS)
    for sample in range(s, B, slices):
        b = tl.cast(sample, tl.int64)
        queries = load_rows(q + b * q_b + h * q_h, t, d, q_t, q_d, T, D, EVEN)
        keys = load_rows(k + b * k_b + h * k_h, t, d, k_t, k_d, T, D, EVEN)
        values = load_rows(v + b * v_b + h * v_h, t, d, v_t, v_d, T, D, EVEN)
        dots = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        logits = logits_of(dots, m, a, j, T, scale, MASK, LOG, BIAS, EVEN)
        top = tl.max(logits, 1)
        weights = tl.exp2(logits - top[:, None])
        total = tl.sum(weights, 1)
        if DROPOUT:
            weights *= dropout_factor(seed, b * H + h, i, j, T, dropout_p)
        result = tl.dot(weights.to(values.dtype), values, input_precision=PRECISION) / total[:, None]
        store_rows(out + b * T * H * D + h * D, t, d, H * D, result, T, D, EVEN)
        tl.store(lse + (b * H + h) * T + t, top + tl.log2(total), mask=t < T)


@triton.jit
def short_backward(
    q, k, v, grad_out, lse, mask, bias, seed, grad_q, grad_k, grad_v, grad_mask, grad_bias,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, go_b, go_h, go_t, go_d,
    mask_h, mask_i, mask_j, bias_g, bias_h, bias_i, bias_j,
    B, H, T, rows, groups, slices, grad_t, scale, dropout_p,
    COLS: tl.constexpr, PREFIX: tl.constexpr, MASK: tl.constexpr, LOG: tl.constexpr, BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    GRAD_MASK: tl.constexpr, GRAD_BIAS: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """All gradients in one pass over q, k, v and grad_out. Each program writes one summand to grad_mask
    [slices, H, ...] and grad_bias [slices, H, T, T]."""
    h = tl.program_id(0) % H
    s = tl.program_id(0) // H
    t = tl.arange(0, BT)
    d = tl.arange(0, BD)
    i, j = t[:, None], t[None, :]
    own_mask = mask + h * mask_h if MASK != "none" else mask
    own_bias = bias + (s % groups).to(tl.int64) * bias_g + h * bias_h if BIAS else bias
    m = mask_at(own_mask, i, j, mask_i, mask_j, T, rows, scale, COLS, PREFIX, MASK, LOG, EVEN)
    a = bias_at(own_bias, i, j, bias_i, bias_j, T, BIAS)
    sum_mask = tl.zeros([BT, BT], tl.float32)
    sum_bias = tl.zeros([BT, BT], tl.float32)
    for sample in range(s, B, slices):
        b = tl.cast(sample, tl.int64)
        queries = load_rows(q + b * q_b + h * q_h, t, d, q_t, q_d, T, D, EVEN)
        keys = load_rows(k + b * k_b + h * k_h, t, d, k_t, k_d, T, D, EVEN)
        values = load_rows(v + b * v_b + h * v_h, t, d, v_t, v_d, T, D, EVEN)
        grads = load_rows(grad_out + b * go_b + h * go_h, t, d, go_t, go_d, T, D, EVEN)
        log_total = load_sums(lse + (b * H + h) * T, t, T, EVEN, float("inf"))  # no weight beyond T
        dots = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        weights = tl.exp2(logits_of(dots, m, a, j, T, scale, MASK, LOG, BIAS, EVEN) - log_total[:, None])
        grad_w = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
        dropped = weights
        if DROPOUT:
            factor = dropout_factor(seed, b * H + h, i, j, T, dropout_p)
            grad_w *= factor
            dropped = weights * factor
        own = b * T * grad_t + h * D
        gv = tl.dot(tl.trans(dropped.to(grads.dtype)), grads, input_precision=PRECISION)
        store_rows(grad_v + own, t, d, grad_t, gv, T, D, EVEN)
        grad_l = weights * (grad_w - tl.sum(weights * grad_w, 1)[:, None])
        if GRAD_BIAS:
            sum_bias += grad_l
        grad_l *= logit_unit(scale, MASK, LOG)
        if GRAD_MASK:
            sum_mask += grad_l if LOG else grad_l * dots
        if MASK != "none" and not LOG:
            grad_l = grad_l * m
        grad_s = grad_l.to(queries.dtype)
        gq = tl.dot(grad_s, keys, input_precision=PRECISION) * scale
        store_rows(grad_q + own, t, d, grad_t, gq, T, D, EVEN)
        gk = tl.dot(tl.trans(grad_s), queries, input_precision=PRECISION) * scale
        store_rows(grad_k + own, t, d, grad_t, gk, T, D, EVEN)
    program = (s * H + h).to(tl.int64)
    if GRAD_BIAS:
        tl.store(grad_bias + program * T * T + i * T + j, sum_bias, mask=(i < T) & (j < T))
    if GRAD_MASK:
        patches = T - PREFIX
        on_grid = (i >= PREFIX) & (j >= PREFIX) & (i < T) & (j < T)
        if MASK == "table":
            table = grad_mask + program * (2 * rows - 1) * (2 * COLS - 1)
            sum_mask = tl.where(on_grid, sum_mask, 0.0)
            add_diagonals(table, sum_mask, mask_grad_factor(scale, LOG), 0, 0, rows, COLS, PREFIX, BT, BT, False, False)
        else:
            at = grad_mask + program * patches * patches + (i - PREFIX) * patches + (j - PREFIX)
            tl.store(at, sum_mask * mask_grad_factor(scale, LOG), mask=on_grid)

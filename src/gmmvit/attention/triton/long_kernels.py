"""Triton kernels of masked attention for more than 64 tokens: tiles of BM queries and BN keys, online softmax.

There are kernels for the forward pass and for the gradients of q, of k and v, of an offset table, and of a dense
(element-wise) mask and bias. Offset tables are first laid out for wide loads. Their gradient is summed over tiles that
share cells, then along diagonals, with a few atomic additions per column: the only atomics, whose order differs from
run to run.

Letters and strides as in `kernels.py`; n = blocks of BM or BN tokens.
"""

import triton
import triton.language as tl

from gmmvit.attention.triton.kernels import (
    add_diagonals,
    bias_at,
    centre_of,
    dropout_factor,
    load_rows,
    load_sums,
    logit_unit,
    logits_of,
    mask_at,
    mask_factor,
    mask_grad_factor,
    place,
    store_rows,
)


@triton.jit
def lay_out_mask(
    table, out, H, T, rows, centre, cells, scale, COLS: tl.constexpr, PREFIX: tl.constexpr, LOG: tl.constexpr,
    WHOLE: tl.constexpr, SIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes an offset table [H, 2*rows-1, 2*COLS-1] times `mask_factor` so that one load reads two neighbouring keys.

    The layout by keys, [H, 2*centre+1, 2, SIDE = 2*COLS], holds each table row twice, once moved by one cell, so that
    the keys of every query start at an even cell of one copy. It still fits in the first-level cache. Extra rows serve
    tokens beyond T. With WHOLE every pair of tokens has a cell: [H, SIDE >= T, SIDE]. Programs: (blocks of a head's
    `cells`, H, 2); index 1 of the last axis lays out by queries: in reversed rows, or with WHOLE transposed.
    """
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    h = tl.program_id(1).to(tl.int64)
    turned = tl.program_id(2)
    last = cell % SIDE
    if WHOLE:
        first = cell // SIDE
        i = last if turned else first
        j = first if turned else last
        at = centre_of(rows, COLS) + place(j, COLS, PREFIX) - place(i, COLS, PREFIX)
        known = (i >= PREFIX) & (j >= PREFIX) & (i < T) & (j < T)
    else:
        row = cell // (2 * SIDE) - centre + rows - 1
        col = last + cell // SIDE % 2
        known = (row >= 0) & (row < 2 * rows - 1) & (col < 2 * COLS - 1)
        at = row * (2 * COLS - 1) + (2 * COLS - 2 - col if turned else col)
    m = tl.load(table + h * (2 * rows - 1) * (2 * COLS - 1) + at, mask=known, other=0.0 if LOG else 1.0)
    tl.store(out + (turned * H + h) * cells + cell, m.to(tl.float32) * mask_factor(scale, LOG), mask=cell < cells)


@triton.jit
def long_forward(
    q, k, v, out, lse, mask, bias, seed,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d,
    mask_h, mask_i, mask_j, bias_g, bias_h, bias_i, bias_j,
    B, H, T, rows, groups, scale, dropout_p,
    COLS: tl.constexpr, PREFIX: tl.constexpr, MASK: tl.constexpr, LOG: tl.constexpr, BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """One program: a block of BM queries of one head, in one pass over the keys."""
    n = tl.cdiv(T, BM)
    head = (tl.program_id(0) // n).to(tl.int64)
    b, h = head // H, head % H
    d = tl.arange(0, BD)
    i = (tl.program_id(0) % n) * BM + tl.arange(0, BM)
    own_mask = mask + h * mask_h if MASK != "none" else mask
    own_bias = bias + (b % groups) * bias_g + h * bias_h if BIAS else bias
    queries = load_rows(q + b * q_b + h * q_h, i, d, q_t, q_d, T, D, EVEN)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    result = tl.zeros([BM, BD], tl.float32)
    for first in range(0, T, BN):
        j = first + tl.arange(0, BN)
        keys = load_rows(k + b * k_b + h * k_h, j, d, k_t, k_d, T, D, EVEN)
        dots = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        m = mask_at(own_mask, i[:, None], j[None, :], mask_i, mask_j, T, rows, scale, COLS, PREFIX, MASK, LOG, EVEN)
        a = bias_at(own_bias, i[:, None], j[None, :], bias_i, bias_j, T, BIAS)
        logits = logits_of(dots, m, a, j[None, :], T, scale, MASK, LOG, BIAS, EVEN)
        new_top = tl.maximum(top, tl.max(logits, 1))
        shift = new_top
        if BIAS:  # all keys of a row may be at -inf so far
            shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(logits - shift[:, None])
        fade = tl.exp2(top - shift)
        total = total * fade + tl.sum(weights, 1)
        if DROPOUT:
            weights *= dropout_factor(seed, head, i[:, None], j[None, :], T, dropout_p)
        values = load_rows(v + b * v_b + h * v_h, j, d, v_t, v_d, T, D, EVEN)
        result = result * fade[:, None]
        result = tl.dot(weights.to(values.dtype), values, result, input_precision=PRECISION)
        top = new_top
    store_rows(out + b * T * H * D + h * D, i, d, H * D, result / total[:, None], T, D, EVEN)
    tl.store(lse + head * T + i, top + tl.log2(total), mask=i < T)


@triton.jit
def long_backward_q(
    q, k, v, grad_out, lse, delta, mask, bias, seed, out, grad_q,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, go_b, go_h, go_t, go_d,
    mask_h, mask_i, mask_j, bias_g, bias_h, bias_i, bias_j,
    B, H, T, rows, groups, grad_t, scale, dropout_p,
    COLS: tl.constexpr, PREFIX: tl.constexpr, MASK: tl.constexpr, LOG: tl.constexpr, BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """One program: a block of BM queries of one head. Writes grad_q and, for other kernels, delta = <grad_out, out>."""
    n = tl.cdiv(T, BM)
    head = (tl.program_id(0) // n).to(tl.int64)
    b, h = head // H, head % H
    d = tl.arange(0, BD)
    i = (tl.program_id(0) % n) * BM + tl.arange(0, BM)
    own_mask = mask + h * mask_h if MASK != "none" else mask
    own_bias = bias + (b % groups) * bias_g + h * bias_h if BIAS else bias
    queries = load_rows(q + b * q_b + h * q_h, i, d, q_t, q_d, T, D, EVEN)
    grads = load_rows(grad_out + b * go_b + h * go_h, i, d, go_t, go_d, T, D, EVEN)
    outs = load_rows(out + b * T * H * D + h * D, i, d, H * D, 1, T, D, EVEN)
    row_sum = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1)
    tl.store(delta + head * T + i, row_sum, mask=i < T)
    log_total = load_sums(lse + head * T, i, T, EVEN)
    unit = logit_unit(scale, MASK, LOG)
    result = tl.zeros([BM, BD], tl.float32)
    for first in range(0, T, BN):
        j = first + tl.arange(0, BN)
        keys = load_rows(k + b * k_b + h * k_h, j, d, k_t, k_d, T, D, EVEN)
        values = load_rows(v + b * v_b + h * v_h, j, d, v_t, v_d, T, D, EVEN)
        m = mask_at(own_mask, i[:, None], j[None, :], mask_i, mask_j, T, rows, scale, COLS, PREFIX, MASK, LOG, EVEN)
        a = bias_at(own_bias, i[:, None], j[None, :], bias_i, bias_j, T, BIAS)
        dots = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        logits = logits_of(dots, m, a, j[None, :], T, scale, MASK, LOG, BIAS, EVEN)
        weights = tl.exp2(logits - log_total[:, None])
        grad_w = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
        if DROPOUT:
            grad_w *= dropout_factor(seed, head, i[:, None], j[None, :], T, dropout_p)
        grad_l = weights * (grad_w * unit - (row_sum * unit)[:, None])
        if MASK != "none" and not LOG:
            grad_l = grad_l * m
        result = tl.dot(grad_l.to(keys.dtype), keys, result, input_precision=PRECISION)
    store_rows(grad_q + b * T * grad_t + h * D, i, d, grad_t, result * scale, T, D, EVEN)


@triton.jit
def long_backward_table(
    q, k, v, grad_out, lse, delta, mask, bias, seed, grad_table,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, go_b, go_h, go_t, go_d,
    mask_h, mask_i, mask_j, bias_g, bias_h, bias_i, bias_j,
    B, H, T, rows, groups, slices, scale, dropout_p,
    BAND: tl.constexpr,
    COLS: tl.constexpr, PREFIX: tl.constexpr, MASK: tl.constexpr, LOG: tl.constexpr, BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """Adds to the gradient of an offset table [H, 2*rows-1, 2*COLS-1].

    One program covers all pairs of blocks of head h at one distance, in samples s, s + slices, ...: their tiles share
    cells, so it sums the tiles in place and the diagonals only once. Blocks are BM tokens of a band of BAND tokens: as
    many grid rows as fit into a block, or one row that takes several blocks. For programs of equal length distances are
    modulo the number of bands: first those of d, then those of d - bands.
    """
    bands = tl.cdiv(T - PREFIX, BAND)
    parts: tl.constexpr = (BAND + BM - 1) // BM
    part_i = tl.program_id(0) % parts * BM
    part_j = tl.program_id(0) // parts % parts * BM
    rest = tl.program_id(0) // (parts * parts)
    apart = rest % bands
    h = (rest // bands % H).to(tl.int64)
    s = rest // bands // H
    d = tl.arange(0, BD)
    t = tl.arange(0, BM)
    samples = tl.cdiv(B - s, slices)
    unit = logit_unit(scale, MASK, LOG)
    own_mask = mask + h * mask_h
    for turn in tl.static_range(2):
        count = apart if turn else bands - apart
        skip_i = PREFIX + part_i + (bands - apart if turn else 0) * BAND
        skip_j = PREFIX + part_j + (0 if turn else apart) * BAND
        inside = (part_i + t < BAND)[:, None] & (part_j + t < BAND)[None, :]
        inside = inside & (skip_i + t < T)[:, None] & (skip_j + t < T)[None, :]
        some_i = tl.where(inside, (skip_i + t)[:, None], PREFIX)
        some_j = tl.where(inside, (skip_j + t)[None, :], PREFIX)
        m = mask_at(own_mask, some_i, some_j, mask_i, mask_j, T, rows, scale, COLS, PREFIX, MASK, LOG, EVEN)
        total = tl.zeros([BM, BM], tl.float32)
        for step in range(0, count * samples):
            b = (s + step // count * slices).to(tl.int64)
            head = b * H + h
            first_i = skip_i + step % count * BAND
            first_j = skip_j + step % count * BAND
            i = first_i + t
            j = first_j + t
            left_i, left_j = T - first_i, T - first_j
            queries = load_rows(q + b * q_b + h * q_h + first_i * q_t, t, d, q_t, q_d, left_i, D, EVEN, False)
            keys = load_rows(k + b * k_b + h * k_h + first_j * k_t, t, d, k_t, k_d, left_j, D, EVEN, False)
            grads = load_rows(grad_out + b * go_b + h * go_h + first_i * go_t, t, d, go_t, go_d, left_i, D, EVEN, False)
            values = load_rows(v + b * v_b + h * v_h + first_j * v_t, t, d, v_t, v_d, left_j, D, EVEN, False)
            log_total = load_sums(lse + head * T, i, T, EVEN)
            row_sum = load_sums(delta + head * T, i, T, EVEN)
            own_bias = bias + (b % groups) * bias_g + h * bias_h if BIAS else bias
            a = bias_at(own_bias, i[:, None], j[None, :], bias_i, bias_j, T, BIAS)
            dots = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            logits = logits_of(dots, m, a, j[None, :], T, scale, MASK, LOG, BIAS, EVEN)
            weights = tl.exp2(logits - log_total[:, None])
            grad_w = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
            if DROPOUT:
                grad_w *= dropout_factor(seed, head, i[:, None], j[None, :], T, dropout_p)
            grad_l = weights * (grad_w * unit - (row_sum * unit)[:, None])
            total += grad_l if LOG else grad_l * dots
        if count > 0:
            own = grad_table + h * (2 * rows - 1) * (2 * COLS - 1)
            total = tl.where(inside, total, 0.0)
            add_diagonals(
                own, total, mask_grad_factor(scale, LOG), skip_i, skip_j, rows, COLS, PREFIX, BM, BM,
                BAND == BM and COLS == BM, True,
            )  # fmt: skip


@triton.jit
def long_backward_kv(
    q, k, v, grad_out, lse, delta, mask, bias, seed, grad_k, grad_v,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, go_b, go_h, go_t, go_d,
    mask_h, mask_i, mask_j, bias_g, bias_h, bias_i, bias_j,
    B, H, T, rows, groups, grad_t, scale, dropout_p,
    COLS: tl.constexpr, PREFIX: tl.constexpr, MASK: tl.constexpr, LOG: tl.constexpr, BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """One program: a block of BN keys of one head. Its tiles are transposed, [BN, BM], as both of its products need
    them."""
    n = tl.cdiv(T, BN)
    head = (tl.program_id(0) // n).to(tl.int64)
    b, h = head // H, head % H
    d = tl.arange(0, BD)
    j = (tl.program_id(0) % n) * BN + tl.arange(0, BN)
    own_mask = mask + h * mask_h if MASK != "none" else mask
    own_bias = bias + (b % groups) * bias_g + h * bias_h if BIAS else bias
    own = b * T * grad_t + h * D
    keys = load_rows(k + b * k_b + h * k_h, j, d, k_t, k_d, T, D, EVEN)
    values = load_rows(v + b * v_b + h * v_h, j, d, v_t, v_d, T, D, EVEN)
    sum_k = tl.zeros([BN, BD], tl.float32)
    sum_v = tl.zeros([BN, BD], tl.float32)
    unit = logit_unit(scale, MASK, LOG)
    # Rows beyond T are zeros, but terms added to their logits could make the weights infinite.
    beyond: tl.constexpr = float("inf") if BIAS or LOG else 0.0
    for first in range(0, T, BM):
        i = first + tl.arange(0, BM)
        queries = load_rows(q + b * q_b + h * q_h, i, d, q_t, q_d, T, D, EVEN, False)
        grads = load_rows(grad_out + b * go_b + h * go_h, i, d, go_t, go_d, T, D, EVEN, False)
        log_total = load_sums(lse + head * T, i, T, EVEN, beyond)
        row_sum = load_sums(delta + head * T, i, T, EVEN)
        dots = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
        m = mask_at(own_mask, i[None, :], j[:, None], mask_i, mask_j, T, rows, scale, COLS, PREFIX, MASK, LOG, EVEN)
        a = bias_at(own_bias, i[None, :], j[:, None], bias_i, bias_j, T, BIAS)
        logits = logits_of(dots, m, a, j[:, None], T, scale, MASK, LOG, BIAS, EVEN)
        weights = tl.exp2(logits - log_total[None, :])
        grad_w = tl.dot(values, tl.trans(grads), input_precision=PRECISION)
        dropped = weights
        if DROPOUT:
            factor = dropout_factor(seed, head, i[None, :], j[:, None], T, dropout_p)
            grad_w *= factor
            dropped = weights * factor
        sum_v = tl.dot(dropped.to(grads.dtype), grads, sum_v, input_precision=PRECISION)
        grad_l = weights * (grad_w * unit - (row_sum * unit)[None, :])
        if MASK != "none" and not LOG:
            grad_l = grad_l * m
        sum_k = tl.dot(grad_l.to(queries.dtype), queries, sum_k, input_precision=PRECISION)
    store_rows(grad_k + own, j, d, grad_t, sum_k * scale, T, D, EVEN)
    store_rows(grad_v + own, j, d, grad_t, sum_v, T, D, EVEN)


@triton.jit
def whole_backward(
    q, k, v, grad_out, lse, delta, mask, bias, seed, out, grad_q, grad_k, grad_v,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, go_b, go_h, go_t, go_d,
    mask_h, mask_i, mask_j, bias_g, bias_h, bias_i, bias_j,
    B, H, T, rows, groups, grad_t, scale, dropout_p,
    COLS: tl.constexpr, PREFIX: tl.constexpr, MASK: tl.constexpr, LOG: tl.constexpr, BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """One program: a whole head of T <= BM queries, without dropout, whose logits it computes once for the gradients of
    q, k and v. Also writes delta = <grad_out, out> for the kernels of mask and bias."""
    tl.static_assert(not DROPOUT)
    head = tl.program_id(0).to(tl.int64)
    b, h = head // H, head % H
    d = tl.arange(0, BD)
    i = tl.arange(0, BM)
    own_mask = mask + h * mask_h if MASK != "none" else mask
    own_bias = bias + (b % groups) * bias_g + h * bias_h if BIAS else bias
    own = b * T * grad_t + h * D
    queries = load_rows(q + b * q_b + h * q_h, i, d, q_t, q_d, T, D, EVEN)
    grads = load_rows(grad_out + b * go_b + h * go_h, i, d, go_t, go_d, T, D, EVEN)
    outs = load_rows(out + b * T * H * D + h * D, i, d, H * D, 1, T, D, EVEN)
    row_sum = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1)
    tl.store(delta + head * T + i, row_sum, mask=i < T)
    log_total = load_sums(lse + head * T, i, T, EVEN, float("inf"))  # no weight beyond T
    unit = logit_unit(scale, MASK, LOG)
    sum_q = tl.zeros([BM, BD], tl.float32)
    for first in range(0, T, BN):
        j = first + tl.arange(0, BN)
        keys = load_rows(k + b * k_b + h * k_h, j, d, k_t, k_d, T, D, EVEN)
        values = load_rows(v + b * v_b + h * v_h, j, d, v_t, v_d, T, D, EVEN)
        m = mask_at(own_mask, i[:, None], j[None, :], mask_i, mask_j, T, rows, scale, COLS, PREFIX, MASK, LOG, EVEN)
        a = bias_at(own_bias, i[:, None], j[None, :], bias_i, bias_j, T, BIAS)
        dots = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        logits = logits_of(dots, m, a, j[None, :], T, scale, MASK, LOG, BIAS, EVEN)
        weights = tl.exp2(logits - log_total[:, None])
        grad_w = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
        sum_v = tl.dot(tl.trans(weights.to(grads.dtype)), grads, input_precision=PRECISION)
        store_rows(grad_v + own, j, d, grad_t, sum_v, T, D, EVEN)
        grad_l = weights * (grad_w * unit - (row_sum * unit)[:, None])
        if MASK != "none" and not LOG:
            grad_l = grad_l * m
        grad_s = grad_l.to(keys.dtype)
        sum_q = tl.dot(grad_s, keys, sum_q, input_precision=PRECISION)
        sum_k = tl.dot(tl.trans(grad_s), queries, input_precision=PRECISION)
        store_rows(grad_k + own, j, d, grad_t, sum_k * scale, T, D, EVEN)
    store_rows(grad_q + own, i, d, grad_t, sum_q * scale, T, D, EVEN)


@triton.jit
def long_backward_dense(
    q, k, v, grad_out, lse, delta, mask, bias, seed, grad_mask, grad_bias,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, go_b, go_h, go_t, go_d,
    mask_h, mask_i, mask_j, bias_g, bias_h, bias_i, bias_j,
    B, H, T, rows, groups, slices, scale, dropout_p,
    COLS: tl.constexpr, PREFIX: tl.constexpr, MASK: tl.constexpr, LOG: tl.constexpr, BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    GRAD_MASK: tl.constexpr, GRAD_BIAS: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """One program: one tile of pairs of head h, summed over samples s, s + slices, ... and written once to grad_mask
    [slices, H, N, N] of a dense mask and grad_bias [slices, H, T, T]."""
    across = tl.cdiv(T, BN)
    tiles = tl.cdiv(T, BM) * across
    tile = tl.program_id(0) % tiles
    program = (tl.program_id(0) // tiles).to(tl.int64)
    h, s = program % H, program // H
    d = tl.arange(0, BD)
    i = (tile // across) * BM + tl.arange(0, BM)
    j = (tile % across) * BN + tl.arange(0, BN)
    own_mask = mask + h * mask_h if MASK != "none" else mask
    own_bias = bias + (s % groups) * bias_g + h * bias_h if BIAS else bias
    m = mask_at(own_mask, i[:, None], j[None, :], mask_i, mask_j, T, rows, scale, COLS, PREFIX, MASK, LOG, EVEN)
    a = bias_at(own_bias, i[:, None], j[None, :], bias_i, bias_j, T, BIAS)
    sum_mask = tl.zeros([BM, BN], tl.float32)
    sum_bias = tl.zeros([BM, BN], tl.float32)
    for sample in range(s, B, slices):
        b = tl.cast(sample, tl.int64)
        head = b * H + h
        queries = load_rows(q + b * q_b + h * q_h, i, d, q_t, q_d, T, D, EVEN)
        keys = load_rows(k + b * k_b + h * k_h, j, d, k_t, k_d, T, D, EVEN)
        values = load_rows(v + b * v_b + h * v_h, j, d, v_t, v_d, T, D, EVEN)
        grads = load_rows(grad_out + b * go_b + h * go_h, i, d, go_t, go_d, T, D, EVEN)
        log_total = load_sums(lse + head * T, i, T, EVEN)
        row_sum = load_sums(delta + head * T, i, T, EVEN)
        dots = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        logits = logits_of(dots, m, a, j[None, :], T, scale, MASK, LOG, BIAS, EVEN)
        weights = tl.exp2(logits - log_total[:, None])
        grad_w = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
        if DROPOUT:
            grad_w *= dropout_factor(seed, head, i[:, None], j[None, :], T, dropout_p)
        grad_l = weights * (grad_w - row_sum[:, None])
        if GRAD_BIAS:
            sum_bias += grad_l
        if GRAD_MASK:
            sum_mask += grad_l if LOG else grad_l * logit_unit(scale, MASK, LOG) * dots
    i, j = i[:, None], j[None, :]
    if GRAD_BIAS:
        tl.store(grad_bias + program * T * T + i * T + j, sum_bias, mask=(i < T) & (j < T))
    if GRAD_MASK:
        patches = T - PREFIX
        at = grad_mask + program * patches * patches + (i - PREFIX) * patches + (j - PREFIX)
        sum_mask *= mask_grad_factor(scale, LOG)
        tl.store(at, sum_mask, mask=(i >= PREFIX) & (j >= PREFIX) & (i < T) & (j < T))

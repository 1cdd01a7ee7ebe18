"""Triton kernels of masked attention for more than 64 tokens: tiles of BM queries and BN keys, online softmax.

Forward; the gradient of q with that of the offset table; the gradients of k and v; the gradients of what is dense, an
element-wise mask and a bias. Offset tables are laid out anew for wide loads, and their gradient is summed along the
diagonals of each tile before it leaves the chip: 2 or 4 atomic additions per tile column instead of one per pair. These
additions are the only atomics: the order of their sum differs from run to run.

Letters and strides as in `kernels.py`; n = blocks of BM or BN tokens.
"""

import triton
import triton.language as tl

from gmmvit.attention.kernels import (
    add_diagonals,
    bias_at,
    centre_of,
    dropout_factor,
    load_rows,
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
    """Writes an offset table [H, 2*rows-1, 2*COLS-1] times `mask_factor` so that two neighbouring keys are one load.

    The layout by keys, [H, 2*centre+1, 2, SIDE = 2*COLS], holds each row of the table twice, as it is and moved by one
    cell, so that the keys of every query begin at an even cell of one of the two. The first-level cache holds it as it
    does the table. Rows that no two tokens of the grid are apart make up for tokens beyond T. With WHOLE every pair of
    tokens has a cell: [H, SIDE >= T, SIDE]. Programs (blocks of the `cells` of a head, H, 2): the second of the last
    axis lay out by queries: in turned rows, or with WHOLE the transpose.
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
    """A program: a block of BM queries of one head; it goes over the keys once."""
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
        if BIAS:  # a row whose keys were all at -inf so far
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
def query_rows(
    q, out, grad_out, lse, delta, head, i, d, q_b, q_h, q_t, q_d, go_b, go_h, go_t, go_d, H, T,
    D: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """What `long_backward_q` keeps of a block of queries: q, grad_out, lse and delta = <grad_out, out>, which it also
    writes for the other kernels."""
    b, h = head // H, head % H
    queries = load_rows(q + b * q_b + h * q_h, i, d, q_t, q_d, T, D, EVEN)
    grads = load_rows(grad_out + b * go_b + h * go_h, i, d, go_t, go_d, T, D, EVEN)
    outs = load_rows(out + b * T * H * D + h * D, i, d, H * D, 1, T, D, EVEN)
    row_sum = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1)
    tl.store(delta + head * T + i, row_sum, mask=i < T)
    log_total = tl.load(lse + head * T + i, mask=i < T, other=0.0)
    return queries, grads, log_total, row_sum


@triton.jit
def query_step(
    result, queries, grads, log_total, row_sum, k, v, m, bias, seed, head, i, j, d,
    k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, bias_g, bias_h, bias_i, bias_j, H, T, groups, scale, dropout_p,
    MASK: tl.constexpr, LOG: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One tile of `long_backward_q`: the sum for grad_q with this tile's part, and the tile's gradient of the mask."""
    b, h = head // H, head % H
    keys = load_rows(k + b * k_b + h * k_h, j, d, k_t, k_d, T, D, EVEN)
    values = load_rows(v + b * v_b + h * v_h, j, d, v_t, v_d, T, D, EVEN)
    dots = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
    own_bias = bias + (b % groups) * bias_g + h * bias_h if BIAS else bias
    a = bias_at(own_bias, i[:, None], j[None, :], bias_i, bias_j, T, BIAS)
    logits = logits_of(dots, m, a, j[None, :], T, scale, MASK, LOG, BIAS, EVEN)
    weights = tl.exp2(logits - log_total[:, None])
    grad_w = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
    if DROPOUT:
        grad_w *= dropout_factor(seed, head, i[:, None], j[None, :], T, dropout_p)
    unit = logit_unit(scale, MASK, LOG)
    grad_l = weights * (grad_w * unit - (row_sum * unit)[:, None])
    grad_m = grad_l if LOG else grad_l * dots
    if MASK != "none" and not LOG:
        grad_l = grad_l * m
    return tl.dot(grad_l.to(keys.dtype), keys, result, input_precision=PRECISION), grad_m


@triton.jit
def long_backward_q(
    q, k, v, grad_out, lse, delta, mask, bias, seed, out, grad_q, grad_mask,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, go_b, go_h, go_t, go_d,
    mask_h, mask_i, mask_j, bias_g, bias_h, bias_i, bias_j,
    B, H, T, rows, groups, scale, dropout_p,
    COLS: tl.constexpr, PREFIX: tl.constexpr, MASK: tl.constexpr, LOG: tl.constexpr, BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    GRAD_TABLE: tl.constexpr, ALIGNED: tl.constexpr, PAIR: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """A program: a block of BM queries of one head, with PAIR of the same head in two samples, which share the mask's
    tile and the sums along its diagonals. Writes delta and grad_q, and adds to the gradient of the offset table
    [H, 2*rows-1, 2*cols-1]."""
    n = tl.cdiv(T, BM)
    head = (tl.program_id(0) // n).to(tl.int64)
    h = head % H
    if PAIR:
        head += head // H * H  # H heads of an even sample, and the same of the next
    d = tl.arange(0, BD)
    first_i = (tl.program_id(0) % n) * BM
    i = first_i + tl.arange(0, BM)
    own_mask = mask + h * mask_h if MASK != "none" else mask
    queries, grads, log_total, row_sum = query_rows(
        q, out, grad_out, lse, delta, head, i, d, q_b, q_h, q_t, q_d, go_b, go_h, go_t, go_d, H, T, D, EVEN
    )
    result = tl.zeros([BM, BD], tl.float32)
    if PAIR:
        queries_2, grads_2, log_total_2, row_sum_2 = query_rows(
            q, out, grad_out, lse, delta, head + H, i, d, q_b, q_h, q_t, q_d, go_b, go_h, go_t, go_d, H, T, D, EVEN
        )
        result_2 = tl.zeros([BM, BD], tl.float32)
    for first in range(0, T, BN):
        j = first + tl.arange(0, BN)
        m = mask_at(own_mask, i[:, None], j[None, :], mask_i, mask_j, T, rows, scale, COLS, PREFIX, MASK, LOG, EVEN)
        result, grad_m = query_step(
            result, queries, grads, log_total, row_sum, k, v, m, bias, seed, head, i, j, d,
            k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, bias_g, bias_h, bias_i, bias_j, H, T, groups, scale, dropout_p,
            MASK, LOG, BIAS, DROPOUT, EVEN, PRECISION, D,
        )  # fmt: skip
        if PAIR:
            result_2, grad_m_2 = query_step(
                result_2, queries_2, grads_2, log_total_2, row_sum_2, k, v, m, bias, seed, head + H, i, j, d,
                k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, bias_g, bias_h, bias_i, bias_j, H, T, groups, scale, dropout_p,
                MASK, LOG, BIAS, DROPOUT, EVEN, PRECISION, D,
            )  # fmt: skip
            grad_m += grad_m_2
        if GRAD_TABLE:
            if PREFIX > 0:
                grad_m = tl.where((i[:, None] >= PREFIX) & (j[None, :] >= PREFIX), grad_m, 0.0)
            table = grad_mask + h * (2 * rows - 1) * (2 * COLS - 1)
            add_diagonals(
                table, grad_m, mask_grad_factor(scale, LOG), first_i, first, rows, COLS, PREFIX, BM, BN, ALIGNED, True
            )
    own_out = head // H * T * H * D + h * D
    store_rows(grad_q + own_out, i, d, H * D, result * scale, T, D, EVEN)
    if PAIR:
        store_rows(grad_q + own_out + T * H * D, i, d, H * D, result_2 * scale, T, D, EVEN)


@triton.jit
def long_backward_kv(
    q, k, v, grad_out, lse, delta, mask, bias, seed, grad_k, grad_v,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, go_b, go_h, go_t, go_d,
    mask_h, mask_i, mask_j, bias_g, bias_h, bias_i, bias_j,
    B, H, T, rows, groups, scale, dropout_p,
    COLS: tl.constexpr, PREFIX: tl.constexpr, MASK: tl.constexpr, LOG: tl.constexpr, BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """A program: a block of BN keys of one head. Its tiles are transposed, [BN, BM], so that both of its products take
    them as they are."""
    n = tl.cdiv(T, BN)
    head = (tl.program_id(0) // n).to(tl.int64)
    b, h = head // H, head % H
    d = tl.arange(0, BD)
    j = (tl.program_id(0) % n) * BN + tl.arange(0, BN)
    own_mask = mask + h * mask_h if MASK != "none" else mask
    own_bias = bias + (b % groups) * bias_g + h * bias_h if BIAS else bias
    own_out = b * T * H * D + h * D
    keys = load_rows(k + b * k_b + h * k_h, j, d, k_t, k_d, T, D, EVEN)
    values = load_rows(v + b * v_b + h * v_h, j, d, v_t, v_d, T, D, EVEN)
    sum_k = tl.zeros([BN, BD], tl.float32)
    sum_v = tl.zeros([BN, BD], tl.float32)
    unit = logit_unit(scale, MASK, LOG)
    for first in range(0, T, BM):
        i = first + tl.arange(0, BM)
        queries = load_rows(q + b * q_b + h * q_h, i, d, q_t, q_d, T, D, EVEN)
        grads = load_rows(grad_out + b * go_b + h * go_h, i, d, go_t, go_d, T, D, EVEN)
        log_total = tl.load(lse + head * T + i, mask=i < T, other=0.0)
        row_sum = tl.load(delta + head * T + i, mask=i < T, other=0.0)
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
    store_rows(grad_k + own_out, j, d, H * D, sum_k * scale, T, D, EVEN)
    store_rows(grad_v + own_out, j, d, H * D, sum_v, T, D, EVEN)


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
    """A program: one tile of pairs of head h, summed over samples s, s + slices, ... and written once: grad_mask
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
        log_total = tl.load(lse + head * T + i, mask=i < T, other=0.0)
        row_sum = tl.load(delta + head * T + i, mask=i < T, other=0.0)
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

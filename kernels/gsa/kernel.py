# mypy: disallow-untyped-defs=False
"""GSA kernels: queries and packed keys and values are read in place, heads side by side in their channels.

Scores, softmax and sums are fp32 whatever the dtype. Forward goes over the keys once with a running maximum and keeps
log-sum-exp for backward. Backward has two forms. Where all keys of a head fit one program, it holds them still and goes
over the queries once: five products per tile and one exp2. Else one kernel goes over keys for dq and another over
queries for dk and dv: seven products and two exp2. Queries are shared out over several programs, which write their sums
of dk and dv apart; `gsa_sum_splits_kernel` adds them in a fixed order, so gradients are the same from run to run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from twins_trt.kernels.blocks import LN2, LOG2E, product_in_chunks


@triton.jit(do_not_specialize=["queries", "keys"])
def gsa_forward_kernel(
    p_q, p_kv, p_out, p_lse, q_b, q_n, kv_b, kv_m, queries, keys, channels, scale,
    BQ: tl.constexpr, BK: tl.constexpr, D: tl.constexpr, TAIL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (heads, query blocks, batch). p_lse: fp32 [batch, heads, queries], natural logarithm."""
    i_h = tl.program_id(0)
    i_n = tl.program_id(1).to(tl.int64) * BQ
    i_b = tl.program_id(2).to(tl.int64)
    o_d = tl.arange(0, D)
    o_q = tl.arange(0, BQ)
    o_k = tl.arange(0, BK)
    m_q = i_n + o_q < queries
    p_q += i_b * q_b + i_n * q_n + i_h * D
    p_kv += i_b * kv_b + i_h * D
    p_out += (i_b * queries + i_n) * channels + i_h * D
    p_lse += (i_b * tl.num_programs(0) + i_h) * queries + i_n
    b_q = tl.load(p_q + (o_q * q_n)[:, None] + o_d[None, :], mask=m_q[:, None], other=0.0)  # [BQ, D]
    b_o = tl.zeros((BQ, D), tl.float32)
    b_sum = tl.zeros((BQ,), tl.float32)
    b_max = tl.full((BQ,), float("-inf"), tl.float32)
    for i_k in range(0, keys, BK):
        p_k = p_kv + ((i_k + o_k).to(tl.int64) * kv_m)[:, None] + o_d[None, :]
        if TAIL:
            m_k = i_k + o_k < keys
            b_k = tl.load(p_k, mask=m_k[:, None], other=0.0)  # [BK, D]
            b_v = tl.load(p_k + channels, mask=m_k[:, None], other=0.0)  # [BK, D]
        else:
            b_k = tl.load(p_k)  # [BK, D]
            b_v = tl.load(p_k + channels)  # [BK, D]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [BQ, BK]
        if TAIL:
            b_s = tl.where(m_k[None, :], b_s, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1) * (scale * LOG2E))
        b_p = tl.exp2(b_s * (scale * LOG2E) - b_new[:, None])
        b_shrink = tl.exp2(b_max - b_new)
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o * b_shrink[:, None], input_precision=PRECISION)
        b_max = b_new
    b_o *= (1.0 / b_sum)[:, None]
    tl.store(p_out + (o_q * channels)[:, None] + o_d[None, :], b_o.to(p_out.dtype.element_ty), mask=m_q[:, None])
    tl.store(p_lse + o_q, (b_max + tl.log2(b_sum)) * LN2, mask=m_q)


@triton.jit
def load_in_columns(p, m, COLUMNS: tl.constexpr):
    """The numbers at `p`, zero where not `m`. With COLUMNS, a block of so many columns alike is loaded, then reduced.

    Loaded as they are used, along the columns of the scores, each thread reads 16 of them one by one (sm_90).
    """
    if COLUMNS == 1:
        return tl.load(p, mask=m, other=0.0)
    p = p[:, None] + tl.zeros((1, COLUMNS), tl.int32)
    return tl.max(tl.load(p, mask=m[:, None], other=0.0), 1)


@triton.jit(do_not_specialize=["queries", "keys", "per_split"])
def gsa_backward_kernel(
    p_grad, p_q, p_kv, p_out, p_lse, p_dq, p_dkv, g_b, g_n, q_b, q_n, kv_b, kv_m, queries, keys, channels, per_split,
    scale,
    BQ: tl.constexpr, BK: tl.constexpr, D: tl.constexpr, TAIL: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """All keys (BK or fewer) in one program, `per_split` queries each. Grid: (heads, splits, batch).

    p_dkv: fp32 [splits, batch, keys, 2 · channels], or the gradient itself where splits is 1.
    Tiles are [keys, queries]: dk and dv then need no transpose.
    """
    i_h = tl.program_id(0)
    i_s = tl.program_id(1)
    i_b = tl.program_id(2).to(tl.int64)
    o_d = tl.arange(0, D)
    o_k = tl.arange(0, BK)
    m_k = o_k < keys
    p_k = p_kv + i_b * kv_b + i_h * D + (o_k.to(tl.int64) * kv_m)[:, None] + o_d[None, :]
    if TAIL:
        b_k = tl.load(p_k, mask=m_k[:, None], other=0.0)  # [BK, D]
        b_v = tl.load(p_k + channels, mask=m_k[:, None], other=0.0)  # [BK, D]
    else:
        b_k = tl.load(p_k)  # [BK, D]
        b_v = tl.load(p_k + channels)  # [BK, D]
    b_dk = tl.zeros((BK, D), tl.float32)
    b_dv = tl.zeros((BK, D), tl.float32)
    p_q += i_b * q_b + i_h * D
    p_grad += i_b * g_b + i_h * D
    p_out += i_b * queries * channels + i_h * D
    p_dq += i_b * queries * channels + i_h * D
    p_lse += (i_b * tl.num_programs(0) + i_h) * queries
    first = i_s * per_split
    last = tl.minimum(first + per_split, queries)
    for i_q in range(first, last, BQ):
        o_q = i_q + tl.arange(0, BQ)
        m_q = o_q < last
        o_q = o_q.to(tl.int64)
        o_row = (o_q * channels)[:, None] + o_d[None, :]
        b_q = tl.load(p_q + (o_q * q_n)[:, None] + o_d[None, :], mask=m_q[:, None], other=0.0)  # [BQ, D]
        b_g = tl.load(p_grad + (o_q * g_n)[:, None] + o_d[None, :], mask=m_q[:, None], other=0.0)  # [BQ, D]
        b_out = tl.load(p_out + o_row, mask=m_q[:, None], other=0.0)  # [BQ, D]
        b_lse = load_in_columns(p_lse + o_q, m_q, COLUMNS) * LOG2E  # [BQ]
        b_delta = tl.sum(b_g.to(tl.float32) * b_out.to(tl.float32), 1)  # [BQ]
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)  # [BK, BQ]
        b_p = tl.exp2(b_s * (scale * LOG2E) - b_lse[None, :])
        if TAIL:
            # not left to the zeros in b_k: exp2(-lse) may be infinite, and infinite · 0 is not 0
            b_p = tl.where(m_k[:, None], b_p, 0.0)
        b_dv = tl.dot(b_p.to(b_g.dtype), b_g, b_dv, input_precision=PRECISION)
        b_dp = tl.dot(b_v, tl.trans(b_g), input_precision=PRECISION)  # [BK, BQ]
        b_ds = (b_p * (b_dp - b_delta[None, :])).to(b_q.dtype)
        b_dk = tl.dot(b_ds, b_q, b_dk, input_precision=PRECISION)
        b_dq = tl.dot(tl.trans(b_ds), b_k, input_precision=PRECISION) * scale  # [BQ, D]
        tl.store(p_dq + o_row, b_dq.to(p_dq.dtype.element_ty), mask=m_q[:, None])
    p_dkv += (i_s * tl.num_programs(2) + i_b) * keys * 2 * channels + i_h * D
    p_dk = p_dkv + (o_k.to(tl.int64) * 2 * channels)[:, None] + o_d[None, :]
    tl.store(p_dk, (b_dk * scale).to(p_dkv.dtype.element_ty), mask=m_k[:, None])
    tl.store(p_dk + channels, b_dv.to(p_dkv.dtype.element_ty), mask=m_k[:, None])


@triton.jit(do_not_specialize=["queries", "keys"])
def gsa_backward_q_kernel(
    p_grad, p_q, p_kv, p_out, p_lse, p_delta, p_dq, g_b, g_n, q_b, q_n, kv_b, kv_m, queries, keys, channels, depth,
    scale,
    BQ: tl.constexpr, BK: tl.constexpr, D: tl.constexpr, DC: tl.constexpr, TAIL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries, any number of keys. Grid: (heads, query blocks, batch).

    Also writes p_delta, fp32 [batch, heads, queries]: the sum of gradient · result, which the kernel for dk, dv needs.
    """
    i_h = tl.program_id(0)
    i_n = tl.program_id(1).to(tl.int64) * BQ
    i_b = tl.program_id(2).to(tl.int64)
    o_d = tl.arange(0, D)
    o_c = tl.arange(0, DC)
    o_q = tl.arange(0, BQ)
    o_k = tl.arange(0, BK)
    m_q = i_n + o_q < queries
    p_q += i_b * q_b + i_n * q_n + i_h * D
    p_grad += i_b * g_b + i_n * g_n + i_h * D
    p_kv += i_b * kv_b + i_h * D
    p_out += (i_b * queries + i_n) * channels + i_h * D
    p_dq += (i_b * queries + i_n) * channels + i_h * D
    i_row = (i_b * tl.num_programs(0) + i_h) * queries + i_n
    o_row = (o_q * channels)[:, None] + o_d[None, :]
    b_q = tl.load(p_q + (o_q * q_n)[:, None] + o_d[None, :], mask=m_q[:, None], other=0.0)  # [BQ, D]
    b_g = tl.load(p_grad + (o_q * g_n)[:, None] + o_d[None, :], mask=m_q[:, None], other=0.0)  # [BQ, D]
    b_out = tl.load(p_out + o_row, mask=m_q[:, None], other=0.0)  # [BQ, D]
    b_lse = tl.load(p_lse + i_row + o_q, mask=m_q, other=0.0) * LOG2E  # [BQ]
    b_delta = tl.sum(b_g.to(tl.float32) * b_out.to(tl.float32), 1)  # [BQ]
    tl.store(p_delta + i_row + o_q, b_delta, mask=m_q)
    b_dq = tl.zeros((BQ, D), tl.float32)
    for i_k in range(0, keys, BK):
        o_m = (i_k + o_k).to(tl.int64) * kv_m
        m_k = i_k + o_k < keys
        b_k = tl.load(p_kv + o_m[:, None] + o_d[None, :], mask=m_k[:, None], other=0.0)  # [BK, D]
        if DC == D:
            b_v = tl.load(p_kv + channels + o_m[:, None] + o_d[None, :], mask=m_k[:, None], other=0.0)  # [BK, D]
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [BQ, BK]
            b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PRECISION)  # [BQ, BK]
        else:
            p_k = p_kv + o_m[:, None] + o_c[None, :]
            p_qc = p_q + (o_q * q_n)[:, None] + o_c[None, :]
            p_gc = p_grad + (o_q * g_n)[:, None] + o_c[None, :]
            b_s = product_in_chunks(p_qc, m_q, p_k, m_k, depth, p_kv, m_k, False, PRECISION)
            b_dp = product_in_chunks(p_gc, m_q, p_k + channels, m_k, depth, p_kv, m_k, False, PRECISION)
        b_p = tl.exp2(b_s * (scale * LOG2E) - b_lse[:, None])
        if TAIL:
            b_p = tl.where(m_k[None, :], b_p, 0.0)
        b_ds = (b_p * (b_dp - b_delta[:, None])).to(b_k.dtype)
        b_dq = tl.dot(b_ds, b_k, b_dq, input_precision=PRECISION)
    tl.store(p_dq + o_row, (b_dq * scale).to(p_dq.dtype.element_ty), mask=m_q[:, None])


@triton.jit(do_not_specialize=["queries", "keys", "per_split", "splits"])
def gsa_backward_kv_kernel(
    p_grad, p_q, p_kv, p_lse, p_delta, p_dkv, g_b, g_n, q_b, q_n, kv_b, kv_m, queries, keys, channels, depth, per_split,
    splits, scale,
    BQ: tl.constexpr, BK: tl.constexpr, D: tl.constexpr, DC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of BK keys and values from `per_split` queries. Grid: (heads, key blocks · splits, batch).

    p_dkv: fp32 [splits, batch, keys, 2 · channels], or the gradient itself where splits is 1.
    """
    i_h = tl.program_id(0)
    i_k = tl.program_id(1) // splits
    i_s = tl.program_id(1) % splits
    i_b = tl.program_id(2).to(tl.int64)
    o_d = tl.arange(0, D)
    o_c = tl.arange(0, DC)
    o_k = i_k * BK + tl.arange(0, BK)
    m_k = o_k < keys  # rows past the last key hold whatever they hold: rows do not mix, and those are not stored
    o_k = o_k.to(tl.int64)
    p_kv += i_b * kv_b + i_h * D
    p_q += i_b * q_b + i_h * D
    p_grad += i_b * g_b + i_h * D
    if DC == D:
        p_k = p_kv + (o_k * kv_m)[:, None] + o_d[None, :]
        b_k = tl.load(p_k, mask=m_k[:, None], other=0.0)  # [BK, D]
        b_v = tl.load(p_k + channels, mask=m_k[:, None], other=0.0)  # [BK, D]
    b_dk = tl.zeros((BK, D), tl.float32)
    b_dv = tl.zeros((BK, D), tl.float32)
    i_row = (i_b * tl.num_programs(0) + i_h) * queries
    first = i_s * per_split
    last = tl.minimum(first + per_split, queries)
    for i_q in range(first, last, BQ):
        o_q = i_q + tl.arange(0, BQ)
        m_q = o_q < last
        o_q = o_q.to(tl.int64)
        b_q = tl.load(p_q + (o_q * q_n)[:, None] + o_d[None, :], mask=m_q[:, None], other=0.0)  # [BQ, D]
        b_g = tl.load(p_grad + (o_q * g_n)[:, None] + o_d[None, :], mask=m_q[:, None], other=0.0)  # [BQ, D]
        b_lse = tl.load(p_lse + i_row + o_q, mask=m_q, other=0.0) * LOG2E  # [BQ]
        b_delta = tl.load(p_delta + i_row + o_q, mask=m_q, other=0.0)  # [BQ]
        if DC == D:
            b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)  # [BK, BQ]
            b_dp = tl.dot(b_v, tl.trans(b_g), input_precision=PRECISION)  # [BK, BQ]
        else:
            p_kc = p_kv + (o_k * kv_m)[:, None] + o_c[None, :]
            p_qc = p_q + (o_q * q_n)[:, None] + o_c[None, :]
            p_gc = p_grad + (o_q * g_n)[:, None] + o_c[None, :]
            b_s = product_in_chunks(p_kc, m_k, p_qc, m_q, depth, p_kv, m_q, False, PRECISION)
            b_dp = product_in_chunks(p_kc + channels, m_k, p_gc, m_q, depth, p_kv, m_q, False, PRECISION)
        b_p = tl.exp2(b_s * (scale * LOG2E) - b_lse[None, :])
        b_dv = tl.dot(b_p.to(b_g.dtype), b_g, b_dv, input_precision=PRECISION)
        b_ds = (b_p * (b_dp - b_delta[None, :])).to(b_q.dtype)
        b_dk = tl.dot(b_ds, b_q, b_dk, input_precision=PRECISION)
    p_dkv += (i_s * tl.num_programs(2) + i_b) * keys * 2 * channels + i_h * D
    p_dk = p_dkv + (o_k * 2 * channels)[:, None] + o_d[None, :]
    tl.store(p_dk, (b_dk * scale).to(p_dkv.dtype.element_ty), mask=m_k[:, None])
    tl.store(p_dk + channels, b_dv.to(p_dkv.dtype.element_ty), mask=m_k[:, None])


@triton.jit(do_not_specialize=["splits"])
def gsa_sum_splits_kernel(p_parts, p_sum, size, splits, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Sum of `splits` fp32 arrays of `size` elements, PARTS of them at a time. Grid: (size / BLOCK)."""
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    o_s = tl.arange(0, PARTS)
    m = o < size
    b = tl.zeros((PARTS, BLOCK), tl.float32)
    p = p_parts + o_s.to(tl.int64)[:, None] * size + o[None, :]
    for i_s in range(0, splits, PARTS):
        b += tl.load(p, mask=(i_s + o_s < splits)[:, None] & m[None, :], other=0.0)  # [PARTS, BLOCK]
        p += size.to(tl.int64) * PARTS
    tl.store(p_sum + o, tl.sum(b, 0).to(p_sum.dtype.element_ty), mask=m)

# mypy: disallow-untyped-defs=False
"""LSA kernels: one program is one window of one or two heads, or many windows, in the map itself.

The 49 tokens of a window are rows of a 64-row block; padding, partition and their reverse are address arithmetic.
Scores, softmax and sums are fp32 whatever the map's dtype. Padded keys that attend are read from the qkv bias, because
that is what they project to. The backward kernel recomputes the scores: nothing but qkv is kept from forward.
"""

from __future__ import annotations

import triton
import triton.language as tl

from twins_trt.kernels.blocks import LOG2E, load_rows, product_in_chunks


@triton.jit
def tokens_in_map(o_t, rows, columns, WINDOW: tl.constexpr):
    """Which tokens of a window lie in the map, given how many of its rows and columns do."""
    # Bit y·WINDOW + x of a 64-bit word stands for token (y, x): fewer instructions than dividing every lane's index.
    FIRST_OF_EACH_ROW: tl.constexpr = ((1 << (WINDOW * WINDOW)) - 1) // ((1 << WINDOW) - 1)
    line = (tl.full((), 1, tl.int64) << columns) - 1
    # shifted right from all ones: to the left it would be by 64 for a whole 8×8 window, which is undefined
    lines = (tl.full((), 0xFFFFFFFFFFFFFFFF, tl.uint64) >> (64 - rows * WINDOW).to(tl.uint64)).to(tl.int64)
    bits = line * FIRST_OF_EACH_ROW & lines
    return ((bits >> o_t) & 1) != 0


@triton.jit(do_not_specialize=["height", "width", "window_rows"])
def lsa_forward_kernel(
    p_qkv, p_bias, p_out, s_b, s_h, s_w, height, width, window_rows, channels, depth, scale,
    HEADS: tl.constexpr, WINDOW: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, DC: tl.constexpr,
    PADS_ATTEND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (heads / HEADS, window columns, batch · window rows). Heads vary fastest: neighbours share cache lines."""
    i_b = tl.program_id(2) // window_rows
    i_y = (tl.program_id(2) - i_b * window_rows) * WINDOW
    i_x = tl.program_id(1) * WINDOW
    i_c = tl.program_id(0) * (HEADS * D)
    i_b = i_b.to(tl.int64)
    rows = tl.minimum(height - i_y, WINDOW)
    columns = tl.minimum(width - i_x, WINDOW)
    o_t = tl.arange(0, ROWS)
    o_d = tl.arange(0, DC)
    o_y = o_t // WINDOW
    o_x = o_t % WINDOW
    m_window = o_t < WINDOW * WINDOW
    m_map = tokens_in_map(o_t, rows, columns, WINDOW)
    p_qkv += i_b * s_b + i_y.to(tl.int64) * s_h + i_x.to(tl.int64) * s_w + i_c
    p_q = p_qkv + (o_y * s_h + o_x * s_w)[:, None]  # [ROWS, 1]
    p_k = p_q + channels
    p_v = p_k + channels
    p_out += ((i_b * height + i_y) * width + i_x) * channels + i_c
    p_o = p_out + ((o_y * width + o_x) * channels)[:, None]
    m_pad = m_window & (m_map == 0)
    p_kpad = p_bias + (channels + i_c) + o_d[None, :]  # [1, DC], what a padded token projects to
    p_vpad = p_kpad + channels
    p_q += o_d[None, :]
    p_k += o_d[None, :]
    p_v += o_d[None, :]
    p_o += o_d[None, :]
    for i in tl.static_range(HEADS):
        if DC == D:
            b_q = tl.load(p_q + i * D, mask=m_map[:, None], other=0.0)  # [ROWS, D]
            b_k = load_rows(p_k + i * D, m_map, p_kpad + i * D, m_pad, PADS_ATTEND)  # [ROWS, D]
            b_v = load_rows(p_v + i * D, m_map, p_vpad + i * D, m_pad, PADS_ATTEND)  # [ROWS, D]
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [ROWS queries, ROWS keys]
        else:
            b_s = product_in_chunks(
                p_q + i * D, m_map, p_k + i * D, m_map, depth, p_kpad + i * D, m_pad, PADS_ATTEND, PRECISION
            )
        b_s = tl.where(m_window[None, :], b_s, float("-inf"))
        if not PADS_ATTEND and (rows < WINDOW or columns < WINDOW):
            # a branch, because most windows are whole and need none of this
            b_s = tl.where(tokens_in_map(o_t, rows, columns, WINDOW)[None, :], b_s, float("-inf"))
        b_max = tl.max(b_s, 1) * (scale * LOG2E)
        b_p = tl.exp2(b_s * (scale * LOG2E) - b_max[:, None])
        b_r = 1.0 / tl.sum(b_p, 1)
        b_p = b_p.to(p_out.dtype.element_ty)
        if DC == D:
            b_o = tl.dot(b_p, b_v, input_precision=PRECISION) * b_r[:, None]  # [ROWS, D]
            tl.store(p_o + i * D, b_o.to(p_out.dtype.element_ty), mask=m_map[:, None])
        else:
            for o_c in range(i * D, i * D + depth, DC):
                b_v = load_rows(p_v + o_c, m_map, p_vpad + o_c, m_pad, PADS_ATTEND)  # [ROWS, DC]
                b_o = tl.dot(b_p, b_v, input_precision=PRECISION) * b_r[:, None]
                tl.store(p_o + o_c, b_o.to(p_out.dtype.element_ty), mask=m_map[:, None])


@triton.jit(do_not_specialize=["height", "width", "window_rows"])
def lsa_backward_kernel(
    p_grad, p_qkv, p_bias, p_dqkv, p_dpads, g_b, g_h, g_w, s_b, s_h, s_w, height, width, window_rows, channels, depth,
    scale,
    WINDOW: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, DC: tl.constexpr, DN: tl.constexpr,
    PADS_ATTEND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (heads, window columns, batch · window rows).

    p_dpads: fp32 [edge windows, 2, channels], the sum over a window's padded tokens of dk and dv; every edge window
    writes its own row (no atomics), so that the bias gradient is the same from run to run.
    """
    i_b = tl.program_id(2) // window_rows
    i_y = (tl.program_id(2) - i_b * window_rows) * WINDOW
    i_x = tl.program_id(1) * WINDOW
    i_c = tl.program_id(0) * D
    rows = tl.minimum(height - i_y, WINDOW)
    columns = tl.minimum(width - i_x, WINDOW)
    # An image's edge windows: those of the last row if the bottom is padded, then the last of every other row if the
    # right is.
    bottom = height < window_rows * WINDOW
    first = tl.where(bottom, tl.num_programs(1), 0)
    edges = first + tl.where(width < tl.num_programs(1) * WINDOW, window_rows - bottom.to(tl.int32), 0)
    i_e = i_b * edges + tl.where(rows < WINDOW, tl.program_id(1), first + i_y // WINDOW)
    edge = rows < WINDOW or columns < WINDOW
    i_b = i_b.to(tl.int64)
    o_t = tl.arange(0, ROWS)
    o_d = tl.arange(0, DN)
    o_c = tl.arange(0, DC)
    o_y = o_t // WINDOW
    o_x = o_t % WINDOW
    m_window = o_t < WINDOW * WINDOW
    m_map = tokens_in_map(o_t, rows, columns, WINDOW)
    m_pad = m_window & (m_map == 0)
    p_qkv += i_b * s_b + i_y.to(tl.int64) * s_h + i_x.to(tl.int64) * s_w + i_c
    p_q = p_qkv + (o_y * s_h + o_x * s_w)[:, None]  # [ROWS, 1]
    p_k = p_q + channels
    p_v = p_k + channels
    p_grad += i_b * g_b + i_y.to(tl.int64) * g_h + i_x.to(tl.int64) * g_w + i_c
    p_g = p_grad + (o_y * g_h + o_x * g_w)[:, None]
    p_dqkv += ((i_b * height + i_y) * width + i_x) * (3 * channels) + i_c
    p_dq = p_dqkv + ((o_y * width + o_x) * (3 * channels))[:, None] + o_d[None, :]
    p_dk = p_dq + channels
    p_dv = p_dk + channels
    p_de = p_dpads + i_e.to(tl.int64) * (2 * channels) + i_c + o_d
    dtype = p_dqkv.dtype.element_ty
    p_kpad = p_bias + (channels + i_c)  # what a padded token projects to
    p_vpad = p_kpad + channels

    if DN == D:
        b_q = tl.load(p_q + o_d[None, :], mask=m_map[:, None], other=0.0)  # [ROWS, D]
        b_k = load_rows(p_k + o_d[None, :], m_map, p_kpad + o_d[None, :], m_pad, PADS_ATTEND)  # [ROWS, D]
        b_v = load_rows(p_v + o_d[None, :], m_map, p_vpad + o_d[None, :], m_pad, PADS_ATTEND)  # [ROWS, D]
        b_g = tl.load(p_g + o_d[None, :], mask=m_map[:, None], other=0.0)  # [ROWS, D]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [ROWS queries, ROWS keys]
        b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PRECISION)  # [ROWS queries, ROWS keys]
    else:
        o_c = o_c[None, :]
        b_s = product_in_chunks(p_q + o_c, m_map, p_k + o_c, m_map, depth, p_kpad + o_c, m_pad, PADS_ATTEND, PRECISION)
        b_dp = product_in_chunks(p_g + o_c, m_map, p_v + o_c, m_map, depth, p_vpad + o_c, m_pad, PADS_ATTEND, PRECISION)
    b_s = tl.where(m_window[None, :], b_s, float("-inf"))
    if not PADS_ATTEND and edge:
        b_s = tl.where(tokens_in_map(o_t, rows, columns, WINDOW)[None, :], b_s, float("-inf"))
    b_max = tl.max(b_s, 1) * (scale * LOG2E)
    b_p = tl.exp2(b_s * (scale * LOG2E) - b_max[:, None])
    b_p *= (1.0 / tl.sum(b_p, 1))[:, None]
    b_delta = tl.sum(b_p * b_dp, 1) * scale
    b_ds = (b_p * (b_dp * scale - b_delta[:, None])).to(dtype)
    b_pt = tl.trans(b_p.to(dtype))  # [ROWS keys, ROWS queries]

    if DN == D:
        b_dv = tl.dot(b_pt, b_g, input_precision=PRECISION)  # [ROWS, D]
        b_dq = tl.dot(b_ds, b_k, input_precision=PRECISION)
        b_dk = tl.dot(tl.trans(b_ds), b_q, input_precision=PRECISION)
        tl.store(p_dq, b_dq.to(dtype), mask=m_map[:, None])
        tl.store(p_dk, b_dk.to(dtype), mask=m_map[:, None])
        tl.store(p_dv, b_dv.to(dtype), mask=m_map[:, None])
        if PADS_ATTEND and edge:
            tl.store(p_de, tl.sum(tl.where(m_pad[:, None], b_dk, 0.0), 0))
            tl.store(p_de + channels, tl.sum(tl.where(m_pad[:, None], b_dv, 0.0), 0))
    else:
        # one product after the other, each in its own loop: together their operands would not fit the registers
        for i_n in range(0, depth, DN):
            b_g = tl.load(p_g + i_n + o_d[None, :], mask=m_map[:, None], other=0.0)  # [ROWS, DN]
            b_dv = tl.dot(b_pt, b_g, input_precision=PRECISION)
            tl.store(p_dv + i_n, b_dv.to(dtype), mask=m_map[:, None])
            if PADS_ATTEND and edge:
                tl.store(p_de + (channels + i_n), tl.sum(tl.where(m_pad[:, None], b_dv, 0.0), 0))
        for i_n in range(0, depth, DN):
            o_n = i_n + o_d[None, :]
            b_k = load_rows(p_k + o_n, m_map, p_kpad + o_n, m_pad, PADS_ATTEND)  # [ROWS, DN]
            b_dq = tl.dot(b_ds, b_k, input_precision=PRECISION)
            tl.store(p_dq + i_n, b_dq.to(dtype), mask=m_map[:, None])
        b_dst = tl.trans(b_ds)  # [ROWS keys, ROWS queries]
        for i_n in range(0, depth, DN):
            b_q = tl.load(p_q + i_n + o_d[None, :], mask=m_map[:, None], other=0.0)  # [ROWS, DN]
            b_dk = tl.dot(b_dst, b_q, input_precision=PRECISION)
            tl.store(p_dk + i_n, b_dk.to(dtype), mask=m_map[:, None])
            if PADS_ATTEND and edge:
                tl.store(p_de + i_n, tl.sum(tl.where(m_pad[:, None], b_dk, 0.0), 0))


@triton.jit(do_not_specialize=["height", "width", "window_rows", "window_columns", "heads", "windows"])
def lsa_backward_many_kernel(
    p_grad, p_qkv, p_dqkv, g_b, g_h, g_w, s_b, s_h, s_w, height, width, window_rows, window_columns, heads, windows,
    channels, scale,
    WINDOW: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """As `lsa_backward_kernel`, many windows a program, the next ones loaded meanwhile. Grid: any number of programs.

    16-bit, and no padded token attends: only tokens of the map are loaded, and they are the first rows of the block.
    windows: of all heads; heads vary fastest.
    """
    o_t = tl.arange(0, ROWS)
    o_d = tl.arange(0, D)
    dtype = p_dqkv.dtype.element_ty
    for i in range(tl.program_id(0), windows, tl.num_programs(0)):
        i_w = i // heads
        i_c = (i - i_w * heads) * D
        i_r = i_w // window_columns
        i_x = (i_w - i_r * window_columns) * WINDOW
        i_b = i_r // window_rows
        i_y = (i_r - i_b * window_rows) * WINDOW
        i_b = i_b.to(tl.int64)
        columns = tl.minimum(width - i_x, WINDOW)
        tokens = tl.minimum(height - i_y, WINDOW) * columns
        o_y = ((o_t.to(tl.float32) + 0.5) * (1.0 / columns.to(tl.float32))).to(tl.int32)  # o_t // columns
        o_x = o_t - o_y * columns
        m = (o_t < tokens)[:, None]
        p_q = p_qkv + (i_b * s_b + i_y.to(tl.int64) * s_h + i_x.to(tl.int64) * s_w + i_c)
        p_q = p_q + (o_y * s_h + o_x * s_w)[:, None] + o_d[None, :]
        p_k = p_q + channels
        p_g = p_grad + (i_b * g_b + i_y.to(tl.int64) * g_h + i_x.to(tl.int64) * g_w + i_c)
        p_g = p_g + (o_y * g_h + o_x * g_w)[:, None] + o_d[None, :]
        p_dq = p_dqkv + (((i_b * height + i_y) * width + i_x) * (3 * channels) + i_c)
        p_dq = p_dq + ((o_y * width + o_x) * (3 * channels))[:, None] + o_d[None, :]
        p_dk = p_dq + channels
        b_q = tl.load(p_q, mask=m, other=0.0)  # [ROWS, D]
        b_k = tl.load(p_k, mask=m, other=0.0)  # [ROWS, D]
        b_v = tl.load(p_k + channels, mask=m, other=0.0)  # [ROWS, D]
        b_g = tl.load(p_g, mask=m, other=0.0)  # [ROWS, D]
        b_s = tl.dot(b_q, tl.trans(b_k))  # [ROWS queries, ROWS keys]
        b_s = tl.where((o_t < WINDOW * WINDOW)[None, :], b_s, float("-inf"))
        if tokens < WINDOW * WINDOW:
            # a branch, because most windows are whole
            b_s = tl.where((o_t < tokens)[None, :], b_s, float("-inf"))
        b_max = tl.max(b_s, 1) * (scale * LOG2E)
        b_p = tl.exp2(b_s * (scale * LOG2E) - b_max[:, None])
        b_p *= (1.0 / tl.sum(b_p, 1))[:, None]
        # each gradient is stored before the next product: together they would not fit the registers
        b_dv = tl.dot(tl.trans(b_p.to(dtype)), b_g)  # [ROWS, D]
        tl.store(p_dk + channels, b_dv.to(dtype), mask=m)
        b_dp = tl.dot(b_g, tl.trans(b_v))  # [ROWS queries, ROWS keys]
        b_delta = tl.sum(b_p * b_dp, 1) * scale
        b_ds = (b_p * (b_dp * scale - b_delta[:, None])).to(dtype)
        b_dq = tl.dot(b_ds, b_k)
        tl.store(p_dq, b_dq.to(dtype), mask=m)
        b_dk = tl.dot(tl.trans(b_ds), b_q)
        tl.store(p_dk, b_dk.to(dtype), mask=m)

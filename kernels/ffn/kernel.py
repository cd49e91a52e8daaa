# mypy: disallow-untyped-defs=False
"""The kernels of a block's second half, for 16-bit dtypes.

`ffn_kernel` is all of it: one program keeps its rows from load to store, and the hidden layer never leaves it.
`fc1_kernel` is the first product and GELU alone, of rows that another kernel normalized.

Sums, LayerNorm, GELU and products are fp32 inside. What goes into a product is rounded to the dtype; the result is
rounded once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from twins_trt.kernels.blocks import centred, rounded


@triton.jit
def gelu(b):
    """x · Φ(x) of fp32 `b`, where Φ is the normal distribution, within 4e-5 of the exact value.

    Φ - 1/2 is an odd polynomial up to 4.4 and constant beyond, fitted to the least largest error of x · Φ(x). float16
    rounds a result of 0.125 or more by as much. The library's error function takes twice as many instructions.
    """
    b_s = tl.minimum(b * b, 4.4 * 4.4)
    b_q = 3.569430131e-11 * b_s - 3.754049942e-09
    b_q = b_q * b_s + 1.740847701e-07
    b_q = b_q * b_s - 4.724869059e-06
    b_q = b_q * b_s + 8.429302697e-05
    b_q = b_q * b_s - 1.054992581e-03
    b_q = b_q * b_s + 9.643028343e-03
    b_q = b_q * b_s - 6.607643080e-02
    b_q = b_q * b_s + 3.987616102e-01
    return b * tl.minimum(tl.maximum(b * b_q + 0.5, 0.0), 1.0)  # one instruction, which saturates


@triton.jit
def sum_of(p_x, p_y, o_x, o_y, m):
    """x + y, rounded to their dtype as torch rounds it, as fp32."""
    b = tl.load(p_x + o_x, mask=m, other=0.0).to(tl.float32) + tl.load(p_y + o_y, mask=m, other=0.0).to(tl.float32)
    return rounded(b, p_x)


@triton.jit
def normalized(b, p_weight, p_bias, o_c, m_c, eps, C: tl.constexpr, BC: tl.constexpr):
    """LayerNorm of whole rows `b`, [BR, BC] fp32, of which the first C channels exist and the others are 0."""
    b, b_scale = centred(b, m_c[None, :], eps, C, BC)
    b_weight = tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)
    return b * b_scale[:, None] * b_weight[None, :] + b_bias[None, :]


@triton.jit(do_not_specialize=["rows"])
def ffn_kernel(
    p_x, p_y, p_norm_weight, p_norm_bias, p_weight1, p_bias1, p_weight2, p_bias2, p_out, s_x, s_y, rows, eps,
    C: tl.constexpr, BC: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Grid: (ceil(rows / BR)). BC: the power of two from C on. BH: hidden channels at a time, a divisor of H.

    s_x, s_y: elements from a row of x and y to the next; those of the result are C.
    """
    i_r = tl.program_id(0) * BR
    o_r = tl.arange(0, BR)
    o_c = tl.arange(0, BC)
    o_h = tl.arange(0, BH)
    m_c = o_c < C
    m_r = o_r < rows - i_r
    m = m_r[:, None] & m_c[None, :]
    i_r = i_r.to(tl.int64)
    b_sum = sum_of(
        p_x + i_r * s_x, p_y + i_r * s_y, o_r[:, None] * s_x + o_c[None, :], o_r[:, None] * s_y + o_c[None, :], m
    )
    b_norm = normalized(b_sum, p_norm_weight, p_norm_bias, o_c, m_c, eps, C, BC).to(p_x.dtype.element_ty)
    b_out = b_sum + tl.load(p_bias2 + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]  # [BR, BC]
    for i_h in range(0, H, BH):
        # weights lie as torch has them: [H, C], and [C, H]
        b_w1 = tl.load(p_weight1 + (i_h + o_h)[:, None] * C + o_c[None, :], mask=m_c[None, :], other=0.0)  # [BH, BC]
        b_w2 = tl.load(p_weight2 + o_c[:, None] * H + (i_h + o_h)[None, :], mask=m_c[:, None], other=0.0)  # [BC, BH]
        b_hidden = tl.dot(b_norm, tl.trans(b_w1)) + tl.load(p_bias1 + i_h + o_h).to(tl.float32)[None, :]  # [BR, BH]
        b_out = tl.dot(gelu(b_hidden).to(p_x.dtype.element_ty), tl.trans(b_w2), b_out)
    o_out = o_r[:, None] * C + o_c[None, :]
    tl.store(p_out + i_r * C + o_out, b_out.to(p_out.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["rows"])
def fc1_kernel(
    p_x, p_weight1, p_bias1, p_hidden, rows,
    C: tl.constexpr, BK: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Grid: (H / BH, ceil(rows / BR)). p_x: normalized, [rows, C]. BK: channels at a time, a divisor of C."""
    i_h = tl.program_id(0) * BH
    i_r = tl.program_id(1) * BR
    o_r = tl.arange(0, BR)
    o_h = tl.arange(0, BH)
    o_k = tl.arange(0, BK)
    m_r = o_r < rows - i_r
    i_r = i_r.to(tl.int64)
    p_x += i_r * C
    b_hidden = tl.zeros([BR, BH], tl.float32)
    for i_k in range(0, C, BK):
        b_x = tl.load(p_x + o_r[:, None] * C + (i_k + o_k)[None, :], mask=m_r[:, None], other=0.0)  # [BR, BK]
        b_w1 = tl.load(p_weight1 + (i_h + o_h)[:, None] * C + (i_k + o_k)[None, :])  # [BH, BK]
        b_hidden = tl.dot(b_x, tl.trans(b_w1), b_hidden)
    b_hidden += tl.load(p_bias1 + i_h + o_h).to(tl.float32)[None, :]
    p_hidden += i_r * H + i_h
    o_hidden = o_r[:, None] * H + o_h[None, :]
    tl.store(p_hidden + o_hidden, gelu(b_hidden).to(p_hidden.dtype.element_ty), mask=m_r[:, None])

# mypy: disallow-untyped-defs=False
"""The add-and-normalize kernel: one program is a few whole rows, which stay in registers from load to store.

Additions, mean, variance and normalization are fp32 whatever the dtype. Each sum is rounded to the dtype, as torch
rounds it, before it is added to or normalized.
"""

from __future__ import annotations

import triton
import triton.language as tl

from twins_trt.kernels.blocks import centred, rounded


@triton.jit(do_not_specialize=["rows", "keep_sum"])
def add_layer_norm_kernel(
    p_x, p_y, p_row, p_after, p_weight, p_bias, p_sum, p_out, s_x, s_y, rows, keep_sum, eps,
    C: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
    ROW: tl.constexpr, RESIDUAL: tl.constexpr, AFTER: tl.constexpr,
):  # fmt: skip
    """Grid: (ceil(rows / BR)). BC: the power of two from C on.

    s_x, s_y: elements from a row of x and y to the next; those of the sum and the result are C. ROW, RESIDUAL: whether
    p_row and p_y are read. keep_sum: whether p_sum is written. AFTER: p_sum is written, with p_after added to it.
    """
    i_r = tl.program_id(0) * BR
    o_r = tl.arange(0, BR)[:, None]  # [BR, 1]
    # the vectors are loaded for every row: as [1, BC] they would have a layout of their own, and all else would go
    # through shared memory to it and back
    o_c = tl.broadcast_to(tl.arange(0, BC)[None, :], [BR, BC])
    m_c = o_c < C
    m = o_r < rows - i_r
    if C < BC:
        m = m & m_c  # [BR, BC]
    i_r = i_r.to(tl.int64)
    b = tl.load(p_x + i_r * s_x + (o_r * s_x + o_c), mask=m, other=0.0).to(tl.float32)  # [BR, BC]
    if RESIDUAL:
        b_y = tl.load(p_y + i_r * s_y + (o_r * s_y + o_c), mask=m, other=0.0).to(tl.float32)  # [BR, BC]
    b_weight = tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)  # [BR, BC]
    b_bias = tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)  # [BR, BC]
    if ROW:
        b = rounded(b + tl.load(p_row + o_c, mask=m_c, other=0.0).to(tl.float32), p_x)
    if RESIDUAL:
        b = rounded(b + b_y, p_x)
    o_out = o_r * C + o_c
    if AFTER:
        b_after = b + tl.load(p_after + o_c, mask=m_c, other=0.0).to(tl.float32)
        tl.store(p_sum + i_r * C + o_out, b_after.to(p_sum.dtype.element_ty), mask=m)
    elif (ROW or RESIDUAL) and keep_sum != 0:
        tl.store(p_sum + i_r * C + o_out, b.to(p_sum.dtype.element_ty), mask=m)
    b, b_scale = centred(b, m_c, eps, C, BC)
    b_out = b * b_scale[:, None] * b_weight + b_bias
    tl.store(p_out + i_r * C + o_out, b_out.to(p_out.dtype.element_ty), mask=m)

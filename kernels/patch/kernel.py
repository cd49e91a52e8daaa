# mypy: disallow-untyped-defs=False
"""The kernels of a convolution of patches with LayerNorm, for few patches: the product in parts, and what adds them.

A few hundred patches of thousands of values are a product with few results, each a long sum. Cut along the sum it is
many programs. Their parts are fp32; the convolution's result is rounded to the dtype once, as torch rounds it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from twins_trt.kernels.blocks import centred, rounded


@triton.jit(do_not_specialize=["rows", "height", "width", "depth"])
def patch_product_kernel(
    p_x, p_weight, p_parts, s_b, s_h, rows, height, width, depth,
    SIDE: tl.constexpr, C: tl.constexpr, D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Grid: (D / BD, ceil(rows / BR), parts), and every part is a sum of `depth` values of a patch.

    rows: patches of the batch, of which a map has height · width. s_b, s_h: elements from a map of x to the next, and
    from a row of pixels to the next; channels lie side by side, and so do pixels. p_weight: [D, SIDE, SIDE, C].
    p_parts: fp32 [parts, rows, D]. BK: values at a time, a divisor of depth and of SIDE · C.
    """
    LINE: tl.constexpr = SIDE * C  # values of a patch that lie side by side
    i_d = tl.program_id(0) * BD
    o_r = tl.program_id(1) * BR + tl.arange(0, BR)
    i_part = tl.program_id(2)
    o_d = i_d + tl.arange(0, BD)
    o_k = tl.arange(0, BK)
    m_r = o_r < rows
    o_line = o_r // width  # rows of patches, of all maps
    o_b = o_line // height
    o_patch = o_b.to(tl.int64) * s_b + (o_line - o_b * height) * SIDE * s_h + (o_r - o_line * width) * LINE
    p_x += o_patch[:, None] + o_k[None, :]  # [BR, BK]
    p_weight += o_d[:, None] * (SIDE * LINE) + o_k[None, :]  # [BD, BK]
    b = tl.zeros([BR, BD], tl.float32)
    for i in range(0, depth, BK):
        i_k = tl.multiple_of(i_part * depth + i, BK)
        i_y = i_k // LINE
        b_x = tl.load(p_x + (i_y * s_h + tl.multiple_of(i_k - i_y * LINE, BK)), mask=m_r[:, None], other=0.0)
        b_weight = tl.load(p_weight + i_k)
        b = tl.dot(b_x, tl.trans(b_weight), b)
    p_parts += i_part.to(tl.int64) * rows * D
    tl.store(p_parts + o_r[:, None] * D + o_d[None, :], b, mask=m_r[:, None])


@triton.jit(do_not_specialize=["rows", "parts"])
def add_parts_norm_kernel(
    p_parts, p_bias, p_norm_weight, p_norm_bias, p_out, rows, parts, eps,
    D: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Grid: (ceil(rows / BR)). BD: the power of two from D on."""
    o_r = tl.program_id(0) * BR + tl.arange(0, BR)[:, None]  # [BR, 1]
    o_d = tl.broadcast_to(tl.arange(0, BD)[None, :], [BR, BD])  # as in the kernel of LayerNorm
    m_d = o_d < D
    m = (o_r < rows) & m_d
    o = o_r * D + o_d
    b = tl.zeros([BR, BD], tl.float32)
    for _ in range(parts):
        b += tl.load(p_parts + o, mask=m, other=0.0)
        p_parts += rows * D
    b += tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    b = rounded(b, p_out)
    b, b_scale = centred(b, m_d, eps, D, BD)
    b_weight = tl.load(p_norm_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_bias = tl.load(p_norm_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    tl.store(p_out + o, (b * b_scale[:, None] * b_weight + b_bias).to(p_out.dtype.element_ty), mask=m)

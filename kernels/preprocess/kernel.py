# mypy: disallow-untyped-defs=False
"""The resize-and-normalize kernel: one program is a run of pixels of one row of the result, in all three channels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["height", "width", "blocks"])
def resize_normalize_kernel(
    p_image, p_out, p_rows, p_columns, s_b, s_h, s_w, s_c, o_b, o_c, o_h, o_w, height, width, blocks,
    mean_r, mean_g, mean_b, std_r, std_g, std_b,
    BX: tl.constexpr, RESIZE: tl.constexpr,
):  # fmt: skip
    """Grid: (batch · height · blocks of a row).

    p_rows, p_columns: int32 [4, height] and [4, width], two indices and their two weights (`row_taps`).
    """
    i_r = tl.program_id(0) // blocks
    i_x = tl.program_id(0) - i_r * blocks
    i_b = i_r // height
    i_y = i_r - i_b * height
    o_x = i_x * BX + tl.arange(0, BX)
    m_x = o_x < width
    p_image += i_b.to(tl.int64) * s_b
    p_out += i_b.to(tl.int64) * o_b + i_y.to(tl.int64) * o_h + o_x.to(tl.int64) * o_w  # [BX]
    if RESIZE:
        b_top = tl.load(p_rows + i_y).to(tl.int64) * s_h
        b_bottom = tl.load(p_rows + height + i_y).to(tl.int64) * s_h
        b_above = tl.load(p_rows + 2 * height + i_y)
        b_below = tl.load(p_rows + 3 * height + i_y)
        b_left = tl.load(p_columns + o_x, mask=m_x, other=0).to(tl.int64) * s_w  # [BX]
        b_right = tl.load(p_columns + width + o_x, mask=m_x, other=0).to(tl.int64) * s_w
        b_before = tl.load(p_columns + 2 * width + o_x, mask=m_x, other=0)
        b_after = tl.load(p_columns + 3 * width + o_x, mask=m_x, other=0)
    else:
        p_image += i_y.to(tl.int64) * s_h + o_x.to(tl.int64) * s_w
    for i in tl.static_range(3):
        if RESIZE:
            p = p_image + i * s_c
            b_00 = tl.load(p + (b_top + b_left), mask=m_x, other=0).to(tl.int32)  # [BX]
            b_01 = tl.load(p + (b_top + b_right), mask=m_x, other=0).to(tl.int32)
            b_10 = tl.load(p + (b_bottom + b_left), mask=m_x, other=0).to(tl.int32)
            b_11 = tl.load(p + (b_bottom + b_right), mask=m_x, other=0).to(tl.int32)
            # OpenCV's fixed point: 11 bits of weight an axis, four dropped in between, the rest with the last rounding
            b_first = ((b_00 * b_before + b_01 * b_after) >> 4) * b_above >> 16
            b_second = ((b_10 * b_before + b_11 * b_after) >> 4) * b_below >> 16
            b_pixel = (b_first + b_second + 2) >> 2
        else:
            b_pixel = tl.load(p_image + i * s_c, mask=m_x, other=0).to(tl.int32)
        if i == 0:
            mean, std = mean_r, std_r
        elif i == 1:
            mean, std = mean_g, std_g
        else:
            mean, std = mean_b, std_b
        # div_rn, because `/` is off by a bit here and there on a GPU
        b_out = tl.div_rn(b_pixel.to(tl.float32) - mean, tl.zeros([BX], tl.float32) + std)
        tl.store(p_out + i * o_c, b_out.to(p_out.dtype.element_ty), mask=m_x)

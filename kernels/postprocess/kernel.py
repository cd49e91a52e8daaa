# mypy: disallow-untyped-defs=False
"""The resize-and-argmax kernel: one program is a tile of the mask, which goes over the classes once.

Interpolation, comparison and the softmax's sum are fp32 whatever the logits' dtype. Neighbouring pixels of an enlarged
mask share their four logits, so that most loads are served by the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from twins_trt.kernels.blocks import LOG2E


@triton.jit
def source_of(o, scale, size):
    """Index of the first of two neighbours along an axis of `size` logits, and the weight of the second."""
    f = tl.maximum((o.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    i = tl.minimum(f.to(tl.int32), size - 1)
    return i, f - i.to(tl.float32)


@triton.jit
def resize_argmax_kernel(
    p_logits, p_mask, p_probability, s_b, s_c, s_h, s_w, in_height, in_width, height, width, classes, tile_columns,
    tiles, scale_y, scale_x,
    BY: tl.constexpr, BX: tl.constexpr, BC: tl.constexpr, CLASSES_LAST: tl.constexpr, PROBABILITY: tl.constexpr,
):  # fmt: skip
    """Grid: (batch · tiles of an image). BP = BY · BX pixels a tile, BC classes at a time."""
    i_b = tl.program_id(0) // tiles
    i_t = tl.program_id(0) - i_b * tiles
    o_p = tl.arange(0, BY * BX)
    o_y = i_t // tile_columns * BY + o_p // BX
    o_x = i_t % tile_columns * BX + o_p % BX
    m_p = (o_y < height) & (o_x < width)
    b_y, b_wy = source_of(o_y, scale_y, in_height)  # [BP]
    b_x, b_wx = source_of(o_x, scale_x, in_width)  # [BP]
    b_top, b_bottom = b_y * s_h, tl.minimum(b_y + 1, in_height - 1) * s_h
    b_left, b_right = b_x * s_w, tl.minimum(b_x + 1, in_width - 1) * s_w
    p_logits += i_b.to(tl.int64) * s_b
    p_00 = p_logits + (b_top + b_left)[:, None]  # [BP, 1]
    p_01 = p_logits + (b_top + b_right)[:, None]
    p_10 = p_logits + (b_bottom + b_left)[:, None]
    p_11 = p_logits + (b_bottom + b_right)[:, None]
    b_wy, b_wx = b_wy[:, None], b_wx[:, None]
    b_best = tl.full([BY * BX], float("-inf"), tl.float32)
    b_class = tl.zeros([BY * BX], tl.int32)
    b_sum = tl.zeros([BY * BX], tl.float32)
    for i_c in range(0, classes, BC):
        o_c = i_c + tl.arange(0, BC)
        m_c = o_c < classes
        m = m_p[:, None] & m_c[None, :]
        o_l = o_c[None, :]  # [1, BC]
        if not CLASSES_LAST:
            o_l *= s_c
        b_00 = tl.load(p_00 + o_l, mask=m, other=0.0).to(tl.float32)  # [BP, BC]
        b_01 = tl.load(p_01 + o_l, mask=m, other=0.0).to(tl.float32)
        b_10 = tl.load(p_10 + o_l, mask=m, other=0.0).to(tl.float32)
        b_11 = tl.load(p_11 + o_l, mask=m, other=0.0).to(tl.float32)
        b_l = (1 - b_wy) * ((1 - b_wx) * b_00 + b_wx * b_01) + b_wy * ((1 - b_wx) * b_10 + b_wx * b_11)
        b_l = tl.where(m_c[None, :], b_l, float("-inf"))
        if BC == 1:
            b_max, b_arg = tl.reshape(b_l, [BY * BX]), 0
        else:
            b_max, b_arg = tl.max(b_l, 1, return_indices=True, return_indices_tie_break_left=True)  # [BP]
        if PROBABILITY:
            b_new = tl.maximum(b_best, b_max)
            b_sum *= tl.exp2((b_best - b_new) * LOG2E)
            b_sum += tl.sum(tl.exp2((b_l - b_new[:, None]) * LOG2E), 1)
        b_class = tl.where(b_max > b_best, i_c + b_arg, b_class)  # an equal class later on does not replace the first
        b_best = tl.maximum(b_best, b_max)
    o_out = (i_b.to(tl.int64) * height + o_y) * width + o_x
    tl.store(p_mask + o_out, b_class.to(tl.uint8), mask=m_p)
    if PROBABILITY:
        tl.store(p_probability + o_out, 1.0 / b_sum, mask=m_p)

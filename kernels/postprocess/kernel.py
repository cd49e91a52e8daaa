# mypy: disallow-untyped-defs=False, disable-error-code=assignment
"""The resize-and-argmax kernels: one program is a part of the mask, which goes over the classes once.

`resize_argmax_kernel` takes a mask of any size, a pixel at a time. `resize_argmax_cells_kernel` takes one of exactly
four times the size, which is what the models make: a cell of 4 × 4 pixels lies between the same four logits, so each of
these is loaded once for sixteen pixels.

Interpolation, comparison and the softmax's sum are fp32 whatever the logits' dtype.
"""

from __future__ import annotations

import triton
import triton.language as tl

from twins_trt.kernels.blocks import LOG2E

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""fp32's lowest finite value: differences of it are 0, those of minus infinity are not."""


@triton.jit
def source_of(o, scale, size):
    """Index of the first of two neighbours along an axis of `size` logits, and the weight of the second."""
    f = tl.maximum((o.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    i = tl.minimum(f.to(tl.int32), size - 1)
    return i, f - i.to(tl.float32)


@triton.jit
def first_of_largest(b, o):
    """The largest of each row of `b`, and the first `o` (below 256) whose value that is: [N, BC], [1, BC] -> [N]."""
    # fewer instructions than a maximum that carries its index along
    b_max = tl.max(b, 1)
    return b_max, tl.min(tl.where(b == b_max[:, None], o, 255), 1)


@triton.jit(do_not_specialize=["in_height", "in_width", "height", "width", "classes", "tile_columns", "tiles"])
def resize_argmax_kernel(
    p_logits, p_mask, p_probability, s_b, s_c, s_h, s_w, in_height, in_width, height, width, classes, tile_columns,
    tiles, scale_y, scale_x,
    BY: tl.constexpr, BX: tl.constexpr, BC: tl.constexpr, CLASSES_LAST: tl.constexpr, WHOLE_BLOCKS: tl.constexpr,
    PROBABILITY: tl.constexpr,
):  # fmt: skip
    """Grid: (batch · tiles of an image). BP = BY · BX pixels a tile, BC classes at a time.

    WHOLE_BLOCKS: behind the last class lies storage up to a multiple of BC, whatever it holds. Loads then need no mask.
    With one, the compiler cannot know that 16 bytes lie on the same side of the last class: it loads class by class.
    """
    i_b = tl.program_id(0) // tiles
    i_t = tl.program_id(0) - i_b * tiles
    o_p = tl.arange(0, BY * BX)
    o_y = i_t // tile_columns * BY + o_p // BX
    o_x = i_t % tile_columns * BX + o_p % BX
    m_p = (o_y < height) & (o_x < width)
    b_y, b_wy = source_of(o_y, scale_y, in_height)  # [BP]; pixels outside the mask read the last logits
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
        o_c = (i_c + tl.arange(0, BC))[None, :]  # [1, BC]
        m_c = o_c < classes
        o_l = o_c
        if not CLASSES_LAST:
            o_l *= s_c
        if WHOLE_BLOCKS:
            b_00 = tl.load(p_00 + o_l).to(tl.float32)  # [BP, BC]
            b_01 = tl.load(p_01 + o_l).to(tl.float32)
            b_10 = tl.load(p_10 + o_l).to(tl.float32)
            b_11 = tl.load(p_11 + o_l).to(tl.float32)
        else:
            b_00 = tl.load(p_00 + o_l, mask=m_c, other=0.0).to(tl.float32)  # [BP, BC]
            b_01 = tl.load(p_01 + o_l, mask=m_c, other=0.0).to(tl.float32)
            b_10 = tl.load(p_10 + o_l, mask=m_c, other=0.0).to(tl.float32)
            b_11 = tl.load(p_11 + o_l, mask=m_c, other=0.0).to(tl.float32)
        b_l = (1 - b_wy) * ((1 - b_wx) * b_00 + b_wx * b_01) + b_wy * ((1 - b_wx) * b_10 + b_wx * b_11)
        if BC == 1:
            b_max, b_first = tl.reshape(b_l, [BY * BX]), i_c
        else:
            b_l = tl.where(m_c, b_l, float("-inf"))
            b_max, b_first = first_of_largest(b_l, o_c)  # [BP]
        if PROBABILITY:
            b_new = tl.maximum(b_best, b_max)
            b_sum *= tl.exp2((b_best - b_new) * LOG2E)
            b_sum += tl.sum(tl.exp2((b_l - b_new[:, None]) * LOG2E), 1)
        b_class = tl.where(b_max > b_best, b_first, b_class)  # an equal class later on does not replace the first
        b_best = tl.maximum(b_best, b_max)
    o_out = (i_b.to(tl.int64) * height + o_y) * width + o_x
    tl.store(p_mask + o_out, b_class.to(tl.uint8), mask=m_p)
    if PROBABILITY:
        tl.store(p_probability + o_out, 1.0 / b_sum, mask=m_p)


@triton.jit(do_not_specialize=["in_height", "in_width", "classes", "tiles"])
def resize_argmax_cells_kernel(
    p_logits, p_mask, s_b, s_h, s_w, in_height, in_width, classes, tiles,
    CELLS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """A mask [batch, 4 · in_height, 4 · in_width] of logits whose classes lie side by side in whole blocks (see above).

    Grid: (batch · tiles of an image), CELLS cells a tile. Cell (y, x) of (in_height + 1) · (in_width + 1) lies between
    logits y - 1 and y, x - 1 and x: rows 4y - 2 to 4y + 1 of the mask, and columns likewise. Cells at the rim have both
    logits in one, and half of them lies outside.
    """
    i_b = tl.program_id(0) // tiles
    o_cell = (tl.program_id(0) - i_b * tiles) * CELLS + tl.arange(0, CELLS)
    o_y = o_cell // (in_width + 1)  # [CELLS]; beyond in_height in the last tile
    o_x = o_cell - o_y * (in_width + 1)
    b_top = tl.minimum(tl.maximum(o_y - 1, 0), in_height - 1) * s_h
    b_bottom = tl.minimum(o_y, in_height - 1) * s_h
    b_left, b_right = tl.maximum(o_x - 1, 0) * s_w, tl.minimum(o_x, in_width - 1) * s_w
    p_logits += i_b.to(tl.int64) * s_b
    p_00 = p_logits + (b_top + b_left)[:, None]  # [CELLS, 1]
    p_01 = p_logits + (b_top + b_right)[:, None]
    p_10 = p_logits + (b_bottom + b_left)[:, None]
    p_11 = p_logits + (b_bottom + b_right)[:, None]
    # of the cell's 16 pixels, column after column
    best = (tl.full([CELLS], float("-inf"), tl.float32),) * 16
    chosen = (tl.zeros([CELLS], tl.int32),) * 16
    for i_c in range(0, classes, BC):
        o_c = (i_c + tl.arange(0, BC))[None, :]  # [1, BC]
        m_c = o_c < classes
        b_00 = tl.where(m_c, tl.load(p_00 + o_c).to(tl.float32), LOWEST)  # [CELLS, BC]
        b_01 = tl.where(m_c, tl.load(p_01 + o_c).to(tl.float32), LOWEST)
        b_10 = tl.where(m_c, tl.load(p_10 + o_c).to(tl.float32), LOWEST)
        b_11 = tl.where(m_c, tl.load(p_11 + o_c).to(tl.float32), LOWEST)
        b_01 -= b_00
        b_11 -= b_10
        new_best = ()
        new_chosen = ()
        for x in tl.static_range(4):
            b_t = b_00 + (0.25 * x + 0.125) * b_01  # [CELLS, BC]
            b_d = b_10 + (0.25 * x + 0.125) * b_11 - b_t
            for y in tl.static_range(4):
                b_max, b_first = first_of_largest(b_t + (0.25 * y + 0.125) * b_d, o_c)  # [CELLS]
                new_chosen += (tl.where(b_max > best[4 * x + y], b_first, chosen[4 * x + y]),)
                new_best += (tl.maximum(best[4 * x + y], b_max),)
        best = new_best
        chosen = new_chosen
    p_mask += i_b.to(tl.int64) * in_height * in_width * 16 + 4 * o_x
    for y in tl.static_range(4):
        i_y = 4 * o_y + (y - 2)
        m_y = (i_y >= 0) & (i_y < 4 * in_height)
        # two pixels at a time: the mask's rows are a multiple of 4 long, and a cell begins two pixels before one
        p = (p_mask + i_y.to(tl.int64) * in_width * 4).to(tl.pointer_type(tl.uint16))
        tl.store(p - 1, two_classes(chosen[y], chosen[4 + y], classes), mask=m_y & (o_x > 0))
        tl.store(p, two_classes(chosen[8 + y], chosen[12 + y], classes), mask=m_y & (o_x < in_width))


@triton.jit
def two_classes(b_first, b_second, classes):
    """Two bytes in one word, the first in the lower half. A pixel of NaN may have chosen none of the classes."""
    b_first = tl.where(b_first < classes, b_first, 0)
    b_second = tl.where(b_second < classes, b_second, 0)
    return (b_first | (b_second << 8)).to(tl.uint16)

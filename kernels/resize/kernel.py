# mypy: disallow-untyped-defs=False, disable-error-code=assignment
"""The resize-and-add kernels: one program is a tile of the result in a block of channels, which lie side by side.

`resize_add_kernel` makes a result of any size, a pixel at a time. `resize_add_twice_kernel` makes one of exactly twice
the size, which the models do most: a cell of 2 × 2 pixels has the same neighbours, so each of these is read and
converted once for four pixels.

A tile has several rows, because neighbours in both directions read the same pixels: they come from L1 after the first.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def neighbours_of(o, scale, size):
    """Indices of both neighbours along an axis of `size` pixels, and the weight of the second."""
    f = tl.maximum((o.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    i = tl.minimum(f.to(tl.int32), size - 1)
    return i, tl.minimum(i + 1, size - 1), f - i.to(tl.float32)


@triton.jit
def nearest_of(o, scale, size):
    """Index of the nearest pixel along an axis of `size` pixels, as torch counts it."""
    return tl.minimum((o.to(tl.float32) * scale).to(tl.int32), size - 1)


@triton.jit
def rounded_sum(b, b_add, ADD: tl.constexpr):
    """`b`, rounded to the dtype of `b_add`, and with ADD the sum of both, rounded again."""
    b = b.to(b_add.dtype)
    if ADD:
        b = (b_add.to(tl.float32) + b.to(tl.float32)).to(b_add.dtype)
    return b


@triton.jit(do_not_specialize=["in_height", "in_width", "height", "width", "tile_columns", "tiles", "blocks"])
def resize_add_kernel(
    p_x, p_add, p_out, in_height, in_width, height, width, channels, tile_columns, tiles, blocks, scale_y, scale_x,
    BY: tl.constexpr, BX: tl.constexpr, BC: tl.constexpr, BILINEAR: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Grid: (batch · tiles of an image · blocks of channels). BP = BY · BX pixels a tile.

    p_x: [batch, in_height, in_width, channels]; p_add, p_out: [batch, height, width, channels]; all dense.
    """
    i_c = tl.program_id(0) % blocks
    i_t = tl.program_id(0) // blocks
    i_b = i_t // tiles
    i_t -= i_b * tiles
    o_p = tl.arange(0, BY * BX)
    o_y = i_t // tile_columns * BY + o_p // BX  # [BP]
    o_x = i_t % tile_columns * BX + o_p % BX
    o_c = (i_c * BC + tl.arange(0, BC))[None, :]  # [1, BC]
    m_c = o_c < channels
    p_x += i_b.to(tl.int64) * in_height * in_width * channels
    # pixels outside the result read the last ones of `x`
    if BILINEAR:
        b_top, b_bottom, b_wy = neighbours_of(o_y, scale_y, in_height)  # [BP]
        b_left, b_right, b_wx = neighbours_of(o_x, scale_x, in_width)
        b_top *= in_width
        b_bottom *= in_width
        b_00 = tl.load(p_x + (((b_top + b_left) * channels)[:, None] + o_c), mask=m_c, other=0.0)  # [BP, BC]
        b_01 = tl.load(p_x + (((b_top + b_right) * channels)[:, None] + o_c), mask=m_c, other=0.0)
        b_10 = tl.load(p_x + (((b_bottom + b_left) * channels)[:, None] + o_c), mask=m_c, other=0.0)
        b_11 = tl.load(p_x + (((b_bottom + b_right) * channels)[:, None] + o_c), mask=m_c, other=0.0)
    else:
        b_from = nearest_of(o_y, scale_y, in_height) * in_width + nearest_of(o_x, scale_x, in_width)  # [BP]
        b_00 = tl.load(p_x + ((b_from * channels)[:, None] + o_c), mask=m_c, other=0.0)  # [BP, BC]
    i_image = i_b.to(tl.int64) * height * width * channels
    o_out = ((o_y * width + o_x) * channels)[:, None] + o_c  # [BP, BC]
    m_out = ((o_y < height) & (o_x < width))[:, None] & m_c
    b_add = b_00
    if ADD:
        b_add = tl.load(p_add + i_image + o_out, mask=m_out, other=0.0)  # [BP, BC]
    b_out = b_00
    if BILINEAR:
        b_wy, b_wx = b_wy[:, None], b_wx[:, None]  # [BP, 1]
        # in torch's order, so that it rounds as torch does
        b_first = (1 - b_wx) * b_00.to(tl.float32) + b_wx * b_01.to(tl.float32)
        b_second = (1 - b_wx) * b_10.to(tl.float32) + b_wx * b_11.to(tl.float32)
        b_out = (1 - b_wy) * b_first + b_wy * b_second
    tl.store(p_out + i_image + o_out, rounded_sum(b_out, b_add, ADD), mask=m_out)


@triton.jit
def cell_pixel(o_y, o_x, in_height, in_width, channels):
    """Offset of pixels of the result of twice the size, and which of them lie in it."""
    m = (o_y >= 0) & (o_y < 2 * in_height) & (o_x >= 0) & (o_x < 2 * in_width)
    return (o_y * 2 * in_width + o_x) * channels, m


@triton.jit(do_not_specialize=["in_height", "in_width", "tile_columns", "tiles", "blocks"])
def resize_add_twice_kernel(
    p_x, p_add, p_out, in_height, in_width, channels, tile_columns, tiles, blocks,
    BY: tl.constexpr, BX: tl.constexpr, BC: tl.constexpr, BILINEAR: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """A result of 2 · in_height rows and 2 · in_width columns (see above).

    Grid: (batch · tiles of an image · blocks of channels). BP = BY · BX cells a tile.
    Nearest: cell (y, x) is pixel (y, x) four times. Bilinear: cell (y, x) of (in_height + 1) · (in_width + 1) lies
    between pixels y - 1 and y, x - 1 and x: rows 2y - 1 and 2y of the result, and columns likewise. Cells at the rim
    have both pixels in one, and half of them lies outside.
    """
    i_c = tl.program_id(0) % blocks
    i_t = tl.program_id(0) // blocks
    i_b = i_t // tiles
    i_t -= i_b * tiles
    o_p = tl.arange(0, BY * BX)
    o_y = i_t // tile_columns * BY + o_p // BX  # [BP]
    o_x = i_t % tile_columns * BX + o_p % BX
    o_c = (i_c * BC + tl.arange(0, BC))[None, :]  # [1, BC]
    m_c = o_c < channels
    p_x += i_b.to(tl.int64) * in_height * in_width * channels
    i_image = i_b.to(tl.int64) * in_height * in_width * channels * 4
    p_add += i_image
    p_out += i_image
    b_bottom, b_right = tl.minimum(o_y, in_height - 1) * in_width, tl.minimum(o_x, in_width - 1)  # [BP]
    b_11 = tl.load(p_x + (((b_bottom + b_right) * channels)[:, None] + o_c), mask=m_c, other=0.0)  # [BP, BC]
    if BILINEAR:
        b_top = tl.minimum(tl.maximum(o_y - 1, 0), in_height - 1) * in_width  # [BP]
        b_left = tl.minimum(tl.maximum(o_x - 1, 0), in_width - 1)
        b_00 = tl.load(p_x + (((b_top + b_left) * channels)[:, None] + o_c), mask=m_c, other=0.0)  # [BP, BC]
        b_01 = tl.load(p_x + (((b_top + b_right) * channels)[:, None] + o_c), mask=m_c, other=0.0)
        b_10 = tl.load(p_x + (((b_bottom + b_left) * channels)[:, None] + o_c), mask=m_c, other=0.0)
    o_y = 2 * o_y - (1 if BILINEAR else 0)
    o_x = 2 * o_x - (1 if BILINEAR else 0)
    # all is loaded before anything is stored: the compiler moves no load past a store
    adds = ()
    for i in tl.static_range(4):
        b_add = b_11
        if ADD:
            o_out, m_out = cell_pixel(o_y + i // 2, o_x + i % 2, in_height, in_width, channels)  # [BP]
            b_add = tl.load(p_add + (o_out[:, None] + o_c), mask=m_out[:, None] & m_c, other=0.0)  # [BP, BC]
        adds += (b_add,)
    if BILINEAR:
        b_00, b_01, b_10 = b_00.to(tl.float32), b_01.to(tl.float32), b_10.to(tl.float32)
        b_11 = b_11.to(tl.float32)
    for x in tl.static_range(2):
        if BILINEAR:
            # in torch's order, so that it rounds as torch does
            b_first = (0.75 - 0.5 * x) * b_00 + (0.25 + 0.5 * x) * b_01  # [BP, BC]
            b_second = (0.75 - 0.5 * x) * b_10 + (0.25 + 0.5 * x) * b_11
        for y in tl.static_range(2):
            b_out = b_11
            if BILINEAR:
                b_out = (0.75 - 0.5 * y) * b_first + (0.25 + 0.5 * y) * b_second
            o_out, m_out = cell_pixel(o_y + y, o_x + x, in_height, in_width, channels)
            b_out = rounded_sum(b_out, adds[2 * y + x], ADD)
            tl.store(p_out + (o_out[:, None] + o_c), b_out, mask=m_out[:, None] & m_c)

# mypy: disallow-untyped-defs=False, disable-error-code=assignment
"""The positional-encoding kernel: one program is BY rows of BX positions of a map, in BC channels.

Every position is loaded once for all rows of the result that it touches. Its other uses come from the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["s_c", "s_ky", "s_kx", "height", "width", "vectors", "columns", "bands", "blocks"])
def add_position_kernel(
    p_x, p_y, p_weight, p_bias, p_out, s_c, s_ky, s_kx, height, width, vectors, columns, bands, blocks,
    BY: tl.constexpr, BX: tl.constexpr, BC: tl.constexpr, VECTOR: tl.constexpr, DENSE: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Grid: (batch · bands · columns · blocks), the last for channels.

    VECTOR: channels are counted in vectors of it, so that the compiler knows that 16 bytes lie side by side.
    DENSE: the weight is [3, 3, channels] in memory, whatever its strides; without, they are s_ky, s_kx and s_c.
    SUM: the map is x + y, rounded to their dtype; without, p_y is not read.
    """
    channels = vectors * VECTOR
    if DENSE:
        s_c, s_ky, s_kx = 1, 3 * channels, channels
    i_t = tl.program_id(0) // blocks
    o_c = (tl.program_id(0) - i_t * blocks) * BC + tl.arange(0, BC)[None, :]  # [1, BC]
    i_r = i_t // columns
    o_x = (i_t - i_r * columns) * BX + tl.arange(0, BX)[:, None]  # [BX, 1]
    i_b = i_r // bands
    # [BX, 1], though one row for all: the interpreter does not combine a mask with a condition that is no block
    o_y = (i_r - i_b * bands) * BY + tl.zeros([BX, 1], tl.int32)
    m_c = o_c < channels
    base = i_b.to(tl.int64) * height * width * channels
    p_x += base
    p_y += base
    # the same weights for every position: a load of [1, BC] would be spread over threads by way of shared memory
    o_w = o_c + tl.zeros([BX, 1], tl.int32)  # [BX, BC]
    weights = ()
    for i in tl.static_range(9):
        p = p_weight + (i // 3) * s_ky + (i % 3) * s_kx + o_w * s_c
        weights += (tl.load(p, mask=m_c, other=0.0).to(tl.float32),)
    sums = (tl.zeros([BX, BC], tl.float32),) * BY
    centres = (tl.zeros([BX, BC], tl.float32),) * BY
    for i in tl.static_range(BY + 2):
        for j in tl.static_range(3):
            o_row, o_column = o_y + (i - 1), o_x + (j - 1)
            m = (o_row >= 0) & (o_row < height) & (o_column >= 0) & (o_column < width) & m_c
            o = (o_row * width + o_column) * channels + o_c
            b = tl.load(p_x + o, mask=m, other=0.0).to(tl.float32)  # [BX, BC]
            if SUM:
                b += tl.load(p_y + o, mask=m, other=0.0).to(tl.float32)
                b = b.to(p_x.dtype.element_ty).to(tl.float32)
            new_sums = ()
            new_centres = ()
            for r in tl.static_range(BY):
                if i >= r and i <= r + 2:
                    new_sums += (sums[r] + b * weights[3 * (i - r) + j],)
                else:
                    new_sums += (sums[r],)
                if i == r + 1 and j == 1:
                    new_centres += (b,)
                else:
                    new_centres += (centres[r],)
            sums = new_sums
            centres = new_centres
    b_bias = tl.load(p_bias + o_w, mask=m_c, other=0.0).to(tl.float32)
    p_out += base
    for r in tl.static_range(BY):
        # rounded after the convolution and after the sum, as torch rounds
        b_out = (sums[r] + b_bias).to(p_out.dtype.element_ty).to(tl.float32) + centres[r]
        o = ((o_y + r) * width + o_x) * channels + o_c
        m = (o_y + r < height) & (o_x < width) & m_c
        tl.store(p_out + o, b_out.to(p_out.dtype.element_ty), mask=m)

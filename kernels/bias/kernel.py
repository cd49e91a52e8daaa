# mypy: disallow-untyped-defs=False
"""The bias kernel: one program is a run of the tensor's memory, in which channels lie side by side."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["total", "vectors"])
def bias_act_kernel(
    p_x, p_bias, total, vectors,
    BV: tl.constexpr, VECTOR: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Grid: (blocks), BV vectors of VECTOR channels each.

    total: vectors of the tensor. vectors: those of one position, so that a vector lies in one position, and its place
    among the channels is computed once.
    """
    o_v = tl.program_id(0) * BV + tl.arange(0, BV)[:, None]  # [BV, 1]
    o_c = tl.arange(0, VECTOR)[None, :]  # [1, VECTOR]
    m = o_v < total
    p_x += o_v.to(tl.int64) * VECTOR + o_c  # [BV, VECTOR]
    b = tl.load(p_x, mask=m, other=0.0).to(tl.float32)
    b += tl.load(p_bias + (o_v % vectors * VECTOR + o_c), mask=m, other=0.0).to(tl.float32)
    if RELU:
        b = tl.where(b < 0.0, 0.0, b)  # NaN stays NaN, as torch has it
    tl.store(p_x, b.to(p_x.dtype.element_ty), mask=m)

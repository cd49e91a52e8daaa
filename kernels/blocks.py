# mypy: disallow-untyped-defs=False
"""Code that Triton kernels share. It imports triton, so kernels alone import it.

Names in kernels: `i_` index, `o_` offsets, `p_` pointers, `m_` masks, `b_` block in registers. Base addresses are
64-bit. Offsets inside one block are 32-bit, which takes fewer registers; launches check that they are enough.

Sizes are `do_not_specialize`: a size of 1 or a multiple of 16 would be another kernel, compiled in the middle of the
work, with other registers than those recorded.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(p, m, p_pad, m_pad, PADS: tl.constexpr):
    """Rows `m` of a block, zero elsewhere. p: [N, C]. With PADS, rows `m_pad` are the row at `p_pad` ([1, C]).

    Two loads, not one from whichever pointer it is: of such a mixture the compiler does not know that 16 bytes lie side
    by side, and loads element by element.
    """
    b = tl.load(p, mask=m[:, None], other=0.0)
    if PADS:
        b = tl.where(m_pad[:, None], tl.load(p_pad), b)
    return b


@triton.jit
def product_in_chunks(p_a, m_a, p_b, m_b, depth, p_pad, m_pad, PADS: tl.constexpr, PRECISION: tl.constexpr):
    """a · bᵀ over a shared inner dimension of `depth`, as many columns at a time as the pointer blocks have.

    PADS: rows `m_pad` of b are the row at `p_pad` instead (see `load_rows`).
    For fp32: tf32x3 holds each operand twice, and whole operands of head dim 64 do not fit the registers. `depth` is an
    argument, not a constant, so that the compiler keeps the loop: unrolled, it loads everything at once and spills.
    """
    b = tl.zeros((p_a.shape[0], p_b.shape[0]), tl.float32)  # [A, B]
    for o_c in range(0, depth, p_a.shape[1]):
        b_a = tl.load(p_a + o_c, mask=m_a[:, None], other=0.0)  # [A, DC]
        b_b = load_rows(p_b + o_c, m_b, p_pad + o_c, m_pad, PADS)  # [B, DC]
        b = tl.dot(b_a, tl.trans(b_b), b, input_precision=PRECISION)
    return b


@triton.jit
def rounded(b, p):
    """fp32 `b`, rounded to the dtype that `p` points at."""
    return b.to(p.dtype.element_ty).to(tl.float32)


@triton.jit
def centred(b, m, eps, C: tl.constexpr, BC: tl.constexpr):
    """Whole rows `b` less their mean, and what scales each to a variance of 1, [BR].

    b: [BR, BC] fp32, of which the first C channels exist (`m`) and the others are 0. eps: added to the variance.
    """
    b = b - tl.sum(b, 1)[:, None] * (1.0 / C)
    if C < BC:
        b = tl.where(m, b, 0.0)  # channels that do not exist have no part in the variance
    return b, tl.rsqrt(tl.sum(b * b, 1) * (1.0 / C) + eps)

# mypy: disallow-untyped-defs=False
"""Exponentials and nothing else: how many a GPU computes in a second, which bounds attention at head dim 32."""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = 1024
REPEATS = 512


@triton.jit
def exp2_kernel(p_out, BLOCK: tl.constexpr, REPEATS: tl.constexpr):
    """p_out: fp32 [programs, BLOCK]. Each result feeds the next, so that none can be left out; values stay in -1..1."""
    o = tl.arange(0, BLOCK)
    b = -o.to(tl.float32) / BLOCK
    for _ in range(REPEATS):
        b = tl.exp2(b) - 1.0
    tl.store(p_out + tl.program_id(0) * BLOCK + o, b)

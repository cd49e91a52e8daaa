# mypy: disallow-untyped-defs=False
"""Kernels around one helper of the kernels each, for the interpreter's process."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from twins_trt.kernels.ffn.kernel import gelu
from twins_trt.kernels.lsa.kernel import tokens_in_map


@triton.jit
def tokens_in_map_kernel(p_out, rows, columns, WINDOW: tl.constexpr):
    o_t = tl.arange(0, 64)
    tl.store(
        p_out + o_t, tokens_in_map(o_t, tl.minimum(rows, WINDOW), tl.minimum(columns, WINDOW), WINDOW).to(tl.int32)
    )


def tokens_in_maps(window_size: int) -> dict[tuple[int, int], list[int]]:
    """By rows and columns left of the map: a 0 or 1 for each of 64 tokens."""
    found = {}
    for rows in range(1, window_size + 2):
        for columns in range(1, window_size + 2):
            out = torch.full((64,), -1, dtype=torch.int32)
            tokens_in_map_kernel[(1,)](out, rows, columns, window_size)
            found[rows, columns] = out.tolist()
    return found


@triton.jit
def gelu_kernel(p_x, p_out, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_out + o, gelu(tl.load(p_x + o)))


def gelus(x: torch.Tensor) -> torch.Tensor:
    """x: fp32 [N], N a power of two."""
    out = torch.full_like(x, 7.0)
    gelu_kernel[(1,)](x, out, len(x))
    return out

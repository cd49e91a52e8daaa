"""Tiling and launch of the add-and-normalize kernel. Imports triton only where it launches."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from twins_trt.kernels.case import DTYPES, Case, Tiling, tiling
from twins_trt.kernels.device import MAX_OFFSET

MIN_CHANNELS, MAX_CHANNELS = 16, 2048

MODEL_CHANNELS = (64, 96, 128, 192, 256, 320, 384, 512, 768, 1024)
"""What the Twins models normalize."""

BLOCK = 1024
"""Elements of a program, where one row has no more. Half as many were slower on an H200 at a large batch."""


@functools.cache
def cut(channels: int, *, row: bool, residual: bool, after: bool = False) -> Tiling:
    """Whole rows, and 16 elements a thread, which are two loads of 16 bytes for 16-bit dtypes: 2 or 4 warps."""
    block = 1 << (channels - 1).bit_length()
    rows = max(1, BLOCK // block)
    constants = {"C": channels, "BC": block, "BR": rows, "ROW": row, "RESIDUAL": residual, "AFTER": after}
    return tiling(rows * block // (16 * 32), 1, constants)


def cases(capability: int) -> Iterator[Case]:
    """Every kernel that the models launch, the same on all GPUs. Other numbers of channels are compiled when called."""
    for dtype in DTYPES:
        for channels in MODEL_CHANNELS:
            for words, row, residual, after in (
                ("", False, False, False),
                ("row", True, False, False),
                ("residual", False, True, False),
                ("residual, row after", False, True, True),
            ):
                yield Case(
                    "twins_trt.kernels.layer_norm.kernel:add_layer_norm_kernel",
                    dtype,
                    0,
                    f"{channels} channels {words}".rstrip(),
                    cut(channels, row=row, residual=residual, after=after),
                    float32=(),
                    aligned=("s_x", "s_y"),
                    grid="(ceil(rows / BR))",
                    types=(("eps", "fp32"),),
                )


def unsupported(x: Tensor, *others: Tensor | None) -> str | None:
    """Why the kernel does not take this x, or None. others: what is added to it, weight and bias."""
    channels = x.shape[-1]
    if not MIN_CHANNELS <= channels <= MAX_CHANNELS:
        return f"{channels} channels are not between {MIN_CHANNELS} and {MAX_CHANNELS}"
    rows = x.numel() // channels
    if not 1 <= rows <= MAX_OFFSET:
        return f"{rows} rows are not between 1 and {MAX_OFFSET}, which a kernel counts to"
    for other in others:
        if other is not None and other.dtype != x.dtype:
            return f"{other.dtype} beside {x.dtype}"
    return None


def add_layer_norm_forward(
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    row: Tensor | None,
    keep_sum: bool,
    after: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`add_layer_norm_reference` by its Triton kernel; with `after`, what that does not do.

    after: [C], added to the sum that is kept, not to what is normalized; y is given then. None for nothing.

    The sum is empty without `keep_sum`, and also where it would be `x`: an operator must not return what it was given.
    """
    from twins_trt.kernels.layer_norm.kernel import add_layer_norm_kernel

    total, normalized = empty_results(x, y, row, keep_sum)
    options = cut(x.shape[-1], row=row is not None, residual=y is not None, after=after is not None).options
    x_rows = equally_spaced(x, options["BR"])
    y_rows = x_rows if y is None else equally_spaced(y, options["BR"])
    rows = x_rows.shape[0]
    with torch.cuda.device_of(x):
        add_layer_norm_kernel[(-(-rows // options["BR"]),)](
            x_rows,
            y_rows,
            weight if row is None else row.contiguous(),
            weight if after is None else after.contiguous(),
            weight.contiguous(),
            bias.contiguous(),
            total if total.numel() else normalized,
            normalized,
            x_rows.stride(0),
            y_rows.stride(0),
            rows,
            int(total.numel() > 0),
            eps,
            **options,
        )
    return total, normalized


def empty_results(x: Tensor, y: Tensor | None, row: Tensor | None, keep_sum: bool) -> tuple[Tensor, Tensor]:
    """The sum and the normalized sum without their values; the first has none where the kernel writes none."""
    added = y is not None or row is not None
    return x.new_empty(x.shape if keep_sum and added else (0,)), x.new_empty(x.shape)


def equally_spaced(x: Tensor, block: int) -> Tensor:
    """[..., C] as [rows, C]: a view where rows are equally spaced, with channels side by side and `block` in reach."""
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1 or block * rows.stride(0) > MAX_OFFSET:
        return rows.contiguous()
    return rows

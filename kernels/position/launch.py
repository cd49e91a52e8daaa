"""Tiling and launch of the positional-encoding kernel. Imports triton only where it launches."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from twins_trt.kernels.case import DTYPES, Case, Tiling, dtype_name, tiling
from twins_trt.kernels.device import MAX_OFFSET


@functools.cache
def cut(*, dtype: str, whole: bool, dense: bool, has_sum: bool) -> Tiling:
    """Two rows, because four rows of the map then serve two of the result, and 16 bytes of each a thread.

    All models have a multiple of 32 channels. whole: channels are a multiple of 16 bytes. Others are read one by one,
    which takes so many addresses that larger tiles spill. dense: see `is_dense`; of use to whole ones alone.
    """
    constants = {"BY": 2, "BX": 16, "BC": 32, "VECTOR": 8, "DENSE": dense, "SUM": has_sum}
    if not whole:
        constants.update(BX=4, VECTOR=1, DENSE=False)
    elif dtype == "fp32":
        constants.update(BX=8, VECTOR=4)
    return tiling(2, 1, constants)


def cases(capability: int) -> Iterator[Case]:
    """Every kernel that is launched; all GPUs have the same."""
    for dtype in DTYPES:
        for words, whole, dense in (("", True, True), ("strided weight", True, False), ("odd channels", False, False)):
            for has_sum in (False, True):
                yield Case(
                    "twins_trt.kernels.position.kernel:add_position_kernel",
                    dtype,
                    0,
                    " ".join(filter(None, (words, "sum" if has_sum else ""))),
                    cut(dtype=dtype, whole=whole, dense=dense, has_sum=has_sum),
                    float32=(),
                    aligned=(),
                    grid=(
                        "(batch * bands * columns * blocks); bands = ceil(height / BY), columns = ceil(width / BX), "
                        "blocks = ceil(channels / BC), vectors = channels / VECTOR"
                    ),
                )


def unsupported(x: Tensor) -> str | None:
    """Why the kernel does not take these tokens, or None. x: [B, N, C]."""
    reach = x.shape[1] * x.shape[2]
    if reach > MAX_OFFSET:
        return f"a map of {reach} elements is more than the {MAX_OFFSET} a kernel addresses"
    return None


def is_dense(weight: Tensor) -> bool:
    """Whether channels of the weight [C, 1, 3, 3] lie side by side, behind those of the position before."""
    return weight.permute(1, 2, 3, 0).is_contiguous()


def add_position_forward(x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
    """`add_position_reference` by its Triton kernel. Tokens that are not contiguous are made so first."""
    from twins_trt.kernels.position.kernel import add_position_kernel

    batch, _, channels = x.shape
    x, bias = x.contiguous(), bias.contiguous()
    added = x if y is None else y.contiguous()
    out = torch.empty_like(x)
    options = cut(
        dtype=dtype_name(x.dtype),
        whole=channels * x.element_size() % 16 == 0,
        dense=is_dense(weight),
        has_sum=y is not None,
    ).options
    bands, columns, blocks = -(-height // options["BY"]), -(-width // options["BX"]), -(-channels // options["BC"])
    s_c, _, s_ky, s_kx = weight.stride()
    with torch.cuda.device_of(x):
        add_position_kernel[(batch * bands * columns * blocks,)](
            x,
            added,
            weight,
            bias,
            out,
            s_c,
            s_ky,
            s_kx,
            height,
            width,
            channels // options["VECTOR"],
            columns,
            bands,
            blocks,
            **options,
        )
    return out

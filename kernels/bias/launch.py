"""Tiling and launch of the bias kernel. Imports triton only where it launches."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from twins_trt.kernels.case import DTYPES, Case, Tiling, dtype_name, tiling
from twins_trt.kernels.device import MAX_OFFSET


@functools.cache
def cut(*, dtype: str, whole: bool, relu: bool) -> Tiling:
    """16 bytes a load and two loads a thread. whole: channels are a multiple of 16 bytes; else they go one by one."""
    vector = (4 if dtype == "fp32" else 8) if whole else 1
    return tiling(4, 1, {"BV": 256, "VECTOR": vector, "RELU": relu})


def cases(capability: int) -> Iterator[Case]:
    """Every kernel that is launched; all GPUs have the same."""
    for dtype in DTYPES:
        for whole in (True, False):
            for relu in (False, True):
                yield Case(
                    "twins_trt.kernels.bias.kernel:bias_act_kernel",
                    dtype,
                    0,
                    " ".join(filter(None, ("" if whole else "odd channels", "relu" if relu else ""))),
                    cut(dtype=dtype, whole=whole, relu=relu),
                    float32=(),
                    aligned=(),
                    grid="(ceil(total / BV)); total = elements / VECTOR, vectors = channels / VECTOR",
                )


def unsupported(x: Tensor) -> str | None:
    """Why the kernel does not take this tensor, or None. x: [B, C, H, W]."""
    if not x.is_contiguous(memory_format=torch.channels_last):
        return "channels do not lie side by side (torch.channels_last)"
    if x.numel() > MAX_OFFSET:
        return f"a tensor of {x.numel()} elements is more than the {MAX_OFFSET} a kernel counts to"
    return None


def bias_act_forward_(x: Tensor, bias: Tensor, *, relu: bool) -> None:
    """`bias_act_reference_` by its Triton kernel. x: [B, C, H, W], contiguous in torch.channels_last."""
    from twins_trt.kernels.bias.kernel import bias_act_kernel

    channels = x.shape[1]
    whole = channels * x.element_size() % 16 == 0
    options = cut(dtype=dtype_name(x.dtype), whole=whole, relu=relu).options
    total = x.numel() // options["VECTOR"]
    with torch.cuda.device_of(x):
        bias_act_kernel[(-(-total // options["BV"]),)](
            x, bias.contiguous(), total, channels // options["VECTOR"], **options
        )

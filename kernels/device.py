"""What a launch has to know about where it runs. Nothing here imports triton."""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

MAX_BLOCKS = 65535
"""CUDA's limit of the second and third grid axis."""

MAX_OFFSET = 2**31 - 1
"""Largest offset inside one block of a kernel: those are 32-bit, base addresses are 64-bit."""

INTERPRETED_CAPABILITY = 80


def interpreting() -> bool:
    """Whether Triton's interpreter stands in for a GPU (TRITON_INTERPRET=1): kernels then run on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "on")


@functools.lru_cache(maxsize=64)
def _properties(index: int) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(index)
    return 10 * properties.major + properties.minor, properties.multi_processor_count


def capability(x: Tensor) -> int:
    """Compute capability of the GPU that holds `x`, as in 86 for sm_86."""
    return _properties(x.device.index)[0] if x.is_cuda else INTERPRETED_CAPABILITY


def multiprocessors(x: Tensor) -> int:
    """How many multiprocessors work on `x`; 1 where the interpreter does."""
    return _properties(x.device.index)[1] if x.is_cuda else 1


def dot_precision(x: Tensor) -> str:
    """How kernels multiply fp32: `tf32x3` (fp32's accuracy) unless torch was told that tf32 will do.

    The switch is torch's own, `torch.set_float32_matmul_precision("high")`. 16-bit operands have no choice to make.
    """
    if x.dtype != torch.float32:
        return "tf32"
    matmul = torch.backends.cuda.matmul
    # `fp32_precision` came with torch 2.9; there the older name raises once somebody has used the newer one
    allowed = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    return "tf32" if allowed else "tf32x3"


def last_axis_dense(x: Tensor) -> Tensor:
    """`x` with its channels side by side, as kernels read them; any other stride is passed on."""
    return x if x.stride(-1) == 1 else x.contiguous()

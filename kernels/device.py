"""Facts of the device that a launch needs. Nothing here imports triton."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import torch
from torch import Tensor

MAX_BLOCKS = 65535
"""CUDA's limit of the second and third grid axis."""

MAX_OFFSET = 2**31 - 1
"""Largest offset inside one block of a kernel. Offsets are 32-bit, base addresses 64-bit."""

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
    """How many multiprocessors the GPU of `x` has; 1 for the interpreter."""
    return _properties(x.device.index)[1] if x.is_cuda else 1


def dot_precision(x: Tensor) -> str:
    """How kernels multiply fp32: `tf32x3`, which has fp32's accuracy, or `tf32` where torch allows that.

    The switch is torch's own, `torch.set_float32_matmul_precision("high")`. It changes nothing for 16-bit operands.
    """
    if x.dtype != torch.float32:
        return "tf32"
    matmul = torch.backends.cuda.matmul
    # `fp32_precision` came with torch 2.9, where the older name raises once the newer one was used
    allowed = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    return "tf32" if allowed else "tf32x3"


def batch_parts(step: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """`tensors`, cut along their first axis into at most `step` at a time, so that a launch fits the grid's third axis.

    Nearly always there is one part: the tensors themselves, because a slice of each takes longer than all else here.
    """
    batch = tensors[0].shape[0]
    if batch <= step:
        yield tensors
        return
    for start in range(0, batch, step):
        yield tuple(x[start : start + step] for x in tensors)


def last_axis_dense(x: Tensor) -> Tensor:
    """`x` with its channels side by side, as kernels need them. Other strides may be any."""
    return x if x.stride(-1) == 1 else x.contiguous()

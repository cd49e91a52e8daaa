"""Resize and addition in the form that suits the device, and its Triton form as an operator of torch.

The operator is `torch.ops.twins_trt.resize_add`. It has no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twins_trt.errors import UsageError
from twins_trt.kernels.backend import choose_backend, runs_interpreted
from twins_trt.kernels.resize.launch import empty_result, resize_add_forward, unsupported
from twins_trt.kernels.resize.reference import resize_add_reference

MODES = ("bilinear", "nearest")


def resize_add(
    x: Tensor, size: tuple[int, int], *, mode: str, add: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """A map resized, and added to another one of the new size: between them, the resized map is not in memory.

    x: float [B, C, H, W]; 16-bit ones are interpolated as fp32. Any strides; another memory format than
    torch.channels_last is copied to it. size: (h, w) of the result, pixels. mode: `bilinear` (align_corners=False) or
    `nearest`, with the weights of `torch.nn.functional.interpolate`. add: [B, C, h, w] of the same dtype, or None.
    backend: `triton`, `reference`, or `auto`: Triton on a GPU that can, else the reference.
    Returns [B, C, h, w] in torch.channels_last memory format, rounded to the dtype after the interpolation and again
    after the addition, as two operations of torch round. Triton's is not differentiable.
    Raises UsageError for an unknown backend or mode, and for shapes or sizes that cannot be.
    Source: mmsegmentation's FPN, FPNHead and UPerHead.
    """
    if x.ndim != 4 or 0 in x.shape or not x.is_floating_point():
        raise UsageError(f"{x.dtype} {list(x.shape)} is not a map", "pass float [B, C, H, W]")
    if mode not in MODES:
        raise UsageError(f"resize_add has no mode '{mode}'", f"choose one of {', '.join(MODES)}")
    height, width = size
    if min(height, width) < 1:
        raise UsageError(f"a map cannot have the size {height}x{width}", "give a height and width of 1 or more")
    if add is not None and (add.shape != (*x.shape[:2], height, width) or add.dtype != x.dtype):
        raise UsageError(
            f"{add.dtype} {list(add.shape)} cannot be added to the result",
            f"pass {x.dtype} {[*x.shape[:2], height, width]}",
        )
    form = choose_backend(backend, x, op="resize_add", unsupported=unsupported(x, height, width), fallback="reference")
    if form == "triton":
        return resize_add_op(x, height, width, mode, add)
    return resize_add_reference(x, (height, width), mode=mode, add=add)


@torch.library.custom_op(
    "twins_trt::resize_add",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor x, SymInt height, SymInt width, str mode, Tensor? add) -> Tensor",
)
def resize_add_op(x: Tensor, height: int, width: int, mode: str, add: Tensor | None) -> Tensor:
    """Computes `resize_add_reference`."""
    return resize_add_forward(x, height, width, mode, add)


@resize_add_op.register_kernel("cpu")
def _(x: Tensor, height: int, width: int, mode: str, add: Tensor | None) -> Tensor:
    if runs_interpreted("resize_add", x.dtype):
        return resize_add_forward(x, height, width, mode, add)
    out = empty_result(x, height, width)
    return out.copy_(resize_add_reference(x, (height, width), mode=mode, add=add))


@resize_add_op.register_fake
def _(x: Tensor, height: int, width: int, mode: str, add: Tensor | None) -> Tensor:
    return empty_result(x, height, width)

"""The positional encoding in the form that suits the device, and its Triton form as an operator of torch.

The operator is `torch.ops.twins_trt.add_position`. It has no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twins_trt.errors import UsageError
from twins_trt.kernels.backend import choose_backend, runs_interpreted
from twins_trt.kernels.position.launch import add_position_forward, unsupported
from twins_trt.kernels.position.reference import add_position_reference


def add_position(
    x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, *, size: tuple[int, int], backend: str = "auto"
) -> Tensor:
    """`s + conv(s)` on the map of s = x + y: a depthwise 3x3 convolution with a rim of zeros, in one kernel.

    x: float [B, N, C], tokens of a map of N = H · W positions. y: as x, or None for nothing to add.
    weight: [C, 1, 3, 3] at any strides; a view of [1, 3, 3, C] is read fastest. bias: [C]. size: (H, W). All have one
    dtype.
    backend: `triton`, `reference`, or `auto`: Triton on a GPU that can, else the reference.
    Returns [B, N, C]. The kernel computes in fp32 and rounds where torch does: the sum s, the convolution with its
    bias, the result. Not differentiable by Triton.
    Raises UsageError for an unknown backend and for shapes or dtypes that do not fit each other.
    Source: conditional position encoding (arXiv 2102.10882); mmsegmentation's models/backbones/twins.py.
    """
    height, width = size
    if x.ndim != 3 or 0 in x.shape or min(size) < 1 or height * width != x.shape[1]:
        raise UsageError(
            f"tokens {list(x.shape)} are not a map of {height}x{width}", "pass [B, N, C] with N = height * width"
        )
    channels = x.shape[2]
    if weight.shape != (channels, 1, 3, 3) or bias.shape != (channels,) or (y is not None and y.shape != x.shape):
        raise UsageError(
            f"tokens {list(x.shape)} do not fit a weight {list(weight.shape)}, a bias {list(bias.shape)}"
            + ("" if y is None else f" and tokens {list(y.shape)} to add"),
            "pass weight [C, 1, 3, 3], bias [C], and y of the shape of x",
        )
    if not x.is_floating_point() or any(z is not None and z.dtype != x.dtype for z in (y, weight, bias)):
        raise UsageError(f"x is {x.dtype}, and the others differ or cannot be", "pass floating tensors of one dtype")
    form = choose_backend(backend, x, op="add_position", unsupported=unsupported(x), fallback="reference")
    if form == "triton":
        return add_position_op(x, y, weight, bias, height, width)
    return add_position_reference(x, y, weight, bias, size=size)


@torch.library.custom_op(
    "twins_trt::add_position",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor x, Tensor? y, Tensor weight, Tensor bias, SymInt height, SymInt width) -> Tensor",
)
def add_position_op(x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
    """Computes `add_position_reference`; the result is contiguous."""
    return add_position_forward(x, y, weight, bias, height, width)


@add_position_op.register_kernel("cpu")
def _(x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
    if runs_interpreted("add_position", x.dtype):
        return add_position_forward(x, y, weight, bias, height, width)
    return add_position_reference(x, y, weight, bias, size=(height, width)).contiguous()


@add_position_op.register_fake
def _(x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
    return x.new_empty(x.shape)

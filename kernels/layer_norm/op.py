"""Additions and LayerNorm in the form that suits the device, and their Triton form as an operator of torch.

The operator is `torch.ops.twins_trt.add_layer_norm`. It has no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twins_trt.errors import UsageError
from twins_trt.kernels.backend import choose_backend, runs_interpreted
from twins_trt.kernels.layer_norm.launch import add_layer_norm_forward, empty_results, unsupported
from twins_trt.kernels.layer_norm.reference import add_layer_norm_reference


def add_layer_norm(
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    row: Tensor | None = None,
    keep_sum: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The sum `x + row + y`, and its LayerNorm over the last axis.

    x: float [..., C], at any strides; rows that are equally spaced, with channels side by side, are read in place.
    y: the residual, as x, or None. weight, bias: [C]. row: [C], such as the bias of the convolution before, or None.
    eps: added to the variance. keep_sum: whether the caller wants the sum.
    backend: `triton`, `reference`, or `auto`: Triton on a GPU that can, else the reference. The kernel takes 16 to 2048
    channels, and tensors of one dtype.
    Returns the sum, rounded to the dtype after each addition, and the normalized sum [..., C], rounded once. Where
    nothing is added the sum is `x` itself. Without `keep_sum` it is an empty tensor, and is not written.
    The kernel is not differentiable.
    Raises UsageError for an unknown backend and for shapes that do not go together.
    """
    if x.ndim < 1 or not x.is_floating_point():
        raise UsageError(f"{x.dtype} {list(x.shape)} has no channels to normalize", "pass float [..., C]")
    if y is not None and y.shape != x.shape:
        raise UsageError(f"a residual {list(y.shape)} does not fit x {list(x.shape)}", "pass one of the same shape")
    for name, vector in (("weight", weight), ("bias", bias), ("row", row)):
        if vector is not None and vector.shape != x.shape[-1:]:
            raise UsageError(f"{name} {list(vector.shape)} does not fit x {list(x.shape)}", f"pass {name} [C]")
    form = choose_backend(
        backend, x, op="add_layer_norm", unsupported=unsupported(x, y, weight, bias, row), fallback="reference"
    )
    if form == "reference":
        return add_layer_norm_reference(x, y, weight, bias, eps=eps, row=row, keep_sum=keep_sum)
    total, normalized = add_layer_norm_op(x, y, weight, bias, row, eps, keep_sum)
    return x if keep_sum and y is None and row is None else total, normalized


@torch.library.custom_op(
    "twins_trt::add_layer_norm",
    mutates_args=(),
    device_types="cuda",
    schema=(
        "(Tensor x, Tensor? y, Tensor weight, Tensor bias, Tensor? row, float eps, bool keep_sum) -> (Tensor, Tensor)"
    ),
)
def add_layer_norm_op(
    x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, row: Tensor | None, eps: float, keep_sum: bool
) -> tuple[Tensor, Tensor]:
    """Computes `add_layer_norm_reference`, but where nothing is added the first result is an empty tensor too."""
    return add_layer_norm_forward(x, y, weight, bias, eps=eps, row=row, keep_sum=keep_sum)


@add_layer_norm_op.register_kernel("cpu")
def _(
    x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, row: Tensor | None, eps: float, keep_sum: bool
) -> tuple[Tensor, Tensor]:
    if runs_interpreted("add_layer_norm", x.dtype):
        return add_layer_norm_forward(x, y, weight, bias, eps=eps, row=row, keep_sum=keep_sum)
    added = y is not None or row is not None
    total, normalized = add_layer_norm_reference(x, y, weight, bias, eps=eps, row=row, keep_sum=keep_sum and added)
    return total.contiguous() if keep_sum and added else x.new_empty(0), normalized.contiguous()


@add_layer_norm_op.register_fake
def _(
    x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, row: Tensor | None, eps: float, keep_sum: bool
) -> tuple[Tensor, Tensor]:
    return empty_results(x, y, row, keep_sum)

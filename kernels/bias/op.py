"""Bias and ReLU in the form that suits the device, and its Triton form as an operator of torch.

The operator is `torch.ops.twins_trt.bias_act_`. It has no gradient. It works in place, because a convolution's result
is then still in the cache, nobody else reads it, and no second tensor is written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twins_trt.errors import UsageError
from twins_trt.kernels.backend import choose_backend, runs_interpreted
from twins_trt.kernels.bias.launch import bias_act_forward_, unsupported
from twins_trt.kernels.bias.reference import bias_act_reference_


def bias_act_(x: Tensor, bias: Tensor, *, relu: bool, backend: str = "auto") -> Tensor:
    """Adds a bias to every channel of `x`, then ReLU or nothing, in place.

    x: float [B, C, H, W], which is changed; the kernel takes torch.channels_last alone, and other layouts go to the
    reference. bias: [C], of the same dtype. relu: whether what is negative becomes 0; NaN stays NaN.
    backend: `triton`, `reference`, or `auto`: Triton on a GPU that can, else the reference.
    Returns x. Both forms round once and are equal to the bit. Not differentiable by Triton.
    Raises UsageError for an unknown backend and for shapes or dtypes that do not fit each other.
    """
    if x.ndim != 4 or 0 in x.shape or bias.shape != (x.shape[1],):
        raise UsageError(
            f"a bias {list(bias.shape)} does not fit maps {list(x.shape)}", "pass x [B, C, H, W] and bias [C]"
        )
    if not x.is_floating_point() or bias.dtype != x.dtype:
        raise UsageError(f"x is {x.dtype} and its bias {bias.dtype}", "pass floating tensors of one dtype")
    form = choose_backend(backend, x, op="bias_act_", unsupported=unsupported(x), fallback="reference")
    if form == "reference":
        return bias_act_reference_(x, bias, relu=relu)
    bias_act_op_(x, bias, relu)
    return x


@torch.library.custom_op(
    "twins_trt::bias_act_",
    mutates_args=("x",),
    device_types="cuda",
    schema="(Tensor(a!) x, Tensor bias, bool relu) -> ()",
)
def bias_act_op_(x: Tensor, bias: Tensor, relu: bool) -> None:
    """Computes `bias_act_reference_`, which returns x where an operator must not."""
    bias_act_forward_(x, bias, relu=relu)


@bias_act_op_.register_kernel("cpu")
def _(x: Tensor, bias: Tensor, relu: bool) -> None:
    if runs_interpreted("bias_act_", x.dtype):
        bias_act_forward_(x, bias, relu=relu)
    else:
        bias_act_reference_(x, bias, relu=relu)


@bias_act_op_.register_fake
def _(x: Tensor, bias: Tensor, relu: bool) -> None:
    return None

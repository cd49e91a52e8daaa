"""The second half of a block in the form that suits the device, and its Triton form as an operator of torch.

The operator is `torch.ops.twins_trt.add_norm_ffn`. It has no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twins_trt.errors import UsageError
from twins_trt.kernels.backend import choose_backend, runs_interpreted
from twins_trt.kernels.ffn.launch import add_norm_ffn_forward
from twins_trt.kernels.ffn.reference import add_norm_ffn_reference
from twins_trt.kernels.layer_norm.launch import unsupported


def add_norm_ffn(
    x: Tensor,
    y: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    eps: float,
    backend: str = "auto",
) -> Tensor:
    """`s + fc2(GELU(fc1(LayerNorm(s))))` of s = x + y: what a block does after its attention.

    x, y: float [..., C], at any strides; rows that are equally spaced, with channels side by side, are read in place.
    norm_weight, norm_bias, bias2: [C]. weight1: [H, C]. bias1: [H]. weight2: [C, H]. All have one dtype.
    eps: added to the variance. GELU is that of the error function, in 16-bit dtypes within 4e-5.
    backend: `triton`, `reference`, or `auto`: Triton on a GPU that can, else the reference. Dtype and sizes
    decide how many kernels it takes (see `launch.way`).
    Returns [..., C]. The sum s, LayerNorm's result and the hidden layer are rounded to the dtype, and the result once
    more; in more kernels than one, so is s + bias2. Not differentiable by Triton.
    Raises UsageError for an unknown backend and for shapes or dtypes that do not fit each other.
    """
    channels, hidden = x.shape[-1] if x.ndim else 0, bias1.shape[0] if bias1.ndim else 0
    if x.ndim < 2 or 0 in x.shape or y.shape != x.shape:
        raise UsageError(
            f"tokens {list(x.shape)} and {list(y.shape)} do not fit", "pass two of one shape [N, C] or [B, N, C]"
        )
    expected = {
        "norm_weight": (norm_weight, (channels,)),
        "norm_bias": (norm_bias, (channels,)),
        "weight1": (weight1, (hidden, channels)),
        "bias1": (bias1, (hidden,)),
        "weight2": (weight2, (channels, hidden)),
        "bias2": (bias2, (channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise UsageError(f"{name} {list(tensor.shape)} does not fit tokens {list(x.shape)}", f"pass {list(shape)}")
    if hidden == 0:
        raise UsageError("a hidden layer of no channels", "pass weight1 [H, C] with an H of 1 or more")
    tensors = (x, y, norm_weight, norm_bias, weight1, bias1, weight2, bias2)
    if not x.is_floating_point() or any(tensor.dtype != x.dtype for tensor in tensors):
        found = ", ".join(sorted({str(tensor.dtype) for tensor in tensors}))
        raise UsageError(f"add_norm_ffn does not take tensors of {found}", "pass floating tensors of one dtype")
    form = choose_backend(backend, x, op="add_norm_ffn", unsupported=unsupported(x), fallback="reference")
    if form == "reference":
        return add_norm_ffn_reference(*tensors, eps=eps)
    return add_norm_ffn_op(*tensors, eps)


_SCHEMA = (
    "(Tensor x, Tensor y, Tensor norm_weight, Tensor norm_bias, Tensor weight1, Tensor bias1, Tensor weight2, "
    "Tensor bias2, float eps) -> Tensor"
)


@torch.library.custom_op("twins_trt::add_norm_ffn", mutates_args=(), device_types="cuda", schema=_SCHEMA)
def add_norm_ffn_op(
    x: Tensor,
    y: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    eps: float,
) -> Tensor:
    """Computes `add_norm_ffn_reference`; the result is contiguous."""
    return add_norm_ffn_forward(x, y, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps=eps)


@add_norm_ffn_op.register_kernel("cpu")
def _(
    x: Tensor,
    y: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    eps: float,
) -> Tensor:
    tensors = (x, y, norm_weight, norm_bias, weight1, bias1, weight2, bias2)
    if runs_interpreted("add_norm_ffn", x.dtype):
        return add_norm_ffn_forward(*tensors, eps=eps)
    return add_norm_ffn_reference(*tensors, eps=eps).contiguous()


@add_norm_ffn_op.register_fake
def _(
    x: Tensor,
    y: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    eps: float,
) -> Tensor:
    return x.new_empty(x.shape)

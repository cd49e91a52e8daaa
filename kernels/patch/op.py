"""A convolution of patches with LayerNorm in the form that suits the device, and its Triton form as an operator.

The operator is `torch.ops.twins_trt.patch_norm`. It has no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twins_trt.errors import UsageError
from twins_trt.kernels.backend import choose_backend, runs_interpreted
from twins_trt.kernels.patch.launch import patch_norm_forward, unsupported
from twins_trt.kernels.patch.reference import patch_norm_reference


def patch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    eps: float,
    backend: str = "auto",
) -> Tensor:
    """LayerNorm over the channels of a convolution whose kernel is its stride.

    x: float [B, C, H, W]; kernels read torch.channels_last, also of a view. weight: [D, C, k, k]. bias, norm_weight,
    norm_bias: [D]. All have one dtype. eps: added to the variance. Rows and columns left over are not read.
    backend: `triton`, `reference`, or `auto`: Triton on a GPU that can, else the reference. Few patches of 16-bit
    values are a product in parts, and one kernel adds, normalizes and stores; many are the library's convolution and
    `add_layer_norm`.
    Returns tokens [B, N, D] of N = (H // k) · (W // k) patches. The convolution's result is rounded to the dtype before
    it is normalized. Not differentiable by Triton.
    Raises UsageError for an unknown backend and for shapes or dtypes that do not fit each other.
    """
    side = weight.shape[-1] if weight.ndim == 4 else 0
    if x.ndim != 4 or side < 1 or weight.shape[1:] != (x.shape[1], side, side) or min(x.shape[2:]) < side or not len(x):
        raise UsageError(
            f"a weight {list(weight.shape)} does not fit maps {list(x.shape)}",
            "pass x [B, C, H, W] and weight [D, C, k, k] with k not above H and W",
        )
    for name, vector in (("bias", bias), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if vector.shape != weight.shape[:1]:
            raise UsageError(f"{name} {list(vector.shape)} does not fit {weight.shape[0]} channels", f"pass {name} [D]")
    tensors = (x, weight, bias, norm_weight, norm_bias)
    if not x.is_floating_point() or any(tensor.dtype != x.dtype for tensor in tensors):
        found = ", ".join(sorted({str(tensor.dtype) for tensor in tensors}))
        raise UsageError(f"patch_norm does not take tensors of {found}", "pass floating tensors of one dtype")
    form = choose_backend(backend, x, op="patch_norm", unsupported=unsupported(x, weight), fallback="reference")
    if form == "reference":
        return patch_norm_reference(*tensors, eps=eps)
    return patch_norm_op(*tensors, eps)


_SCHEMA = "(Tensor x, Tensor weight, Tensor bias, Tensor norm_weight, Tensor norm_bias, float eps) -> Tensor"


@torch.library.custom_op("twins_trt::patch_norm", mutates_args=(), device_types="cuda", schema=_SCHEMA)
def patch_norm_op(
    x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float
) -> Tensor:
    """Computes `patch_norm_reference`; the result is contiguous."""
    return patch_norm_forward(x, weight, bias, norm_weight, norm_bias, eps=eps)


@patch_norm_op.register_kernel("cpu")
def _(x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float) -> Tensor:
    if runs_interpreted("patch_norm", x.dtype):
        return patch_norm_forward(x, weight, bias, norm_weight, norm_bias, eps=eps)
    return patch_norm_reference(x, weight, bias, norm_weight, norm_bias, eps=eps).contiguous()


@patch_norm_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float) -> Tensor:
    side = weight.shape[2]
    return x.new_empty((x.shape[0], (x.shape[2] // side) * (x.shape[3] // side), weight.shape[0]))

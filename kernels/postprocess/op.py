"""Resize and argmax in the form that suits the device, and its Triton form as an operator of torch.

The operator is `torch.ops.twins_trt.resize_argmax`. It has no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twins_trt.errors import UsageError
from twins_trt.kernels.backend import choose_backend, runs_interpreted
from twins_trt.kernels.postprocess.launch import resize_argmax_forward, unsupported
from twins_trt.kernels.postprocess.reference import resize_argmax_reference

MAX_CLASSES = 255  # a mask is uint8, and 255 stands for "ignore"


def resize_argmax(
    logits: Tensor, size: tuple[int, int], *, probability: bool = False, backend: str = "auto"
) -> tuple[Tensor, Tensor | None]:
    """Logits resized (bilinear, align_corners=False) and each pixel's best class, the first of equal ones.

    The resized logits, 150 planes of the mask's size on ADE20K, never exist in memory.
    logits: float [B, C, h, w], at most 255 classes; 16-bit ones are interpolated as fp32. Any strides; classes side by
    side (`torch.channels_last`) are read fastest. size: (H, W) of the mask, pixels. probability: whether to give the
    softmax of the winning class as well.
    backend: `triton`, `reference`, or `auto`: Triton on a GPU that can, else the reference.
    Returns the mask, uint8 [B, H, W], and the probability, float [B, H, W] (fp32 or wider), or None. A pixel whose
    logits hold NaN or infinity may get any class. Not differentiable.
    Raises UsageError for an unknown backend and for shapes or sizes that cannot be.
    Source: mmsegmentation's EncoderDecoder.postprocess_result.
    """
    if logits.ndim != 4 or 0 in logits.shape or logits.shape[1] > MAX_CLASSES or not logits.is_floating_point():
        raise UsageError(
            f"logits {logits.dtype} {list(logits.shape)} do not make a mask",
            f"pass float [B, C, h, w] with 1 to {MAX_CLASSES} classes",
        )
    height, width = size
    if min(height, width) < 1:
        raise UsageError(f"a mask cannot have the size {height}x{width}", "give a height and width of 1 or more")
    form = choose_backend(backend, logits, op="resize_argmax", unsupported=unsupported(logits), fallback="reference")
    if form == "reference":
        return resize_argmax_reference(logits, size, probability=probability)
    mask, best = resize_argmax_op(logits, height, width, probability)
    return mask, best if probability else None


@torch.library.custom_op(
    "twins_trt::resize_argmax",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor logits, SymInt height, SymInt width, bool probability) -> (Tensor, Tensor)",
)
def resize_argmax_op(logits: Tensor, height: int, width: int, probability: bool) -> tuple[Tensor, Tensor]:
    """Computes `resize_argmax_reference`, but without `probability` the second result is an empty tensor."""
    return resize_argmax_forward(logits, height, width, probability=probability)


@resize_argmax_op.register_kernel("cpu")
def _(logits: Tensor, height: int, width: int, probability: bool) -> tuple[Tensor, Tensor]:
    if runs_interpreted("resize_argmax", logits.dtype):
        return resize_argmax_forward(logits, height, width, probability=probability)
    mask, best = resize_argmax_reference(logits, (height, width), probability=probability)
    return mask, _wide(logits, 0) if best is None else best


@resize_argmax_op.register_fake
def _(logits: Tensor, height: int, width: int, probability: bool) -> tuple[Tensor, Tensor]:
    mask = logits.new_empty(logits.shape[0], height, width, dtype=torch.uint8)
    return mask, _wide(logits, *mask.shape) if probability else _wide(logits, 0)


def _wide(logits: Tensor, *shape: int) -> Tensor:
    return logits.new_empty(shape, dtype=torch.promote_types(logits.dtype, torch.float32))

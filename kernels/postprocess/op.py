"""Resize and argmax as an operator of torch: `torch.ops.twins_trt.resize_argmax`. It has no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from twins_trt.kernels.device import interpreting
from twins_trt.kernels.postprocess.launch import resize_argmax_forward
from twins_trt.kernels.postprocess.reference import resize_argmax_reference


@torch.library.custom_op(
    "twins_trt::resize_argmax",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor logits, SymInt height, SymInt width, bool probability) -> (Tensor, Tensor)",
)
def resize_argmax_op(logits: Tensor, height: int, width: int, probability: bool) -> tuple[Tensor, Tensor]:
    """As `resize_argmax_reference`, but the probability is an empty tensor where it was not asked for."""
    return resize_argmax_forward(logits, height, width, probability=probability)


@resize_argmax_op.register_kernel("cpu")
def _(logits: Tensor, height: int, width: int, probability: bool) -> tuple[Tensor, Tensor]:
    if interpreting():
        return resize_argmax_forward(logits, height, width, probability=probability)
    mask, best = resize_argmax_reference(logits, (height, width), probability=probability)
    return mask, _wide(logits, 0) if best is None else best


@resize_argmax_op.register_fake
def _(logits: Tensor, height: int, width: int, probability: bool) -> tuple[Tensor, Tensor]:
    mask = logits.new_empty(logits.shape[0], height, width, dtype=torch.uint8)
    return mask, _wide(logits, *mask.shape) if probability else _wide(logits, 0)


def _wide(logits: Tensor, *shape: int) -> Tensor:
    return logits.new_empty(shape, dtype=torch.promote_types(logits.dtype, torch.float32))

"""Resize and normalization as an operator of torch: `torch.ops.twins_trt.resize_normalize`. It has no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from twins_trt.kernels.device import interpreting
from twins_trt.kernels.preprocess.launch import empty_input, resize_normalize_forward
from twins_trt.kernels.preprocess.reference import resize_normalize_reference


@torch.library.custom_op(
    "twins_trt::resize_normalize",
    mutates_args=(),
    device_types="cuda",
    schema=(
        "(Tensor image, SymInt height, SymInt width, float[] mean, float[] std, ScalarType dtype, bool channels_last)"
        " -> Tensor"
    ),
)
def resize_normalize_op(
    image: Tensor,
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """As `resize_normalize_reference`."""
    return resize_normalize_forward(image, height, width, mean=mean, std=std, dtype=dtype, channels_last=channels_last)


@resize_normalize_op.register_kernel("cpu")
def _(
    image: Tensor,
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    if interpreting():
        return resize_normalize_forward(
            image, height, width, mean=mean, std=std, dtype=dtype, channels_last=channels_last
        )
    (r, g, b), (sr, sg, sb) = mean, std
    size = (height, width)
    return resize_normalize_reference(
        image, size, mean=(r, g, b), std=(sr, sg, sb), dtype=dtype, channels_last=channels_last
    )


@resize_normalize_op.register_fake
def _(
    image: Tensor,
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return empty_input(image, height, width, dtype=dtype, channels_last=channels_last)

"""Resize and normalization in the form that suits the device, and its Triton form as an operator of torch.

The operator is `torch.ops.twins_trt.resize_normalize`. It has no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twins_trt.errors import UsageError
from twins_trt.kernels.backend import choose_backend, runs_interpreted
from twins_trt.kernels.preprocess.launch import InputFormat, empty_input, resize_normalize_forward, unsupported
from twins_trt.kernels.preprocess.reference import Channels, resize_normalize_reference


def resize_normalize(
    image: Tensor,
    size: tuple[int, int],
    *,
    mean: Channels,
    std: Channels,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Pixels to the network's input: resized as OpenCV does, then `(pixel - mean) / std` in fp32.

    image: uint8 [B, H, W, 3], RGB, at any strides. size: (h, w) of the result, pixels. mean, std: per channel, in grey
    levels of 0-255.
    backend: `triton`, `reference`, or `auto`: Triton on a GPU that can, else the reference.
    Returns `dtype` [B, 3, h, w], in torch.channels_last memory format with `channels_last`.
    Bit for bit what `cv2.resize` (INTER_LINEAR, x86-64) followed by `normalized_planes` gives in fp32: OpenCV's
    fixed-point weights, its rounding and what it does at the edges. Not differentiable.
    Raises UsageError for an unknown backend and for an image or size that cannot be.
    Source: OpenCV's modules/imgproc/src/resize.cpp, resizeGeneric_ for uchar; mmsegmentation's SegDataPreProcessor.
    """
    if image.dtype != torch.uint8 or image.ndim != 4 or image.shape[3] != 3 or 0 in image.shape:
        raise UsageError(f"{image.dtype} {list(image.shape)} is not a batch of images", "pass uint8 [B, H, W, 3], RGB")
    height, width = size
    if min(height, width) < 1:
        raise UsageError(f"an image cannot have the size {height}x{width}", "give a height and width of 1 or more")
    form = choose_backend(
        backend, image, op="resize_normalize", unsupported=unsupported(image), dtype=dtype, fallback="reference"
    )
    if form == "triton":
        return resize_normalize_op(image, height, width, list(mean), list(std), dtype, channels_last)
    return resize_normalize_reference(image, size, mean=mean, std=std, dtype=dtype, channels_last=channels_last)


@torch.library.custom_op(
    "twins_trt::resize_normalize",
    mutates_args=(),
    device_types="cuda",
    schema=(
        "(Tensor image, SymInt height, SymInt width, float[] mean, float[] std, ScalarType dtype, bool channels_last)"
        " -> Tensor"
    ),
)
def resize_normalize_op(image: Tensor, *fields: Any) -> Tensor:
    """Computes `resize_normalize_reference`. fields: those of `InputFormat`, in its order, which is the schema's."""
    return resize_normalize_forward(image, InputFormat(*fields))


@resize_normalize_op.register_kernel("cpu")
def _(image: Tensor, *fields: Any) -> Tensor:
    wanted = InputFormat(*fields)
    if runs_interpreted("resize_normalize", wanted.dtype):
        return resize_normalize_forward(image, wanted)
    return resize_normalize_reference(
        image,
        (wanted.height, wanted.width),
        mean=wanted.mean,
        std=wanted.std,
        dtype=wanted.dtype,
        channels_last=wanted.channels_last,
    )


@resize_normalize_op.register_fake
def _(image: Tensor, *fields: Any) -> Tensor:
    return empty_input(image, InputFormat(*fields))

"""Tiling and launch of the resize-and-normalize kernel. Imports triton only where it launches."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twins_trt.kernels.case import DTYPES, Case, Tiling, tiling
from twins_trt.kernels.device import MAX_OFFSET
from twins_trt.kernels.preprocess.reference import column_taps, row_taps


@dataclass(frozen=True)
class InputFormat:
    """What pixels become. The fields follow the operator's schema, and are as `resize_normalize` takes them."""

    height: int
    width: int
    mean: Sequence[float]
    std: Sequence[float]
    dtype: torch.dtype
    channels_last: bool


SCALARS = ("mean_r", "mean_g", "mean_b", "std_r", "std_g", "std_b")


@functools.cache
def cut(*, resize: bool) -> Tiling:
    return tiling(4, 1, {"BX": 256, "RESIZE": resize})


def cases(capability: int) -> Iterator[Case]:
    """Every kernel that is launched; all GPUs have the same."""
    types = (("p_image", "*u8"), ("p_rows", "*i32"), ("p_columns", "*i32"), *((name, "fp32") for name in SCALARS))
    for dtype in DTYPES:
        for resize in (True, False):
            yield Case(
                "twins_trt.kernels.preprocess.kernel:resize_normalize_kernel",
                dtype,
                0,
                "" if resize else "same size",
                cut(resize=resize),
                float32=(),
                aligned=(),
                grid="(batch * height * blocks), blocks = ceil(width / BX)",
                types=types,
            )


def unsupported(image: Tensor) -> str | None:
    """Why the kernel does not take this image, or None."""
    if max(image.shape) > MAX_OFFSET:
        return f"a side of {max(image.shape)} is more than the {MAX_OFFSET} a kernel counts to"
    return None


def resize_normalize_forward(image: Tensor, wanted: InputFormat) -> Tensor:
    """`resize_normalize_reference` by its Triton kernel."""
    from twins_trt.kernels.preprocess.kernel import resize_normalize_kernel

    batch, in_height, in_width, _ = image.shape
    height, width = wanted.height, wanted.width
    out = empty_input(image, wanted)
    resize = (in_height, in_width) != (height, width)
    rows, columns = (image, image)  # the kernel does not read them where it does not resize
    if resize:
        rows, columns = row_taps(in_height, height, image.device), column_taps(in_width, width, image.device)
    options = cut(resize=resize).options
    blocks = -(-width // options["BX"])
    with torch.cuda.device_of(image):
        resize_normalize_kernel[(batch * height * blocks,)](
            image,
            out,
            rows,
            columns,
            *image.stride(),
            *out.stride(),
            height,
            width,
            blocks,
            *wanted.mean,
            *wanted.std,
            **options,
        )
    return out


def empty_input(image: Tensor, wanted: InputFormat) -> Tensor:
    """The result without its values: [B, 3, h, w]."""
    batch, height, width = image.shape[0], wanted.height, wanted.width
    if wanted.channels_last:
        return image.new_empty(batch, height, width, 3, dtype=wanted.dtype).permute(0, 3, 1, 2)  # [B, 3, h, w]
    return image.new_empty(batch, 3, height, width, dtype=wanted.dtype)

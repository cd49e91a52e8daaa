"""Tiling and launch of the patch kernels. Imports triton only where it launches."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from twins_trt.kernels.case import Case, Tiling, dtype_name, tiling
from twins_trt.kernels.device import MAX_OFFSET, multiprocessors
from twins_trt.kernels.layer_norm.launch import MAX_CHANNELS, MIN_CHANNELS, add_layer_norm_forward

DTYPES = ("fp16", "bf16")
FEW_PATCHES = 2048
"""With more, a library's convolution has programs enough."""


MODEL_PATCHES = (
    *((64, 8, 64), (128, 4, 128), (256, 2, 256), (320, 2, 320)),
    *((192, 4, 192), (384, 2, 384), (512, 2, 512), (128, 8, 128), (256, 4, 256)),
    *((64, 2, 128), (128, 2, 256), (256, 2, 512), (128, 2, 320), (320, 2, 512)),
    *((96, 2, 192), (192, 2, 384), (384, 2, 768), (512, 2, 1024)),
)
"""Channels, kernel and resulting channels of what the Twins models convolve so, where the kernels take it."""


def unsupported(x: Tensor, weight: Tensor) -> str | None:
    """Why the kernels do not take these maps, or None: LayerNorm's has to take the result."""
    channels_out = weight.shape[0]
    if not MIN_CHANNELS <= channels_out <= MAX_CHANNELS:
        return f"{channels_out} channels are not between {MIN_CHANNELS} and {MAX_CHANNELS}"
    return None


def goes_in_parts(x: Tensor, weight: Tensor) -> bool:
    """Whether the product is cut into parts; else a library convolves. x: [B, C, H, W]. weight: [D, C, k, k]."""
    channels_out, channels, side, _ = weight.shape
    patches = x.shape[0] * (x.shape[2] // side) * (x.shape[3] // side)
    return (
        dtype_name(x.dtype) in DTYPES
        and patches <= FEW_PATCHES
        and channels * side % 64 == 0
        and channels_out % 64 == 0
        and x.stride(1) == 1
        and x.stride(3) == channels
        and x.shape[2] * x.stride(2) <= MAX_OFFSET
        and weight.is_contiguous(memory_format=torch.channels_last)
    )


@functools.cache
def product_tiling(channels: int, side: int, channels_out: int) -> Tiling:
    constants = {"SIDE": side, "C": channels, "D": channels_out, "BR": 32, "BD": 64, "BK": 64}
    return tiling(4, 3, constants)


@functools.cache
def norm_tiling(channels_out: int) -> Tiling:
    block = 1 << (channels_out - 1).bit_length()
    rows = max(1, 512 // block)
    return tiling(max(1, rows * block // 256), 1, {"D": channels_out, "BD": block, "BR": rows})


def cases(capability: int) -> Iterator[Case]:
    """Every kernel that the models launch, the same on all GPUs. Other sizes are compiled when called."""
    for dtype in DTYPES:
        for channels, side, channels_out in MODEL_PATCHES:
            yield Case(
                "twins_trt.kernels.patch.kernel:patch_product_kernel",
                dtype,
                0,
                f"{side}x{side} of {channels} channels to {channels_out}",
                product_tiling(channels, side, channels_out),
                float32=("p_parts",),
                aligned=("s_b", "s_h"),
                grid="(D / BD, ceil(rows / BR), parts); depth = SIDE * SIDE * C / parts",
            )
        for channels_out in sorted({channels_out for _, _, channels_out in MODEL_PATCHES}):
            yield Case(
                "twins_trt.kernels.patch.kernel:add_parts_norm_kernel",
                dtype,
                0,
                f"{channels_out} channels",
                norm_tiling(channels_out),
                float32=("p_parts",),
                aligned=(),
                grid="(ceil(rows / BR))",
                types=(("eps", "fp32"),),
            )


def parts_of(values: int, programs: int, *, processors: int) -> int:
    """Into how many parts a sum of `values` is cut: so that each multiprocessor has a program, and each part 64 values
    or more. A power of two that divides them."""
    parts = 1
    while programs * parts < processors and values % (2 * parts * 64) == 0:
        parts *= 2
    return parts


def patch_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, *, eps: float
) -> Tensor:
    """`patch_norm_reference` by its Triton kernels."""
    from twins_trt.kernels.patch.kernel import add_parts_norm_kernel, patch_product_kernel

    if not goes_in_parts(x, weight):
        with torch.autocast(x.device.type, enabled=False):
            x = F.conv2d(x, weight, None, weight.shape[2:])  # [B, D, h, w]
        tokens = x.flatten(2).transpose(1, 2)  # [B, N, D]
        return add_layer_norm_forward(tokens, None, norm_weight, norm_bias, eps=eps, row=bias, keep_sum=False)[1]
    channels_out, channels, side, _ = weight.shape
    batch, height, width = x.shape[0], x.shape[2] // side, x.shape[3] // side
    rows, values = batch * height * width, channels * side * side
    blocks = (channels_out // 64, -(-rows // 32))
    parts = parts_of(values, blocks[0] * blocks[1], processors=multiprocessors(x))
    product = product_tiling(channels, side, channels_out).options
    norm = norm_tiling(channels_out).options
    sums = x.new_empty((parts, rows, channels_out), dtype=torch.float32)
    out = x.new_empty((batch, height * width, channels_out))
    with torch.cuda.device_of(x):
        patch_product_kernel[(*blocks, parts)](
            x, weight, sums, x.stride(0), x.stride(2), rows, height, width, values // parts, **product
        )
        add_parts_norm_kernel[(-(-rows // norm["BR"]),)](
            sums, bias.contiguous(), norm_weight.contiguous(), norm_bias.contiguous(), out, rows, parts, eps, **norm
        )
    return out

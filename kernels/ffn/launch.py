"""Tiling and launch of the FFN kernels. Imports triton only where it launches."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from twins_trt.kernels.case import Case, Tiling, dtype_name, tiling
from twins_trt.kernels.device import MAX_BLOCKS, multiprocessors
from twins_trt.kernels.layer_norm.launch import add_layer_norm_forward, equally_spaced

DTYPES = ("fp16", "bf16")
"""Products of fp32 hold operands twice, and what is left of the registers is too little."""

MODEL_SIZES = (
    *((64, 256), (128, 512), (256, 1024), (512, 2048), (96, 384), (192, 768), (384, 1536), (768, 3072), (1024, 4096)),
    *((64, 512), (128, 1024), (320, 1280)),
)
"""Channels and hidden channels of the Twins models."""

FUSED_CHANNELS = 128
"""With more, the rows of a program and what becomes of them leave too little of the registers: on an H200, 256 channels
took longer in one kernel than in three."""


def way(rows: int, channels: int, hidden: int, *, dtype: str, processors: int) -> str:
    """How a block's second half is computed, in 1, 3 or 4 kernels.

    `fused`; `apart`: LayerNorm, fc1 with GELU, a product; `plain`: fc1 and GELU are torch's. processors:
    multiprocessors of the GPU: fewer programs than these take longer than products that are cut up more finely.
    """
    if dtype not in DTYPES or channels % 32 or hidden % 128 or rows > 64 * MAX_BLOCKS:
        return "plain"
    if channels <= FUSED_CHANNELS and rows >= 64 * processors:
        return "fused"
    return "apart"


@functools.cache
def ffn_tiling(channels: int, hidden: int) -> Tiling:
    """64 rows of 4 warps: on an H200 the fastest of 10 for 64 channels and of 8 for 128, 16 images of 512x512."""
    block = 1 << (channels - 1).bit_length()
    constants = {"C": channels, "BC": block, "H": hidden, "BH": 64 if block <= 64 else 32, "BR": 64}
    return tiling(4, 2 if block <= 64 else 3, constants)


@functools.cache
def fc1_tiling(channels: int, hidden: int, *, small: bool) -> Tiling:
    """small: whether larger blocks would be too few programs."""
    deep = 64 if channels % 64 == 0 else 32
    rows, columns, warps = (64, 64, 4) if small else (128, 128, 8)
    return tiling(warps, 3, {"C": channels, "BK": deep, "H": hidden, "BH": columns, "BR": rows})


def cases(capability: int) -> Iterator[Case]:
    """Every kernel that the models launch, the same on all GPUs. Other sizes are compiled when called."""
    for dtype in DTYPES:
        for channels, hidden in MODEL_SIZES:
            if channels <= FUSED_CHANNELS:
                yield Case(
                    "twins_trt.kernels.ffn.kernel:ffn_kernel",
                    dtype,
                    0,
                    f"{channels} channels, {hidden} hidden",
                    ffn_tiling(channels, hidden),
                    float32=(),
                    aligned=("s_x", "s_y"),
                    grid="(ceil(rows / BR))",
                    types=(("eps", "fp32"),),
                )
            for small in (False, True):
                yield Case(
                    "twins_trt.kernels.ffn.kernel:fc1_kernel",
                    dtype,
                    0,
                    f"{channels} channels, {hidden} hidden{' small' if small else ''}",
                    fc1_tiling(channels, hidden, small=small),
                    float32=(),
                    aligned=(),
                    grid="(H / BH, ceil(rows / BR))",
                )


def add_norm_ffn_forward(
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
) -> Tensor:
    """`add_norm_ffn_reference` by its Triton kernels. The result is contiguous."""
    channels = x.shape[-1]
    chosen = way(
        x.numel() // channels,
        channels,
        bias1.shape[0],
        dtype=dtype_name(x.dtype),
        processors=multiprocessors(x),
    )
    vectors = (norm_weight.contiguous(), norm_bias.contiguous())
    weight1, weight2 = weight1.contiguous(), weight2.contiguous()
    # autocast would cast the operands of some products and not of others
    with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
        if chosen == "fused":
            return fused(x, y, *vectors, weight1, bias1.contiguous(), weight2, bias2.contiguous(), eps=eps)
        total, y = add_layer_norm_forward(x, y, *vectors, eps=eps, row=None, keep_sum=True, after=bias2)
        total, y = total.view(-1, channels), y.view(-1, channels)
        hidden = fc1(y, weight1, bias1.contiguous()) if chosen == "apart" else F.gelu(F.linear(y, weight1, bias1))
        return total.addmm_(hidden, weight2.t()).view(x.shape)


def fused(
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
) -> Tensor:
    """All of it in one kernel. x, y: [..., C]; the others contiguous."""
    from twins_trt.kernels.ffn.kernel import ffn_kernel

    out = x.new_empty(x.shape)
    options = ffn_tiling(x.shape[-1], bias1.shape[0]).options
    x_rows, y_rows = (equally_spaced(z, options["BR"]) for z in (x, y))
    rows = x_rows.shape[0]
    ffn_kernel[(-(-rows // options["BR"]),)](
        x_rows,
        y_rows,
        norm_weight,
        norm_bias,
        weight1,
        bias1,
        weight2,
        bias2,
        out,
        x_rows.stride(0),
        y_rows.stride(0),
        rows,
        eps,
        **options,
    )
    return out


def fc1(x: Tensor, weight1: Tensor, bias1: Tensor, *, cut: Tiling | None = None) -> Tensor:
    """GELU of a product and its bias. x: [rows, C], contiguous -> [rows, H]."""
    from twins_trt.kernels.ffn.kernel import fc1_kernel

    rows, channels = x.shape
    width = bias1.shape[0]
    small = -(-rows // 128) * (width // 128) < 2 * multiprocessors(x)
    options = (cut or fc1_tiling(channels, width, small=small)).options
    hidden = x.new_empty((rows, width))
    fc1_kernel[(width // options["BH"], -(-rows // options["BR"]))](x, weight1, bias1, hidden, rows, **options)
    return hidden

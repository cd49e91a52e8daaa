"""Tiling and launch of the LSA kernels. Imports triton only where it launches.

Microseconds in docstrings are of comparisons of candidates on an H200, which no results file holds. What the kernels
take is in docs/measurements.md.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from twins_trt.errors import UsageError
from twins_trt.kernels.case import DTYPES, Case, Tiling, dtype_name, tiling
from twins_trt.kernels.device import (
    MAX_BLOCKS,
    MAX_OFFSET,
    batch_parts,
    capability,
    dot_precision,
    last_axis_dense,
    multiprocessors,
)
from twins_trt.kernels.lsa.reference import masks_padding, window_padding

HEAD_DIMS = (16, 32, 64)
MAX_WINDOW = 8  # a window's tokens are the rows of one 64-row block
ROWS = 64


MANY_PROGRAMS = 4
"""How many programs of the backward kernel that takes many windows share a multiprocessor: their shared memory fits."""


def one_small_head(*, dtype: str, head_dim: int, capability: int) -> bool:
    """Whether forward takes one head a program and 64 registers, so that eight programs share a multiprocessor.

    On an H200, where nothing else was faster at every size: 38 microseconds in place of 45 with two heads a program and
    as many registers as the compiler likes (stage 1 of SVT-S, 16 images of 512×512). Head dim 64 would spill. Other
    GPUs have not been measured.
    """
    return capability == 90 and dtype != "fp32" and head_dim <= 32


@functools.cache
def forward_tiling(
    *,
    dtype: str,
    head_dim: int,
    heads_per_program: int,
    pads_attend: bool,
    precision: str,
    window_size: int,
    capability: int,
) -> Tiling:
    """4 warps, which Hopper's matrix unit needs for 64 rows. fp32 goes by 16 columns, or operands spill."""
    constants = {
        "HEADS": heads_per_program,
        "WINDOW": window_size,
        "ROWS": ROWS,
        "D": head_dim,
        "DC": 16 if dtype == "fp32" else head_dim,
        "PADS_ATTEND": pads_attend,
        "PRECISION": precision,
    }
    small = one_small_head(dtype=dtype, head_dim=head_dim, capability=capability)
    return tiling(4, 1, constants, 64 if small else None)


@functools.cache
def backward_tiling(
    *, dtype: str, head_dim: int, pads_attend: bool, precision: str, window_size: int, capability: int
) -> Tiling:
    """Chooses the tiling of the backward kernel, with the arguments of the forward's.

    fp32 gradients go by 8 columns where the matrix unit's operands lie in registers (sm_8x, sm_12x).
    """
    columns = 8 if capability // 10 in (8, 12) else 16
    constants = {
        "WINDOW": window_size,
        "ROWS": ROWS,
        "D": head_dim,
        "DC": 16 if dtype == "fp32" else head_dim,
        "DN": columns if dtype == "fp32" else head_dim,
        "PADS_ATTEND": pads_attend,
        "PRECISION": precision,
    }
    return tiling(4, 1, constants)


@functools.cache
def backward_many_tiling(*, head_dim: int, window_size: int) -> Tiling:
    """Two windows are loaded ahead. Registers leave room for `MANY_PROGRAMS`."""
    return tiling(4, 3, {"WINDOW": window_size, "ROWS": ROWS, "D": head_dim}, 128)


def takes_many_windows(
    *, dtype: str, head_dim: int, pads_attend: bool, windows: int, capability: int, multiprocessors: int
) -> bool:
    """Whether backward runs the kernel whose programs take many windows each. windows: of all heads and images.

    On an H200 (sm_90): 75 microseconds in place of 87 (stage 1 of SVT-S, 16 images of 512×512), 46 in place of 49 at
    stage 2, with 22 and 12 windows a program; with 6 or fewer it was slower. Head dim 64 would spill.
    """
    measured = capability == 90 and dtype != "fp32" and head_dim == 32 and not pads_attend
    return measured and windows >= 8 * MANY_PROGRAMS * multiprocessors


def heads_per_program(
    *, dtype: str, head_dim: int, num_heads: int, windows: int, capability: int, multiprocessors: int
) -> int:
    """How many heads one program takes.

    Two heads share a window's address arithmetic, a quarter of a program. That pays once every multiprocessor has work,
    and where one small head does not pay more.
    """
    if dtype == "fp32" or num_heads % 2 or one_small_head(dtype=dtype, head_dim=head_dim, capability=capability):
        return 1
    return 2 if windows * num_heads >= 32 * multiprocessors else 1


def cases(capability: int) -> Iterator[Case]:
    """Every LSA kernel that is launched on sm_`capability`, at the window size of the published models."""
    strides = ("s_b", "s_h", "s_w", "channels", "depth")
    for dtype in DTYPES:
        precision = "tf32x3" if dtype == "fp32" else "tf32"
        for head_dim in HEAD_DIMS:
            for pads_attend in (False, True):
                variant = "pads attend" if pads_attend else ""
                one = dtype == "fp32" or one_small_head(dtype=dtype, head_dim=head_dim, capability=capability)
                for heads in (1,) if one else (1, 2):
                    yield Case(
                        "twins_trt.kernels.lsa.kernel:lsa_forward_kernel",
                        dtype,
                        head_dim,
                        " ".join(filter(None, (variant, "two heads" if heads == 2 else ""))),
                        forward_tiling(
                            dtype=dtype,
                            head_dim=head_dim,
                            heads_per_program=heads,
                            pads_attend=pads_attend,
                            precision=precision,
                            window_size=7,
                            capability=capability,
                        ),
                        float32=(),
                        aligned=strides,
                        grid="(heads / HEADS, ceil(width / WINDOW), batch * ceil(height / WINDOW))",
                    )
                yield Case(
                    "twins_trt.kernels.lsa.kernel:lsa_backward_kernel",
                    dtype,
                    head_dim,
                    variant,
                    backward_tiling(
                        dtype=dtype,
                        head_dim=head_dim,
                        pads_attend=pads_attend,
                        precision=precision,
                        window_size=7,
                        capability=capability,
                    ),
                    float32=("p_dpads",),
                    aligned=("g_b", "g_h", "g_w", *strides),
                    grid="(heads, ceil(width / WINDOW), batch * ceil(height / WINDOW))",
                )
                if takes_many_windows(
                    dtype=dtype,
                    head_dim=head_dim,
                    pads_attend=pads_attend,
                    windows=8 * MANY_PROGRAMS,
                    capability=capability,
                    multiprocessors=1,
                ):
                    yield Case(
                        "twins_trt.kernels.lsa.kernel:lsa_backward_many_kernel",
                        dtype,
                        head_dim,
                        "",
                        backward_many_tiling(head_dim=head_dim, window_size=7),
                        float32=(),
                        aligned=("g_b", "g_h", "g_w", "s_b", "s_h", "s_w", "channels"),
                        grid="(any number up to windows)",
                    )


def lsa_forward(
    qkv: Tensor, qkv_bias: Tensor, *, num_heads: int, window_size: int = 7, padding: str = "parity"
) -> Tensor:
    """LSA by its Triton kernel. Arguments and result as `lsa_reference`; the map may be strided (channels dense)."""
    from twins_trt.kernels.lsa.kernel import lsa_forward_kernel

    qkv, qkv_bias = last_axis_dense(qkv), qkv_bias.contiguous()
    batch, height, width, channels3 = qkv.shape
    channels = channels3 // 3
    out = qkv.new_empty(batch, height, width, channels)
    window_rows, window_columns, pads_attend = _windows(height, width, window_size, padding)
    _check_offsets(window_size, qkv, out)
    dtype, head_dim = dtype_name(qkv.dtype), channels // num_heads
    heads = heads_per_program(
        dtype=dtype,
        head_dim=head_dim,
        num_heads=num_heads,
        windows=batch * window_rows * window_columns,
        capability=capability(qkv),
        multiprocessors=multiprocessors(qkv),
    )
    options = forward_tiling(
        dtype=dtype,
        head_dim=head_dim,
        heads_per_program=heads,
        pads_attend=pads_attend,
        precision=dot_precision(qkv),
        window_size=window_size,
        capability=capability(qkv),
    ).options
    with torch.cuda.device_of(qkv):
        for some_qkv, some_out in batch_parts(_most_images(window_rows), qkv, out):
            grid = (num_heads // heads, window_columns, some_qkv.shape[0] * window_rows)
            lsa_forward_kernel[grid](
                some_qkv,
                qkv_bias,
                some_out,
                *qkv.stride()[:3],
                height,
                width,
                window_rows,
                channels,
                head_dim,
                head_dim**-0.5,
                **options,
            )
    return out


def lsa_backward(
    grad: Tensor, qkv: Tensor, qkv_bias: Tensor, *, num_heads: int, window_size: int = 7, padding: str = "parity"
) -> tuple[Tensor, Tensor]:
    """Gradients of LSA with respect to `qkv` and `qkv_bias`, by the Triton kernel.

    grad: [B, H, W, C], gradient of the result; both maps may be strided (channels dense).
    Returns dqkv [B, H, W, 3C] and what padded tokens add to the gradient of the bias [3C].
    """
    from twins_trt.kernels.lsa.kernel import lsa_backward_kernel

    grad, qkv, qkv_bias = last_axis_dense(grad), last_axis_dense(qkv), qkv_bias.contiguous()
    batch, height, width, channels3 = qkv.shape
    channels = channels3 // 3
    dqkv = qkv.new_empty(batch, height, width, channels3)
    window_rows, window_columns, pads_attend = _windows(height, width, window_size, padding)
    _check_offsets(window_size, grad, qkv, dqkv)
    windows = num_heads * batch * window_rows * window_columns
    if takes_many_windows(
        dtype=dtype_name(qkv.dtype),
        head_dim=channels // num_heads,
        pads_attend=pads_attend,
        windows=windows,
        capability=capability(qkv),
        multiprocessors=multiprocessors(qkv),
    ):
        _backward_many(grad, qkv, dqkv, num_heads=num_heads, window_size=window_size, windows=windows)
        return dqkv, torch.zeros_like(qkv_bias)
    bottom, right = height % window_size > 0, width % window_size > 0
    edges = bottom * window_columns + right * (window_rows - bottom)  # windows per image; see the kernel
    dpads = qkv.new_empty(batch, edges if pads_attend else 0, 2, channels, dtype=torch.float32)
    options = backward_tiling(
        dtype=dtype_name(qkv.dtype),
        head_dim=channels // num_heads,
        pads_attend=pads_attend,
        precision=dot_precision(qkv),
        window_size=window_size,
        capability=capability(qkv),
    ).options
    with torch.cuda.device_of(qkv):
        for part in batch_parts(_most_images(window_rows), grad, qkv, dqkv, dpads):
            some_grad, some_qkv, some_dqkv, some_dpads = part
            lsa_backward_kernel[(num_heads, window_columns, some_qkv.shape[0] * window_rows)](
                some_grad,
                some_qkv,
                qkv_bias,
                some_dqkv,
                some_dpads,
                *grad.stride()[:3],
                *qkv.stride()[:3],
                height,
                width,
                window_rows,
                channels,
                channels // num_heads,
                (channels // num_heads) ** -0.5,
                **options,
            )
    dbias = torch.zeros_like(qkv_bias)
    if pads_attend:
        dbias[channels:] = dpads.sum((0, 1)).flatten()  # [2, C] -> [2C], of keys and values
    return dqkv, dbias


def _backward_many(grad: Tensor, qkv: Tensor, dqkv: Tensor, *, num_heads: int, window_size: int, windows: int) -> None:
    from twins_trt.kernels.lsa.kernel import lsa_backward_many_kernel

    _, height, width, channels3 = qkv.shape
    channels = channels3 // 3
    head_dim = channels // num_heads
    options = backward_many_tiling(head_dim=head_dim, window_size=window_size).options
    each = -(-windows // (MANY_PROGRAMS * multiprocessors(qkv)))  # windows of a program
    with torch.cuda.device_of(qkv):
        lsa_backward_many_kernel[(-(-windows // each),)](
            grad,
            qkv,
            dqkv,
            *grad.stride()[:3],
            *qkv.stride()[:3],
            height,
            width,
            -(-height // window_size),
            -(-width // window_size),
            num_heads,
            windows,
            channels,
            head_dim**-0.5,
            **options,
        )


def _windows(height: int, width: int, window_size: int, padding: str) -> tuple[int, int, bool]:
    """Rows and columns of windows, and whether padded keys take part."""
    pad_bottom, pad_right = window_padding(height, width, window_size)
    pads_attend = (pad_bottom > 0 or pad_right > 0) and not masks_padding(pad_bottom, pad_right, padding=padding)
    return (height + pad_bottom) // window_size, (width + pad_right) // window_size, pads_attend


def _most_images(window_rows: int) -> int:
    """How many images' windows fit the grid's third axis."""
    return max(1, MAX_BLOCKS // window_rows)


def _check_offsets(window_size: int, *maps: Tensor) -> None:
    for x in maps:
        reach = window_size * (abs(x.stride(1)) + abs(x.stride(2))) + x.shape[3]
        if reach > MAX_OFFSET:
            raise UsageError(
                f"a window of this map spans {reach} elements in memory, more than the {MAX_OFFSET} a kernel addresses",
                "pass a contiguous map, or backend='sdpa'",
            )

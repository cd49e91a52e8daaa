"""Tiling and launch of the resize-and-add kernel. Imports triton only where it launches."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from twins_trt.kernels.case import DTYPES, Case, Tiling, tiling
from twins_trt.kernels.device import MAX_OFFSET, capability


@functools.cache
def cut(*, bilinear: bool, add: bool, twice: bool, capability: int) -> Tiling:
    """16-bit channels are 128 bytes of a pixel, which eight threads read.

    A thread makes two such pieces, or the four of one cell of the kernel that doubles. The limit of registers is above
    the one that the compiler of Triton 3.6 sets itself for sm_100 and 103, and then spills.
    """
    constants = {"BY": 4, "BX": 4 if twice else 8, "BC": 64, "BILINEAR": bilinear, "ADD": add}
    crowded = twice and bilinear and add and capability in (100, 103)
    return tiling(4, 1, constants, max_registers=96 if crowded else None)


def cases(capability: int) -> Iterator[Case]:
    """Every kernel that is launched on sm_`capability`."""
    grid = "(batch * tiles * blocks); blocks = ceil(channels / BC), tiles = tile_columns * "
    for dtype, bilinear, add in itertools.product(DTYPES, (True, False), (False, True)):
        variant = ("bilinear" if bilinear else "nearest") + (" add" if add else "")
        yield Case(
            "twins_trt.kernels.resize.kernel:resize_add_kernel",
            dtype,
            0,
            variant,
            cut(bilinear=bilinear, add=add, twice=False, capability=capability),
            float32=(),
            aligned=("channels",),
            grid=f"{grid}ceil(height / BY), tile_columns = ceil(width / BX)",
            types=(("scale_y", "fp32"), ("scale_x", "fp32")),
        )
        yield Case(
            "twins_trt.kernels.resize.kernel:resize_add_twice_kernel",
            dtype,
            0,
            variant,
            cut(bilinear=bilinear, add=add, twice=True, capability=capability),
            float32=(),
            aligned=("channels",),
            grid=f"{grid}ceil((in_height + BILINEAR) / BY), tile_columns = ceil((in_width + BILINEAR) / BX)",
        )


def unsupported(x: Tensor, height: int, width: int) -> str | None:
    """Why the kernel does not resize `x` to this size, or None."""
    elements = x.shape[1] * max(x.shape[2] * x.shape[3], height * width)
    if elements > MAX_OFFSET:
        return f"a map of {elements} elements is more than the {MAX_OFFSET} a kernel addresses"
    return None


def resize_add_forward(x: Tensor, height: int, width: int, mode: str, add: Tensor | None) -> Tensor:
    """`resize_add_reference` by its Triton kernels. A map in another memory format than channels_last is copied."""
    from twins_trt.kernels.resize.kernel import resize_add_kernel, resize_add_twice_kernel

    batch, channels, in_height, in_width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    out = empty_result(x, height, width)
    other = x if add is None else add.contiguous(memory_format=torch.channels_last)  # without, the kernel reads none
    # at equal sizes both modes are the identity, and nearest reads a pixel once
    bilinear = mode == "bilinear" and (in_height, in_width) != (height, width)
    twice = (2 * in_height, 2 * in_width) == (height, width)
    options = cut(bilinear=bilinear, add=add is not None, twice=twice, capability=capability(x)).options
    rows, columns = (in_height + bilinear, in_width + bilinear) if twice else (height, width)  # of cells or of pixels
    tile_columns = -(-columns // options["BX"])
    tiles = tile_columns * -(-rows // options["BY"])
    blocks = -(-channels // options["BC"])
    grid = (batch * tiles * blocks,)
    sizes = (channels, tile_columns, tiles, blocks)
    with torch.cuda.device_of(x):
        if twice:
            resize_add_twice_kernel[grid](x, other, out, in_height, in_width, *sizes, **options)
        else:
            scales = (in_height / height, in_width / width)
            resize_add_kernel[grid](x, other, out, in_height, in_width, height, width, *sizes, *scales, **options)
    return out


def empty_result(x: Tensor, height: int, width: int) -> Tensor:
    """The result without its values: [B, C, h, w] in torch.channels_last memory format."""
    return x.new_empty(x.shape[0], height, width, x.shape[1]).permute(0, 3, 1, 2)  # [B, C, h, w]

"""Tiling and launch of the resize-and-argmax kernels. Imports triton only where it launches."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from twins_trt.errors import UsageError
from twins_trt.kernels.case import DTYPES, Case, Tiling, dtype_name, tiling
from twins_trt.kernels.device import MAX_OFFSET, capability

BLOCK = 16
"""Classes that are read at a time where they lie side by side. Folded models pad theirs to a multiple of it."""

CELL = 4
"""The one ratio of mask to logits, on both axes, that has a kernel of its own: what the models make."""


@functools.cache
def cut(*, classes_last: bool, whole_blocks: bool, probability: bool, capability: int) -> Tiling:
    """A tile of 4 rows, because in a mask of four times the size four rows share two rows of logits.

    Classes side by side are read 16 bytes a thread, if storage goes on to the end of their last block (`whole_blocks`).
    Planes are read one class at a time, so that threads are neighbours in x. The limits of registers are above those
    that the compiler sets itself for sm_80, 100 and 103, and then spills.
    """
    constants = {
        "BY": 4,
        "BX": 32,
        "BC": BLOCK if classes_last else 1,
        "CLASSES_LAST": classes_last,
        "WHOLE_BLOCKS": whole_blocks or not classes_last,
        "PROBABILITY": probability,
    }
    if not classes_last:
        return tiling(4, 1, constants, max_registers=40 if capability == 80 else None)
    registers = 80 if whole_blocks else 128
    return tiling(8, 1, constants, max_registers=registers if capability in (100, 103) else None)


@functools.cache
def cells_cut(*, dtype: str) -> Tiling:
    """16 bytes of one cell a thread for 16-bit logits. fp32 takes half the classes, because registers would run out."""
    return tiling(2, 1, {"CELLS": 32, "BC": BLOCK // 2 if dtype == "fp32" else BLOCK})


def cases(capability: int) -> Iterator[Case]:
    """Every kernel that is launched on sm_`capability`."""
    for dtype in DTYPES:
        for words, classes_last, whole_blocks in (
            ("classes last", True, False),
            ("padded classes", True, True),
            ("planes", False, False),
        ):
            for probability in (False, True):
                yield Case(
                    "twins_trt.kernels.postprocess.kernel:resize_argmax_kernel",
                    dtype,
                    0,
                    " ".join(filter(None, (words, "probability" if probability else ""))),
                    cut(
                        classes_last=classes_last,
                        whole_blocks=whole_blocks,
                        probability=probability,
                        capability=capability,
                    ),
                    float32=("p_probability",),
                    aligned=("s_b", "s_h", "s_w") if whole_blocks else (),
                    grid="(batch * tiles); tile_columns = ceil(width / BX), tiles = tile_columns * ceil(height / BY)",
                    types=(("p_mask", "*u8"), ("scale_y", "fp32"), ("scale_x", "fp32")),
                )
        yield Case(
            "twins_trt.kernels.postprocess.kernel:resize_argmax_cells_kernel",
            dtype,
            0,
            "",
            cells_cut(dtype=dtype),
            float32=(),
            aligned=("s_b", "s_h", "s_w"),
            grid="(batch * tiles); tiles = ceil((in_height + 1) * (in_width + 1) / CELLS)",
            types=(("p_mask", "*u8"),),
        )


def unsupported(logits: Tensor) -> str | None:
    """Why the kernel does not take these logits, or None."""
    reach = _reach(logits)
    if reach > MAX_OFFSET:
        return f"an image's logits span {reach} elements in memory, more than the {MAX_OFFSET} a kernel addresses"
    return None


def _reach(logits: Tensor) -> int:
    """Elements from the first logit of an image to its last."""
    return sum((n - 1) * s for n, s in zip(logits.shape[1:], logits.stride()[1:], strict=True))


def has_whole_blocks(logits: Tensor, block: int = BLOCK) -> bool:
    """Whether classes lie side by side and the storage goes on to a multiple of `block` classes, at every position.

    logits: [B, C, h, w], any dtype, such as a view of the first 150 of 160 classes. What lies behind the classes may be
    anything. The last position decides, because the storage of every other one goes on for longer.
    """
    if logits.stride(1) != 1:
        return False
    batch, classes = logits.shape[:2]
    last = logits.storage_offset() + (batch - 1) * logits.stride(0) + _reach(logits) - (classes - 1)
    return (last + -(-classes // block) * block) * logits.element_size() <= logits.untyped_storage().nbytes()


def fits_cells(logits: Tensor, height: int, width: int, *, probability: bool) -> bool:
    """Whether the kernel of 4 × 4 cells makes this mask: 4 times the size, no probability, classes in whole blocks."""
    size = (CELL * logits.shape[2], CELL * logits.shape[3])
    return (height, width) == size and not probability and has_whole_blocks(logits)


def resize_argmax_forward(
    logits: Tensor, height: int, width: int, *, probability: bool, cells: bool | None = None
) -> tuple[Tensor, Tensor]:
    """`resize_argmax_reference` by its Triton kernels; logits at any strides.

    cells: whether the kernel of 4 × 4 cells runs; None: where it can. A benchmark compares both.
    Returns the mask and the probability, which is empty without `probability`.
    Raises UsageError for `cells` that do not fit.
    """
    fits = fits_cells(logits, height, width, probability=probability)
    if cells and not fits:
        raise UsageError(
            f"a mask {height}x{width} of logits {list(logits.shape)} is not made of 4x4 cells",
            "pass logits of a quarter of its size, classes last and padded to 16, without probability; or cells=None",
        )
    mask = logits.new_empty(logits.shape[0], height, width, dtype=torch.uint8)
    best = logits.new_empty(mask.shape if probability else (0,), dtype=torch.float32)
    with torch.cuda.device_of(logits):
        if fits and cells is not False:
            _launch_cells(logits, mask)
        else:
            _launch_pixels(logits, mask, best)
    return mask, best


def _launch_cells(logits: Tensor, mask: Tensor) -> None:
    from twins_trt.kernels.postprocess.kernel import resize_argmax_cells_kernel

    batch, classes, in_height, in_width = logits.shape
    s_b, _, s_h, s_w = logits.stride()
    options = cells_cut(dtype=dtype_name(logits.dtype)).options
    tiles = -(-(in_height + 1) * (in_width + 1) // options["CELLS"])
    resize_argmax_cells_kernel[(batch * tiles,)](
        logits, mask, s_b, s_h, s_w, in_height, in_width, classes, tiles, **options
    )


def _launch_pixels(logits: Tensor, mask: Tensor, best: Tensor) -> None:
    """best: the probability, empty without."""
    from twins_trt.kernels.postprocess.kernel import resize_argmax_kernel

    batch, classes, in_height, in_width = logits.shape
    height, width = mask.shape[1:]
    options = cut(
        classes_last=logits.stride(1) == 1,
        whole_blocks=has_whole_blocks(logits),
        probability=best.numel() > 0,
        capability=capability(logits),
    ).options
    columns = -(-width // options["BX"])
    tiles = columns * -(-height // options["BY"])
    resize_argmax_kernel[(batch * tiles,)](
        logits,
        mask,
        best,
        *logits.stride(),
        in_height,
        in_width,
        height,
        width,
        classes,
        columns,
        tiles,
        in_height / height,
        in_width / width,
        **options,
    )

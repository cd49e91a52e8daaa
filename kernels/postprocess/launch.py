"""Tiling and launch of the resize-and-argmax kernel. Imports triton only where it launches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from twins_trt.kernels.case import DTYPES, Case, Tiling, tiling
from twins_trt.kernels.device import MAX_OFFSET, capability


def cut(*, classes_last: bool, probability: bool, capability: int) -> Tiling:
    """A tile of 4 rows, because in a mask of four times the size four rows share two rows of logits.

    Classes side by side are read 16 bytes a thread; planes are read one class at a time, so that threads are neighbours
    in x. On sm_100 and 103 the compiler spills fp16 unless it may take more than 64 registers.
    """
    constants = {
        "BY": 4,
        "BX": 32,
        "BC": 16 if classes_last else 1,
        "CLASSES_LAST": classes_last,
        "PROBABILITY": probability,
    }
    if not classes_last:
        return tiling(4, 1, constants)
    return tiling(8, 1, constants, max_registers=80 if capability in (100, 103) else None)


def cases(capability: int) -> Iterator[Case]:
    """Every kernel that is launched on sm_`capability`."""
    for dtype in DTYPES:
        for classes_last in (True, False):
            for probability in (False, True):
                words = ("classes last" if classes_last else "planes", "probability" if probability else "")
                yield Case(
                    "twins_trt.kernels.postprocess.kernel:resize_argmax_kernel",
                    dtype,
                    0,
                    " ".join(filter(None, words)),
                    cut(classes_last=classes_last, probability=probability, capability=capability),
                    float32=("p_probability",),
                    aligned=("s_b", "s_h", "s_w") if classes_last else ("s_b", "s_c"),
                    grid="(batch * tiles); tile_columns = ceil(width / BX), tiles = tile_columns * ceil(height / BY)",
                    types=(("p_mask", "*u8"), ("scale_y", "fp32"), ("scale_x", "fp32")),
                )


def unsupported(logits: Tensor) -> str | None:
    """Why the kernel does not take these logits, or None."""
    reach = sum((n - 1) * abs(s) for n, s in zip(logits.shape[1:], logits.stride()[1:], strict=True))
    if reach > MAX_OFFSET:
        return f"an image's logits span {reach} elements in memory, more than the {MAX_OFFSET} a kernel addresses"
    return None


def resize_argmax_forward(logits: Tensor, height: int, width: int, *, probability: bool) -> tuple[Tensor, Tensor]:
    """`resize_argmax_reference` by its Triton kernel; logits at any strides.

    Returns the mask and the probability, which is empty without `probability`.
    """
    from twins_trt.kernels.postprocess.kernel import resize_argmax_kernel

    batch, classes, in_height, in_width = logits.shape
    mask = logits.new_empty(batch, height, width, dtype=torch.uint8)
    best = logits.new_empty(mask.shape if probability else (0,), dtype=torch.float32)
    tile = cut(classes_last=logits.stride(1) == 1, probability=probability, capability=capability(logits))
    block = dict(tile.constants)
    columns = -(-width // block["BX"])
    tiles = columns * -(-height // block["BY"])
    with torch.cuda.device_of(logits):
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
            **tile.options(),
        )
    return mask, best

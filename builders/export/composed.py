"""Two 3×3 convolutions with nothing between them as one 5×5, exact at the borders too.

The FPN's last 3×3 has neither norm nor activation, and the 3×3 that its level's head begins with follows it directly.
Composed they are one 5×5, which the few channels of the level's stage go through without being widened first. What
comes from the coarser level is the same map doubled, of which five pixels are three, so each of its four output phases
is a 3×3 on the coarse map.

One difference is left: mmsegmentation pads the map between the two convolutions with zeros, where the 5×5 sees what the
first would have written there. It is one pixel wide, all around, and is taken out again (`_outside`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twins_trt.builders.export.dims import ints
from twins_trt.builders.export.tokens import Size
from twins_trt.builders.export.writer import GraphWriter, Tensor


@dataclass(frozen=True)
class Convolution:
    """weight: [out, in, k, k]; bias: [out]."""

    weight: NDArray
    bias: NDArray


@dataclass(frozen=True)
class Level:
    """What a level's map goes through: its lateral 1×1, then, with the coarser level added, two 3×3."""

    lateral: Convolution
    first: Convolution
    second: Convolution


def computes_less(level: Level) -> bool:
    """Whether one 5×5 takes fewer multiplications than the convolutions it stands for."""
    (out, channels), narrow = level.second.weight.shape[:2], level.lateral.weight.shape[1]
    composed = 25 * narrow * out + 9 * channels * out  # a quarter of the pixels, four phases
    return composed < narrow * channels + 9 * channels * channels + 9 * channels * out


def compose(first: NDArray, second: NDArray) -> NDArray:
    """The kernel, float64, of `second` after `first`: [out, in, k1 + k2 - 1, k1 + k2 - 1]."""
    size = first.shape[-1] + second.shape[-1] - 1
    kernel = np.zeros((second.shape[0], first.shape[1], size, size))
    for y, x in np.ndindex(*second.shape[2:]):
        tap = np.einsum("om,miyx->oiyx", second[:, :, y, x].astype(np.float64), first.astype(np.float64))
        kernel[:, :, y : y + first.shape[2], x : x + first.shape[3]] += tap
    return kernel


def doubled_phases(kernel: NDArray) -> NDArray:
    """`kernel` [out, in, k, k] on a map doubled by repetition, as a kernel [4·out, in, k', k'] on the map itself.

    The four phases lie behind one another as DepthToSpace reads them.
    """
    radius = kernel.shape[-1] // 2
    reach = (radius + 1) // 2
    phases = np.zeros((2, 2, *kernel.shape[:2], 2 * reach + 1, 2 * reach + 1))
    for row, column, y, x in np.ndindex(2, 2, *kernel.shape[2:]):
        # Output row 2i + row reads doubled row 2i + row + y - radius, which is coarse row i + (row + y - radius) // 2.
        at = (row + y - radius) // 2 + reach, (column + x - radius) // 2 + reach
        phases[row, column, :, :, at[0], at[1]] += kernel[:, :, y, x]
    return phases.reshape(-1, *phases.shape[3:])


def write_composed(w: GraphWriter, fine: Tensor, coarse: Tensor, level: Level, *, batch: int, size: Size) -> Tensor:
    """second(first(lateral(fine) + doubled(coarse))), [B, out, H, W]. fine: [B, c, H, W]; coarse: [B, C, H/2, W/2]."""
    kernel = compose(level.first.weight, level.second.weight)
    bias = level.second.bias + np.einsum("omyx,m->o", level.second.weight.astype(np.float64), level.first.bias)
    out = w.conv(fine, compose(level.lateral.weight, kernel), bias, "fine", pads=(2, 2, 2, 2))
    # The lateral bias goes with the coarse map, where the zero padding cuts it off as it should.
    coarse = w.add(coarse, w.const(level.lateral.bias.reshape(1, -1, 1, 1), "bias"), "coarse.bias")
    spread = w.conv(coarse, doubled_phases(kernel), None, "coarse", pads=(1, 1, 1, 1))
    spread = w.op("DepthToSpace", [spread], "spread", attrs={"blocksize": 2})

    shape = (batch, len(bias), *ints(*size))
    lines = np.arange(np.prod(shape[:3])).reshape(shape[:3])  # every row of every map
    rows = _outside(w, fine, coarse, level, batch=batch, size=size, axis=2)
    spread = _add_at(w, spread, rows, lines[:, :, [0, -1]].transpose(0, 2, 1), width=shape[3])
    pixels = np.arange(np.prod(shape)).reshape(shape)
    columns = _outside(w, fine, coarse, level, batch=batch, size=size, axis=3)
    spread = _add_at(w, spread, columns, pixels[..., [0, -1]].transpose(0, 3, 1, 2), width=1)
    return w.add(out, w.reshape(spread, shape, "corrected"), "sum")


def _outside(
    w: GraphWriter, fine: Tensor, coarse: Tensor, level: Level, *, batch: int, size: Size, axis: int
) -> Tensor:
    """What `second` must not see beyond both ends of `axis` (2: rows, 3: columns), as it reaches the lines inside.

    Returns it negated, [B, 2·out, 1, length]. The pixels just outside, as `first` would write them, go through the taps
    of `second` that reach them. Corners outside belong to the rows.
    """
    across, length = ints(*size) if axis == 2 else ints(*size)[::-1]
    channels = level.first.weight.shape[1]
    with w.scope(f"border.{('rows', 'columns')[axis - 2]}"):
        ends = w.slice(fine, [0], [across], [axis], "ends", steps=[across - 1])
        x = w.conv(ends, level.lateral.weight, None, "lateral")
        # Of a map one pixel across, the one end becomes both as it is doubled.
        ends = w.slice(coarse, [0], [across // 2], [axis], "ends", steps=[max(1, across // 2 - 1)])
        to = (2, length) if axis == 2 else (length, 2)
        x = w.add(x, w.resize(ends, to, "up", mode="nearest", batch=batch, channels=channels), "sum")
        # Both ends side by side as channels.
        x = w.transpose(x, (0, 2, 1, 3) if axis == 2 else (0, 3, 1, 2), "ends")
        x = w.reshape(x, [batch, 2 * channels, 1, length])
        pad = 2 if axis == 2 else 1
        first = _lines(level.first.weight, (2, 0), axis)  # from outside, the end is one step to the inside
        x = w.conv(x, first, np.tile(level.first.bias, 2), "first", pads=(0, pad, 0, pad), group=2)
        second = _lines(level.second.weight, (0, 2), axis)
        return w.conv(x, -second, None, "second", pads=(0, pad % 2, 0, pad % 2), group=2)


def _lines(kernel: NDArray, at: tuple[int, int], axis: int) -> NDArray:
    """Two lines of taps of a 3×3, for both ends of `axis`: [2·out, in, 1, 3]."""
    return np.concatenate([kernel.take(i, axis) for i in at])[:, :, None]


def _add_at(w: GraphWriter, x: Tensor, values: Tensor, places: NDArray, *, width: int) -> Tensor:
    """`values` added to the rows `places` of `x`, which is seen as rows of `width`."""
    rows, values = w.reshape(x, [-1, width]), w.reshape(values, [places.size, width], "values")
    with w.float32_island("ONNX Runtime adds into a tensor in float32 only"):
        return w.op(
            "ScatterND", [rows, w.const(places.reshape(-1, 1), "places"), values], "add_at", attrs={"reduction": "add"}
        )

"""Two 3×3 convolutions with nothing between them as one 5×5, exact at the borders too.

The FPN's last 3×3 has neither norm nor activation, and the first 3×3 of the level's head follows it directly. Composed
they are one 5×5, which takes the few channels of the level's stage; the two 3×3 need them widened first. The coarser
level's map comes doubled, so that five of its pixels are three different ones: each of the four output phases is a 3×3
on the coarse map.

One difference is left: mmsegmentation pads the map between the two convolutions with zeros. There the 5×5 sees what the
first convolution would have written, one pixel wide, all around. `_outside` computes that, and it is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twins_trt.builders.export.dims import MapShape, ints
from twins_trt.builders.export.writer import GraphWriter, Tensor


@dataclass(frozen=True)
class Convolution:
    """weight: [out, in, k, k]; bias: [out]."""

    weight: NDArray
    bias: NDArray


@dataclass(frozen=True)
class Level:
    """The convolutions of a level: its lateral 1×1, then, behind the sum with the coarser level, two 3×3."""

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

    The four phases come one after another, as DepthToSpace reads them.
    """
    radius = kernel.shape[-1] // 2
    reach = (radius + 1) // 2
    phases = np.zeros((2, 2, *kernel.shape[:2], 2 * reach + 1, 2 * reach + 1))
    for row, column, y, x in np.ndindex(2, 2, *kernel.shape[2:]):
        # Output row 2i + row reads doubled row 2i + row + y - radius, which is coarse row i + (row + y - radius) // 2.
        at = (row + y - radius) // 2 + reach, (column + x - radius) // 2 + reach
        phases[row, column, :, :, at[0], at[1]] += kernel[:, :, y, x]
    return phases.reshape(-1, *phases.shape[3:])  # [2, 2, out, in, k', k'] -> [4 · out, in, k', k']


def write_composed(w: GraphWriter, fine: Tensor, coarse: Tensor, level: Level, shape: MapShape) -> Tensor:
    """second(first(lateral(fine) + doubled(coarse))), [B, out, H, W].

    fine: [B, c, H, W], of the given shape, which must be known; coarse: [B, C, H/2, W/2].
    """
    kernel = compose(level.first.weight, level.second.weight)
    bias = level.second.bias + np.einsum("omyx,m->o", level.second.weight.astype(np.float64), level.first.bias)
    out = w.conv(fine, compose(level.lateral.weight, kernel), bias, "fine", pads=(2, 2, 2, 2))
    # The lateral bias is added to the coarse map, where the zero padding cuts it off as it should.
    coarse = w.add(coarse, w.const(level.lateral.bias.reshape(1, -1, 1, 1), "bias"), "coarse.bias")
    spread = w.conv(coarse, doubled_phases(kernel), None, "coarse", pads=(1, 1, 1, 1))
    spread = w.op("DepthToSpace", [spread], "spread", attrs={"blocksize": 2})

    whole = ints(shape.batch, len(bias), *shape.size)  # [B, out, H, W]
    lines = np.arange(np.prod(whole[:3])).reshape(whole[:3])  # [B, out, H], the number of every row of every map
    rows = _outside(w, fine, coarse, level, shape, axis=2)
    spread = _add_at(w, spread, rows, lines[:, :, [0, -1]].transpose(0, 2, 1), width=whole[3])  # at [B, 2, out]
    pixels = np.arange(np.prod(whole)).reshape(whole)  # [B, out, H, W], the number of every pixel
    columns = _outside(w, fine, coarse, level, shape, axis=3)
    spread = _add_at(w, spread, columns, pixels[..., [0, -1]].transpose(0, 3, 1, 2), width=1)  # at [B, 2, out, H]
    return w.add(out, w.reshape(spread, whole, "corrected"), "sum")


def _outside(w: GraphWriter, fine: Tensor, coarse: Tensor, level: Level, shape: MapShape, *, axis: int) -> Tensor:
    """What the pixels outside both ends of `axis` (2: rows, 3: columns) add to the first and last line inside.

    Returns it negated, [B, 2 · out, 1, length]. The pixels just outside, as `first` would write them, go through the
    taps of `second` that reach them. Corners outside count with the rows.
    """
    size, batch = ints(*shape.size), shape.batch
    across, length = size if axis == 2 else size[::-1]
    channels = level.first.weight.shape[1]
    with w.scope(f"border.{('rows', 'columns')[axis - 2]}"):
        ends = w.slice(fine, [0], [across], [axis], "ends", steps=[across - 1])
        x = w.conv(ends, level.lateral.weight, None, "lateral")
        # A map one pixel across has one end, which doubling makes two.
        ends = w.slice(coarse, [0], [across // 2], [axis], "ends", steps=[max(1, across // 2 - 1)])
        to = (2, length) if axis == 2 else (length, 2)
        x = w.add(x, w.resize(ends, MapShape(batch, channels, to), "up", mode="nearest"), "sum")
        # Both ends side by side as channels.
        x = w.transpose(x, (0, 2, 1, 3) if axis == 2 else (0, 3, 1, 2), "ends")  # [B, 2, C, length]
        x = w.reshape(x, [batch, 2 * channels, 1, length])  # [B, 2C, 1, length]
        pad = 2 if axis == 2 else 1
        first = _lines(level.first.weight, (2, 0), axis)  # from outside, the end is one step to the inside
        x = w.conv(x, first, np.tile(level.first.bias, 2), "first", pads=(0, pad, 0, pad), group=2)
        second = _lines(level.second.weight, (0, 2), axis)
        return w.conv(x, -second, None, "second", pads=(0, pad % 2, 0, pad % 2), group=2)


def _lines(kernel: NDArray, at: tuple[int, int], axis: int) -> NDArray:
    """Two lines of taps of a 3×3, for both ends of `axis`: [2·out, in, 1, 3]."""
    return np.concatenate([kernel.take(i, axis) for i in at])[:, :, None]


def _add_at(w: GraphWriter, x: Tensor, values: Tensor, places: NDArray, *, width: int) -> Tensor:
    """`x`, cut into rows of `width`, with `values` added to the rows whose numbers `places` holds: [rows, width]."""
    rows, values = w.reshape(x, [-1, width]), w.reshape(values, [places.size, width], "values")
    with w.float32_island("ONNX Runtime adds into a tensor in float32 only"):
        return w.op(
            "ScatterND", [rows, w.const(places.reshape(-1, 1), "places"), values], "add_at", attrs={"reduction": "add"}
        )

"""Pooling and bilinear resizing as matrices: constants for a known size, else computed by the graph.

Every matrix maps one axis: pooled = P @ x, upsampled = U @ x. An axis pair is their Kronecker product.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twins_trt.builders.export.dims import Dim, MapShape, Size, ints, known
from twins_trt.builders.export.writer import GraphWriter, Tensor


def pooling_matrix(size: int, bins: int) -> NDArray:
    """float32 [bins, size]: torch's AdaptiveAvgPool, bin i averages floor(i·size/bins) .. ceil((i+1)·size/bins)."""
    matrix = np.zeros((bins, size), np.float32)
    for i in range(bins):
        start, stop = i * size // bins, -(-(i + 1) * size // bins)
        matrix[i, start:stop] = 1.0 / (stop - start)
    return matrix


def upsampling_matrix(size: int, to: int) -> NDArray:
    """float32 [to, size]: bilinear, align_corners=False, as torch computes it in float32."""
    source = (np.arange(to, dtype=np.float32) + np.float32(0.5)) * np.float32(size / to) - np.float32(0.5)
    source = np.clip(source, 0, size - 1)
    return np.maximum(0, 1 - np.abs(source[:, None] - np.arange(size, dtype=np.float32))).astype(np.float32)


def shifted_upsampling(size: int, to: int) -> NDArray:
    """float32 [to, 3, size]: upsampling followed by the shifts -1, 0, 1 of a zero-padded 3-tap convolution."""
    padded = np.pad(upsampling_matrix(size, to), ((1, 1), (0, 0)))
    return np.stack([padded[shift : shift + to] for shift in range(3)], axis=1)


def phase_weights(factor: int) -> NDArray:
    """float32 [3, factor]: weight of the neighbours at -1, 0, 1 in each of the output phases of a bilinear ×factor."""
    offsets = (np.arange(factor) + 0.5) / factor - 0.5
    return np.maximum(0, 1 - np.abs(offsets - np.arange(-1, 2)[:, None])).astype(np.float32)


def upsample_phases(w: GraphWriter, x: Tensor, factor: int, shape: MapShape) -> Tensor:
    """Bilinear ×factor as a sum of nine shifted slices, which compiles into the kernel of what uses it.

    x: [B, h, w, C], channels last, of the given shape -> [B, h, factor, w, factor, C].
    """
    height, width = shape.size
    x = w.pad(x, (0, 1, 1, 0), (0, 1, 1, 0), mode="edge", name="edge")
    phases = phase_weights(factor)
    total: Tensor | None = None
    for dy in range(3):
        for dx in range(3):
            part = w.slice(x, [dy, dx], [height + dy, width + dx], [1, 2], f"shift.{dy}{dx}")
            part = w.reshape(part, [shape.batch, height, 1, width, 1, shape.channels])  # [B, h, 1, w, 1, C]
            weight = (phases[dy][:, None] * phases[dx][None, :]).reshape(1, 1, factor, 1, factor, 1)
            part = w.op("Mul", [part, w.const(weight)], f"weighted.{dy}{dx}")
            total = part if total is None else w.add(total, part)
    return total


def pyramid_matrices(w: GraphWriter, size: Size, scales: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Pooling [Σs², H·W] and upsampling [H·W, Σs²] matrices of a pyramid over an H × W map."""
    height, width = size
    if known(height, width):
        tall, wide = ints(height, width)
        pool = [np.kron(pooling_matrix(tall, s), pooling_matrix(wide, s)) for s in scales]
        up = [np.kron(upsampling_matrix(s, tall), upsampling_matrix(s, wide)) for s in scales]
        return w.const(np.concatenate(pool), "pool"), w.const(np.concatenate(up, axis=1), "unpool")
    pools, ups = [], []
    for s in scales:
        rows, columns = (_pooling_node(w, side, s) for side in size)
        pools.append(_kron(w, rows, columns, [s * s, height * width]))
        rows, columns = (_upsampling_node(w, side, s) for side in size)
        ups.append(_kron(w, rows, columns, [height * width, s * s]))
    return w.concat(pools, 0, "pool"), w.concat(ups, 1, "unpool")


def _kron(w: GraphWriter, rows: Tensor, columns: Tensor, shape: list[Dim]) -> Tensor:
    """The Kronecker product of two matrices, in the given shape."""
    rows = w.op("Unsqueeze", [rows, w.const(np.array([1, 3], np.int64))])
    columns = w.op("Unsqueeze", [columns, w.const(np.array([0, 2], np.int64))])
    return w.reshape(w.op("Mul", [rows, columns]), shape)  # [a, 1, c, 1] · [1, b, 1, d] -> [a · b, c · d]


def _positions(w: GraphWriter, side: Dim) -> Tensor:
    """0, 1, .. side-1 as float32 [side]."""
    zero, one = w.const(np.array(0, np.int64)), w.const(np.array(1, np.int64))
    stop = w.op("Squeeze", [w.size([side]), w.const(np.array([0], np.int64))])
    return w.op("Cast", [w.op("Range", [zero, stop, one])], attrs={"to": 1}, dtype=np.float32)


def _as_float(w: GraphWriter, side: Dim) -> Tensor:
    return w.op("Cast", [w.size([side])], attrs={"to": 1}, dtype=np.float32)  # [1]


def _pooling_node(w: GraphWriter, side: Dim, bins: int) -> Tensor:
    """`pooling_matrix` of a size known at run time, [bins, side].

    Bounds are computed in integers, because a rounded quotient may be off.
    """
    size = w.size([side])
    first = w.const(np.arange(bins, dtype=np.int64), "bins")
    start = w.op("Div", [w.op("Mul", [first, size]), w.const(np.array([bins], np.int64))])
    after = w.op("Mul", [w.const(np.arange(1, bins + 1, dtype=np.int64), "bins"), size])
    stop = w.op(
        "Div", [w.op("Add", [after, w.const(np.array([bins - 1], np.int64))]), w.const(np.array([bins], np.int64))]
    )
    axis = w.const(np.array([1], np.int64))
    start = w.op("Cast", [w.op("Unsqueeze", [start, axis])], attrs={"to": 1}, dtype=np.float32)
    stop = w.op("Cast", [w.op("Unsqueeze", [stop, axis])], attrs={"to": 1}, dtype=np.float32)
    position = w.op("Unsqueeze", [_positions(w, side), w.const(np.array([0], np.int64))])  # [1, side]
    inside = w.op(
        "And",
        [w.op("GreaterOrEqual", [position, start], dtype=np.bool_), w.op("Less", [position, stop], dtype=np.bool_)],
    )
    return w.op("Div", [w.op("Cast", [inside], attrs={"to": 1}, dtype=np.float32), w.op("Sub", [stop, start])])


def _upsampling_node(w: GraphWriter, side: Dim, bins: int) -> Tensor:
    """`upsampling_matrix` from `bins` to a size known at run time: [side, bins]."""
    half, one, zero = w.const(np.float32(0.5)), w.const(np.float32(1)), w.const(np.float32(0))
    ratio = w.op("Div", [w.const(np.float32(bins)), _as_float(w, side)])
    source = w.op("Sub", [w.op("Mul", [w.op("Add", [_positions(w, side), half]), ratio]), half])
    source = w.op("Clip", [source, zero, w.const(np.float32(bins - 1))])
    source = w.op("Unsqueeze", [source, w.const(np.array([1], np.int64))])
    distance = w.op("Abs", [w.op("Sub", [source, w.const(np.arange(bins, dtype=np.float32)[None], "bins")])])
    return w.op("Max", [w.op("Sub", [one, distance]), zero])

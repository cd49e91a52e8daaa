"""Images of any size in tiles: overlaps are averaged, and memory does not grow with the image's height.

Like mmsegmentation's sliding windows, with two differences. Logits are summed at the network's own resolution, where
they are a sixteenth of the size, so they are resized after the average and not before it; results differ only where
tiles meet. And a strip of tiles becomes classes as soon as the next strip cannot change it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twins_trt.data.images import UInt8Array
from twins_trt.data.preprocessing import Size
from twins_trt.errors import UsageError
from twins_trt.inference.logits import first_argmax, lerp
from twins_trt.inference.modes import Pixels, PredictLogits, checked_logits

FloatArray = npt.NDArray[np.float32]

_BAND_BYTES = 32 << 20  # of logits at full size, which exist for some rows at a time


@dataclass(frozen=True)
class Tiles:
    """How an image is cut. size: (height, width) of a tile, pixels; None for the graph's size. overlap: pixels that
    neighbours share; None for a third of the tile, as usual in mmsegmentation. Raises UsageError for bad values."""

    size: Size | None = None
    overlap: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 1:
            raise UsageError(f"tiles of {self.size[0]}x{self.size[1]} pixels", "give at least 1x1")
        if self.overlap is not None and self.overlap < 0:
            raise UsageError(f"tiles overlap by {self.overlap} pixels", "give 0 or more")
        if self.size is not None and self.overlap is not None and self.overlap >= min(self.size):
            raise UsageError(
                f"tiles of {self.size[0]}x{self.size[1]} pixels overlap by {self.overlap}", "give less than a side"
            )


def tiled_mask(
    predict: PredictLogits,
    cut: Callable[[slice, slice], Pixels],
    size: Size,
    *,
    tile: Size,
    overlap: int | None = None,
    batch: int = 1,
) -> UInt8Array:
    """The classes of an image of (height, width) `size`: uint8 [height, width].

    predict: pixels [n, 3, h, w] of n tiles of size (h, w), n up to `batch` -> logits [n, C, h', w'].
    cut(rows, columns): the pixels [1, 3, h, w] of a tile. A tile may extend beyond the image at the right and at the
    bottom, and `cut` pads it there.
    tile, overlap: see `Tiles`.
    Memory: logits of a row of tiles at the network's resolution, and 32 MiB of logits at full size. Raises EngineError
    if `predict` gives no logits.
    """
    corner = cut(slice(0, tile[0]), slice(0, tile[1]))
    scale = _scale(tile, checked_logits(predict, corner).shape[2:])
    grid = (-(-max(size[0], tile[0]) // scale[0]), -(-max(size[1], tile[1]) // scale[1]))  # in logits
    rows, columns = (
        _starts(grid[axis], tile[axis] // scale[axis], _step(tile[axis], overlap, scale[axis])) for axis in (0, 1)
    )
    height, width = tile[0] // scale[0], tile[1] // scale[1]
    mask: UInt8Array = np.empty(size, np.uint8)
    writer: _Writer | None = None
    strip = count = np.zeros((0, 0), np.float32)
    for index, top in enumerate(rows):
        for lefts in _groups(columns, batch):
            span = slice(top * scale[0], top * scale[0] + tile[0])
            tiles = [cut(span, slice(left * scale[1], left * scale[1] + tile[1])) for left in lefts]
            logits = _at_scale(checked_logits(predict, np.concatenate(tiles)), (height, width))
            if writer is None:
                classes = logits.shape[1]
                writer = _Writer(mask, scale, classes)
                strip = np.zeros((classes, height, grid[1]), np.float32)
                count = np.zeros((height, grid[1]), np.float32)
            for left, one in zip(lefts, logits, strict=True):
                strip[:, :, left : left + width] += one
                count[:, left : left + width] += 1
        assert writer is not None  # there is at least one tile
        done = (rows[index + 1] if index + 1 < len(rows) else grid[0]) - top
        writer.add(strip[:, :done] / count[:done])
        for array in (strip, count):
            array[..., : height - done, :] = array[..., done:, :]
            array[..., height - done :, :] = 0
    return mask


class _Writer:
    """Turns rows of logits into classes at full size as they come. Keeps the rows that the next rows still need."""

    def __init__(self, mask: UInt8Array, scale: Size, classes: int) -> None:
        self._mask, self._scale = mask, scale
        # Without the padding beyond the image, which would be visible at its edge.
        self._grid = (-(-mask.shape[0] // scale[0]), -(-mask.shape[1] // scale[1]))
        self._rows = np.zeros((classes, 0, self._grid[1]), np.float32)
        self._first = self._next = 0
        self._band = max(1, _BAND_BYTES // (4 * classes * mask.shape[1]))

    def add(self, rows: FloatArray) -> None:
        left = self._grid[0] - self._first - self._rows.shape[1]
        self._rows = np.concatenate([self._rows, rows[:, :left, : self._grid[1]]], axis=1)
        end = self._first + self._rows.shape[1]
        (height, width), full = self._mask.shape, self._grid[0] * self._scale[0]
        # A row at full size lies between two rows of logits. It is ready if it lies above the centre of the last one.
        ready = height if end == self._grid[0] else min(height, int(np.ceil((end - 0.5) * self._scale[0] - 0.5)))
        for top in range(self._next, ready, self._band):
            part = slice(top, min(top + self._band, ready))
            tall = lerp(self._rows, full, axis=1, part=part, first=self._first, extent=self._grid[0])
            wide = lerp(tall, self._grid[1] * self._scale[1], axis=2)
            self._mask[part] = first_argmax(wide[:, :, :width])
        self._next = ready
        kept = max(self._first, end - 1)
        self._rows, self._first = self._rows[:, kept - self._first :], kept


def _scale(tile: Size, logits: tuple[int, ...]) -> Size:
    """Pixels of the image per logit. If that is not a whole number it is 1, and logits are resized to the tile."""
    whole = tile[0] % logits[0] == 0 and tile[1] % logits[1] == 0
    return (tile[0] // logits[0], tile[1] // logits[1]) if whole else (1, 1)


def _at_scale(logits: FloatArray, size: Size) -> FloatArray:
    return lerp(lerp(np.asarray(logits, np.float32), size[1], axis=3), size[0], axis=2)


def _step(tile: int, overlap: int | None, scale: int) -> int:
    """The step from one tile to the next, in logits: rounded down, so that neighbours share at least the overlap."""
    return max(1, (tile - (tile // 3 if overlap is None else overlap)) // scale)


def _starts(side: int, tile: int, step: int) -> list[int]:
    """The beginnings of the tiles; the last tile is moved back inside."""
    return [min(index * step, side - tile) for index in range(-(-(side - tile) // step) + 1)]


def _groups(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

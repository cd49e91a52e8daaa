"""Runs an image in parts, through a graph that gives logits: in windows, at several sizes and mirrored, in tiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from twins_trt.data.images import UInt8Array
from twins_trt.data.preprocessing import Size, normalized_planes
from twins_trt.errors import UsageError
from twins_trt.inference.interface import GraphInterface
from twins_trt.inference.logits import resize_logits
from twins_trt.inference.modes import INFERENCE_MODES, InferenceMode, predict_mask
from twins_trt.inference.tiling import Tiles, tiled_mask
from twins_trt.spelling import spelled

Mode: TypeAlias = str | InferenceMode | Tiles
MODES = (*INFERENCE_MODES, "tile")
# Tiles at once if the graph's batch allows it: a GPU gains little from more.
_MAX_TILES = 8
_DEFAULT_TILE = 512  # pixels, if the graph leaves the size open

Array = npt.NDArray[Any]
RunBatch = Callable[[Array], Array]  # a batch as the graph takes it -> logits [N, classes, h, w]


def resolve_mode(mode: Mode) -> InferenceMode | Tiles | None:
    """The mode with a name; `whole` is None. Raises UsageError for an unknown name."""
    if isinstance(mode, str):
        if mode not in MODES:
            raise UsageError(f"there is no mode {mode!r}", f"use {', '.join(MODES)}")
        mode = Tiles() if mode == "tile" else INFERENCE_MODES[mode]
    whole = isinstance(mode, InferenceMode) and mode.crop is None and not mode.augmented
    return None if whole else mode


class ModeRunner:
    """Runs images in a mode through the graph of an interface.

    Raises UsageError if the graph gives no logits or cannot take the mode's sizes.
    """

    def __init__(self, mode: InferenceMode | Tiles, interface: GraphInterface) -> None:
        if interface.output("logits") is None:
            raise UsageError(
                "only a bundle that gives logits can be run in parts", f"build it with {spelled('outputs', 'logits')}"
            )
        self._mode, self._interface = mode, interface
        if isinstance(mode, Tiles):
            self._tile = self._tile_size(mode)
        elif interface.size is not None and mode.augmented and mode.crop is None:
            raise UsageError(
                f"{mode.name} runs an image at several sizes, this graph takes {interface.image}",
                f"build it for a range: {spelled('size', 'MIN:OPT:MAXxMIN:OPT:MAX')}",
            )

    def __call__(self, image: UInt8Array, run: RunBatch) -> UInt8Array:
        """The classes uint8 [H, W] of an image uint8 [H, W, 3] RGB. Raises UsageError for a size that does not fit."""
        predict = partial(self._predict, run)
        normalized = self._interface.layout == "NCHW"
        if isinstance(self._mode, InferenceMode):
            return predict_mask(
                predict,
                image,
                preprocessing=self._interface.preprocessing,
                mode=self._mode,
                normalized=normalized,
                threshold=self._interface.threshold,
            )
        largest = self._interface.batch_limits[1] or _MAX_TILES
        return tiled_mask(
            predict,
            lambda rows, columns: self._cut(image, rows, columns),
            (image.shape[0], image.shape[1]),
            tile=self._tile,
            overlap=self._mode.overlap,
            batch=min(largest, _MAX_TILES),
        )

    def _tile_size(self, tiles: Tiles) -> Size:
        limits = self._interface.size_limits
        if tiles.size is None:
            height, width = (max(low, min(_DEFAULT_TILE, high or _DEFAULT_TILE)) for low, high in limits)
            tiles = Tiles((height, width), tiles.overlap)  # checks the overlap against it
        assert tiles.size is not None
        for side, (low, high) in zip(tiles.size, limits, strict=True):
            if side < low or (high is not None and side > high):
                raise UsageError(
                    f"tiles of {tiles.size[0]}x{tiles.size[1]} pixels do not fit {self._interface.image}",
                    f"leave {spelled('tile')} out, or build for them: {spelled('size', 'HxW')}",
                )
        return tiles.size

    def _cut(self, image: UInt8Array, rows: slice, columns: slice) -> Array:
        """The pixels of a tile, [1, 3, h, w]; the part outside the image has the mean colour."""
        part = image[rows, columns]
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if part.shape[:2] != (height, width):
            padded = np.empty((height, width, 3), np.uint8)
            padded[:] = self._interface.preprocessing.mean_colour
            padded[: part.shape[0], : part.shape[1]] = part
            part = padded
        if self._interface.layout == "NCHW":
            return normalized_planes(part, self._interface.preprocessing)[None]
        return part.transpose(2, 0, 1)[None]

    def _predict(self, run: RunBatch, pixels: Array) -> Array:
        """Logits of [n, 3, h, w], normalized if the graph takes planes. Pixels that are too few for it are padded."""
        height, width = pixels.shape[2:]
        canvas = self._canvas((height, width))
        missing = self._interface.batch_limits[0] - len(pixels)
        batch = pixels if missing <= 0 else np.concatenate([pixels, *[pixels[-1:]] * missing])
        if canvas != (height, width):
            filled = np.zeros((*batch.shape[:2], *canvas), batch.dtype)
            if batch.dtype == np.uint8:
                filled[:] = self._interface.preprocessing.mean_colour[:, None, None]
            filled[:, :, :height, :width] = batch
            batch = filled
        if self._interface.layout == "NHWC":
            batch = batch.transpose(0, 2, 3, 1)
        batch = np.ascontiguousarray(batch, self._interface.image.dtype)
        logits = run(batch)[: len(pixels)]
        if canvas == (height, width):
            return logits
        cropped: Array = resize_logits(logits, canvas)[:, :, :height, :width]
        return cropped

    def _canvas(self, size: Size) -> Size:
        limits = self._interface.size_limits
        for side, (_, high) in zip(size, limits, strict=True):
            if high is not None and side > high:
                raise UsageError(
                    f"the mode runs {size[0]}x{size[1]} pixels at once, {self._interface.image} takes less",
                    f"use {spelled('mode', 'tile')}, or build with a larger {spelled('size')}",
                )
        return max(size[0], limits[0][0]), max(size[1], limits[1][0])

"""Fits an image of any size into a graph of fixed or limited size, and brings its mask back to the image's size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from twins_trt.data.images import UInt8Array
from twins_trt.data.preprocessing import Size, input_size, normalized_planes, scale_size
from twins_trt.data.resizing import FloatArray, resize_image, resize_mask, resize_plane
from twins_trt.errors import EngineError, UsageError
from twins_trt.inference.interface import GraphInterface
from twins_trt.inference.logits import sigmoid
from twins_trt.spelling import spelled

FitMode = Literal["stretch", "letterbox"]
Limits = tuple[int, int | None]


def fit_mode(name: str) -> FitMode:
    """The fit called `name`. Raises UsageError for another name."""
    if name == "stretch":
        return "stretch"
    if name == "letterbox":
        return "letterbox"
    raise UsageError(f"there is no fit {name!r}", "use stretch or letterbox")


@dataclass(frozen=True)
class Fit:
    """Three sizes, all (height, width). original: of the image. inner: of the resized image. canvas: of the graph's
    input, which is padded on the right and at the bottom with the mean colour."""

    original: Size
    inner: Size
    canvas: Size


def fit_size(size: Size, interface: GraphInterface, mode: FitMode) -> Fit:
    """How an image of (height, width) `size` is fitted into the graph of `interface`.

    For a graph of fixed size the image is stretched to that size. With `letterbox` it is made as large as fits at its
    own ratio, and padded. For a graph of dynamic size the image is resized as in mmsegmentation's test pipeline: to the
    test scale (or at its own size without one), then into the limits of the profile. The ratio is kept if the limits
    allow it.
    """
    if interface.size is not None:
        canvas = interface.size
        return Fit(size, canvas if mode == "stretch" else scale_size(size, _largest_factor(size, canvas)), canvas)
    height, width = interface.size_limits
    canvas = _limited(input_size(size, interface.preprocessing), height, width)
    return Fit(size, canvas, canvas)


def place(image: UInt8Array, fit: Fit, interface: GraphInterface) -> npt.NDArray[np.uint8] | npt.NDArray[np.floating]:
    """The graph's input for an image, without the batch axis: uint8 [h, w, 3], or float [3, h, w] normalized.

    A uint8 image that already has the graph's size is returned itself, not copied.
    """
    pixels = resize_image(image, fit.inner)
    if fit.canvas != fit.inner:
        canvas = np.empty((*fit.canvas, 3), np.uint8)
        canvas[:] = interface.preprocessing.mean_colour
        canvas[: fit.inner[0], : fit.inner[1]] = pixels
        pixels = canvas
    if interface.layout == "NHWC":
        return pixels
    return normalized_planes(pixels, interface.preprocessing).astype(interface.image.dtype, copy=False)


def unfit_mask(mask: UInt8Array, fit: Fit) -> UInt8Array:
    """The mask of the canvas, uint8 [h, w], at the image's own size: without padding, then nearest neighbour.

    Raises EngineError if the mask does not have the canvas's size.
    """
    if mask.shape != fit.canvas:
        raise EngineError(f"the engine gave a mask of {list(mask.shape)} for an image of {list(fit.canvas)}")
    return resize_mask(mask[: fit.inner[0], : fit.inner[1]], fit.original)


def unfit_plane(plane: FloatArray, fit: Fit) -> FloatArray:
    """A value for every pixel of the canvas, float32 [h, w], at the image's own size: without padding, then bilinear.

    Raises EngineError if the plane does not have the canvas's size.
    """
    if plane.shape != fit.canvas:
        raise EngineError(f"the engine gave a plane of {list(plane.shape)} for an image of {list(fit.canvas)}")
    return resize_plane(plane[: fit.inner[0], : fit.inner[1]], fit.original)


def logits_to_mask(logits: npt.NDArray[np.floating], fit: Fit) -> UInt8Array:
    """The mask, uint8 at the image's own size, of the canvas's logits at any scale, float [classes, h, w].

    As in mmsegmentation: bilinear to the canvas, padding cut off, bilinear to the image's size, then argmax with the
    first of equal classes. It works on one class at a time, so that 150 classes at full size are never in memory.
    Raises EngineError if a pixel has no finite logit.
    """
    best = np.full(fit.original, -np.inf, np.float32)
    mask = np.zeros(fit.original, np.uint8)
    for index, plane in enumerate(_planes(logits, fit)):
        better = plane > best
        np.copyto(best, plane, where=better)
        mask[better] = index
    if not np.isfinite(best).all():
        raise EngineError(
            f"{np.count_nonzero(~np.isfinite(best))} of {best.size} pixels have no finite logit",
            f"the precision overflows: build with {spelled('precision', 'fp32')}",
        )
    return mask


def logits_to_probability(logits: npt.NDArray[np.floating], fit: Fit) -> FloatArray:
    """The foreground's probability, float32 at the image's own size, of a canvas's logits, float [2, h, w].

    The logit is resized as in `logits_to_mask`; its sigmoid comes last, as in mmsegmentation.
    """
    (plane,) = _planes(logits[1:], fit)
    probability: FloatArray = sigmoid(plane)
    return probability


def _planes(logits: npt.NDArray[np.floating], fit: Fit) -> Iterable[FloatArray]:
    for plane in logits:
        full = resize_plane(plane.astype(np.float32, copy=False), fit.canvas)
        yield resize_plane(full[: fit.inner[0], : fit.inner[1]], fit.original)


def _limited(size: Size, height: Limits, width: Limits) -> Size:
    for dim in (0, 1):  # shrink first: the engine refuses a size that is too large
        largest = (height, width)[dim][1]
        if largest is not None and size[dim] > largest:
            size = scale_size(size, largest / size[dim])
    smallest = max(height[0] / size[0], width[0] / size[1])
    if smallest > 1:
        size = scale_size(size, smallest)
    clipped = [
        max(low, n if high is None else min(n, high)) for n, (low, high) in zip(size, (height, width), strict=True)
    ]
    return clipped[0], clipped[1]


def _largest_factor(size: Size, canvas: Size) -> float:
    return min(canvas[0] / size[0], canvas[1] / size[1])

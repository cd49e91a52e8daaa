"""mmsegmentation's training pipeline: random resize, crop, flip and photometric distortion, as pure functions.

Follows mmseg 1.2.2's `RandomResize` (mmcv), `RandomCrop`, `RandomFlip` and `PhotoMetricDistortion` with their default
numbers. Labels are resized by the nearest pixel centre, where OpenCV's `INTER_NEAREST` takes the pixel left of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from twins_trt.data.images import IGNORE_INDEX, UInt8Array
from twins_trt.data.preprocessing import Size, fitted_size
from twins_trt.data.resizing import resize_image, resize_mask
from twins_trt.errors import missing

BRIGHTNESS = 32.0  # grey levels, up or down
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18  # of OpenCV's 180
CROP_TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """The random changes of a picture and its labels.

    crop: (height, width) of the largest cut, pixels. scale: (long, short) side to fit into before the random
    ratio; None for the picture's own size. ratios: smallest and largest factor. cat_max_ratio: a crop with a larger
    share of one class is drawn again, up to ten times. flip: probability. distort: photometric distortion.
    """

    crop: Size
    scale: tuple[int, int] | None
    ratios: tuple[float, float]
    cat_max_ratio: float
    flip: float
    distort: bool

    def __call__(self, image: UInt8Array, label: UInt8Array, rng: np.random.Generator) -> tuple[UInt8Array, UInt8Array]:
        """image: uint8 [H, W, 3], RGB, label: uint8 [H, W] -> the same, at most as large as the crop.

        Raises MissingDependencyError without OpenCV.
        """
        size = random_size((image.shape[0], image.shape[1]), self.scale, self.ratios, rng)
        image, label = resize_image(image, size), resize_mask(label, size)
        top, left = crop_place(label, self.crop, self.cat_max_ratio, rng)
        rows, columns = slice(top, top + self.crop[0]), slice(left, left + self.crop[1])
        image, label = image[rows, columns], label[rows, columns]
        if rng.random() < self.flip:
            image, label = image[:, ::-1], label[:, ::-1]
        if self.distort:
            image = distort_colours(image, rng)
        return np.ascontiguousarray(image), np.ascontiguousarray(label)


def random_size(
    size: Size, scale: tuple[int, int] | None, ratios: tuple[float, float], rng: np.random.Generator
) -> Size:
    """(height, width) of a picture of `size` after fitting it into `scale` times a random ratio."""
    long, short = (max(size), min(size)) if scale is None else scale
    ratio = rng.uniform(*ratios)
    return fitted_size(size, (max(1, int(long * ratio)), max(1, int(short * ratio))))


def crop_place(label: UInt8Array, crop: Size, cat_max_ratio: float, rng: np.random.Generator) -> tuple[int, int]:
    """(top, left) of a crop in which every class has less than `cat_max_ratio` of the labelled pixels.

    Where ten draws find none, the next one is taken as it is.
    """

    def draw() -> tuple[int, int]:
        top, left = (int(rng.integers(max(side - cut, 0) + 1)) for side, cut in zip(label.shape, crop, strict=True))
        return top, left

    place = draw()
    if cat_max_ratio >= 1:
        return place
    for _ in range(CROP_TRIES):
        part = label[place[0] : place[0] + crop[0], place[1] : place[1] + crop[1]]
        counts = np.bincount(part.ravel(), minlength=256)
        counts[IGNORE_INDEX] = 0
        if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio:
            break
        place = draw()
    return place


def distort_colours(image: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Brightness, contrast, saturation and hue, each with probability one half; contrast first or last.

    image: uint8 [H, W, 3], RGB. Raises MissingDependencyError without OpenCV.
    """
    image = _maybe(lambda x: _linear(x, 1.0, rng.uniform(-BRIGHTNESS, BRIGHTNESS)), image, rng)
    contrast_first = bool(rng.integers(2))
    if contrast_first:
        image = _maybe(lambda x: _linear(x, rng.uniform(*CONTRAST), 0.0), image, rng)
    image = _maybe(lambda x: _change_saturation(x, rng.uniform(*SATURATION)), image, rng)
    image = _maybe(lambda x: _change_hue(x, int(rng.integers(-HUE, HUE))), image, rng)
    if not contrast_first:
        image = _maybe(lambda x: _linear(x, rng.uniform(*CONTRAST), 0.0), image, rng)
    return image


def _maybe(change: Callable[[UInt8Array], UInt8Array], image: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    return change(image) if rng.integers(2) else image


def _linear(values: UInt8Array, factor: float, offset: float) -> UInt8Array:
    # Truncated to whole grey levels, not rounded, as in mmseg.
    return np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


def _change_saturation(image: UInt8Array, factor: float) -> UInt8Array:
    cv2 = _cv2()
    hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV)
    hsv[:, :, 1] = _linear(hsv[:, :, 1], factor, 0.0)
    changed: UInt8Array = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return changed


def _change_hue(image: UInt8Array, shift: int) -> UInt8Array:
    cv2 = _cv2()
    hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV)
    hsv[:, :, 0] = (hsv[:, :, 0].astype(np.int64) + shift) % 180
    changed: UInt8Array = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return changed


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise missing("opencv-python-headless", extra="build", purpose="photometric distortion") from error
    return cv2

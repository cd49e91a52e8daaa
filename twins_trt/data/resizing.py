"""Resizing, with pixel centres at half coordinates (align_corners=False) and no smoothing, as the models were trained.

OpenCV resizes where it is installed, Pillow elsewhere. On float planes they agree to 1e-6. On uint8 images OpenCV's
fixed-point weights (and its area average at exactly half size) put some pixels a grey level off or more, which no other
library reproduces. Pillow's own `resize` is not used: it smooths when it shrinks.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from twins_trt.data.images import UInt8Array
from twins_trt.data.preprocessing import Size
from twins_trt.errors import MissingDependencyError, missing

FloatArray = npt.NDArray[np.float32]


def resize_image(image: UInt8Array, size: Size, *, as_mmseg: bool = False) -> UInt8Array:
    """uint8 [H, W, 3] to uint8 [height, width, 3], bilinear; the image itself where it has that size already.

    as_mmseg: insists on OpenCV, with whose pixels mmsegmentation's scores were measured.
    Raises MissingDependencyError where neither OpenCV nor Pillow is installed, or `as_mmseg` lacks OpenCV.
    """
    if image.shape[:2] == size:
        return image
    cv2 = opencv()
    if cv2 is None and as_mmseg:
        raise missing("opencv-python-headless", extra="build", purpose="resizing as mmsegmentation does")
    if cv2 is not None:
        resized: UInt8Array = cv2.resize(np.ascontiguousarray(image), size[::-1], interpolation=cv2.INTER_LINEAR)
        return resized
    # In float: Pillow's uint8 transform drops the fraction instead of rounding.
    planes = [_resize_with_pillow(image[:, :, c].astype(np.float32), size) for c in range(image.shape[2])]
    return np.rint(np.stack(planes, axis=2)).astype(np.uint8)


def resize_plane(plane: FloatArray, size: Size) -> FloatArray:
    """float32 [h, w] to float32 [height, width], bilinear; the plane itself where it has that size already.

    Raises MissingDependencyError where neither OpenCV nor Pillow is installed.
    """
    if plane.shape == size:
        return plane
    cv2 = opencv()
    if cv2 is not None:
        resized: FloatArray = cv2.resize(np.ascontiguousarray(plane), size[::-1], interpolation=cv2.INTER_LINEAR)
        return resized
    return _resize_with_pillow(plane, size)


def resize_mask(mask: UInt8Array, size: Size) -> UInt8Array:
    """uint8 [h, w] to uint8 [height, width]: each pixel gets the class of the nearest pixel centre."""
    if mask.shape == size:
        return mask
    rows = (2 * np.arange(size[0]) + 1) * mask.shape[0] // (2 * size[0])
    columns = (2 * np.arange(size[1]) + 1) * mask.shape[1] // (2 * size[1])
    return mask[rows[:, None], columns]


def _resize_with_pillow(plane: FloatArray, size: Size) -> FloatArray:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            "resizing needs OpenCV or Pillow, and neither is installed", "pip install pillow"
        ) from error
    height, width = size
    to_source = (plane.shape[1] / width, 0.0, 0.0, 0.0, plane.shape[0] / height, 0.0)
    picture = Image.fromarray(np.ascontiguousarray(plane))
    return np.array(picture.transform((width, height), Image.Transform.AFFINE, to_source, Image.Resampling.BILINEAR))


@cache
def opencv() -> Any:
    """The module cv2, None where it is not installed. Tried once: a failing import takes longer than a resize."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2

"""mmsegmentation's test pipeline for one image: resize to the test scale, normalize, channels first.

Labels are never resized; logits are resized to their size.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from twins_trt.data.images import UInt8Array
from twins_trt.data.preprocessing import Preprocessing, Size, fitted_size, input_size, normalized_planes
from twins_trt.data.resizing import resize_image as resize_image_anyhow
from twins_trt.errors import ImageError


def scaled_size(size: Size, ratio: float) -> Size:
    """(height, width) of an image after mmcv's `Resize(scale_factor=ratio, keep_ratio=True)`.

    mmcv rounds the scaled sides and then fits the image into them, so a side may be one pixel smaller.
    """
    height, width = size
    return fitted_size(size, (int(height * ratio + 0.5), int(width * ratio + 0.5)))


def resize_image(image: UInt8Array, size: Size) -> UInt8Array:
    """uint8 [H, W, 3] to uint8 [height, width, 3], bilinear as in OpenCV. Raises MissingDependencyError without it."""
    return resize_image_anyhow(image, size, as_mmseg=True)


def prepare(image: UInt8Array, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """The network's input for an image: uint8 [H, W, 3], RGB, to float32 [1, 3, h, w]. Raises as `normalize` does."""
    return normalize(resize_image(image, input_size(image_size(image), preprocessing)), preprocessing)


def normalize(image: UInt8Array, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """uint8 [H, W, 3], RGB, to float32 [1, 3, H, W]: `(pixel - mean) / std`. Raises ImageError for another array."""
    image_size(image)
    return normalized_planes(image, preprocessing)[None]


def image_size(image: UInt8Array) -> Size:
    """(height, width) of a uint8 [H, W, 3] image. Raises ImageError for another shape or dtype."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(f"an image must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    return image.shape[0], image.shape[1]

"""mmsegmentation's test pipeline for one image: fit into the test scale, normalise, channels first.

Resizing is OpenCV's `INTER_LINEAR` on uint8, whose fixed-point weights (and whose area average at exactly half size)
no other library reproduces; labels are never resized, the logits are resized to them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from twins_trt.data.images import UInt8Array
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.errors import ImageError, missing

Size = tuple[int, int]


def fitted_size(size: Size, scale: tuple[int, int]) -> Size:
    """The largest (height, width) with the aspect ratio of `size` that fits into `scale`, whose order does not matter.

    mmcv's rule (`mmcv.rescale_size`): the long side must fit max(scale), the short one min(scale), each side rounded
    half up. Upscales as well. At least one pixel a side, where mmcv would fail.
    """
    height, width = size
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def scaled_size(size: Size, ratio: float) -> Size:
    """(height, width) of an image resized by `ratio`, as mmcv's `Resize(scale_factor=ratio, keep_ratio=True)` does it.

    mmcv rounds the scaled sides and then fits the image into them, so a side may come out one pixel smaller.
    """
    height, width = size
    return fitted_size(size, (int(height * ratio + 0.5), int(width * ratio + 0.5)))


def input_size(size: Size, preprocessing: Preprocessing) -> Size:
    """(height, width) at which the network sees an image of (height, width) `size`."""
    if preprocessing.test_scale is None:
        return size
    if preprocessing.keep_ratio:
        return fitted_size(size, preprocessing.test_scale)
    width, height = preprocessing.test_scale
    return height, width


def resize_image(image: UInt8Array, size: Size) -> UInt8Array:
    """uint8 [H, W, 3] to uint8 [height, width, 3], bilinear as OpenCV computes it. Raises if OpenCV is absent."""
    if image.shape[:2] == size:
        return image
    cv2 = _cv2()
    resized: UInt8Array = cv2.resize(np.ascontiguousarray(image), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return resized


def prepare(image: UInt8Array, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """What the network sees of an image: uint8 [H, W, 3], RGB, to float32 [1, 3, h, w]. Raises as `normalise` does."""
    return normalise(resize_image(image, input_size(image_size(image), preprocessing)), preprocessing)


def normalise(image: UInt8Array, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """uint8 [H, W, 3], RGB, to float32 [1, 3, H, W]: `(pixel - mean) / std` with every step in float32.

    Bit for bit what mmseg's SegDataPreProcessor computes. Raises ImageError for another shape or dtype.
    """
    image_size(image)
    mean = np.asarray(preprocessing.mean, np.float32)[:, None, None]
    std = np.asarray(preprocessing.std, np.float32)[:, None, None]
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)  # [3, H, W]
    planes -= mean
    planes /= std
    return planes[None]


def image_size(image: UInt8Array) -> Size:
    """(height, width) of a uint8 [H, W, 3] image. Raises ImageError for another shape or dtype."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(f"an image must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    return image.shape[0], image.shape[1]


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise missing("opencv-python-headless", extra="build", purpose="resizing as mmsegmentation does") from error
    return cv2

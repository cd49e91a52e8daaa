"""What is done to an image before the network sees it: a record that is kept in bundles, and its arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from twins_trt.errors import UsageError

Size = tuple[int, int]
"""(height, width), pixels."""
Triple = tuple[float, float, float]
"""A number per channel."""


@dataclass(frozen=True)
class Preprocessing:
    """Resizing and normalization. The defaults are those with which mmsegmentation trained and scored Twins.

    Images are RGB everywhere in this package. channels: the order in which the network sees them, `rgb` or `bgr`.
    mean, std: per channel in that order, in grey levels of 0-255; the network sees `(pixel - mean) / std` in float32.
    test_scale: (long side, short side) in pixels that the image is fitted into before inference; None keeps its size.
    keep_ratio: True makes the image as large as fits; False makes it exactly `test_scale`, as (width, height).
    """

    mean: Triple = (123.675, 116.28, 103.53)
    std: Triple = (58.395, 57.12, 57.375)
    test_scale: tuple[int, int] | None = None
    keep_ratio: bool = True
    channels: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        if self.channels not in ("rgb", "bgr"):
            raise UsageError(f"the order of channels {self.channels!r} is unknown", "use rgb or bgr")
        if len(self.mean) != 3 or len(self.std) != 3 or any(s <= 0 for s in self.std):
            raise UsageError(f"mean {self.mean} and std {self.std} must be three numbers each, std positive")
        if self.test_scale is not None and (len(self.test_scale) != 2 or any(s < 1 for s in self.test_scale)):
            raise UsageError(f"test_scale {self.test_scale} must be two positive sizes, or None")
        if self.test_scale is None and not self.keep_ratio:
            raise UsageError("keep_ratio=False needs a test_scale to resize to", "give test_scale=(width, height)")

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        values = asdict(self)
        if self.channels == "rgb":
            del values["channels"]  # as earlier versions wrote it, and read it
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def statistics(self) -> tuple[Triple, Triple]:
        """Mean and std of red, green and blue, in this order whatever `channels` is."""
        (a, b, c), (d, e, f) = self.mean, self.std
        return ((a, b, c), (d, e, f)) if self.channels == "rgb" else ((c, b, a), (f, e, d))

    @property
    def mean_colour(self) -> npt.NDArray[np.uint8]:
        """uint8 [3], RGB: what fills the part of an input that its image does not cover. Normalized it is about 0."""
        colour: npt.NDArray[np.uint8] = np.rint(np.clip(self.statistics[0], 0, 255)).astype(np.uint8)
        return colour

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_json`. Raises UsageError on a field this version does not know or cannot read."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UsageError(f"preprocessing has unknown fields {unknown}; this version knows {sorted(known)}")
        try:
            plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**plain)
        except TypeError as error:
            raise UsageError(f"preprocessing {dict(values)} cannot be read: {error}") from error


# mmsegmentation's test pipeline for ADE20K, with which the published mIoU of the twelve models was measured.
ADE20K_TEST = Preprocessing(test_scale=(2048, 512))


def scale_size(size: Size, factor: float) -> Size:
    """Each side times `factor`, rounded half up as mmcv does, but at least one pixel, where mmcv would fail."""
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def fitted_size(size: Size, scale: tuple[int, int]) -> Size:
    """The largest (height, width) with the aspect ratio of `size` that fits into `scale`, whose order does not matter.

    mmcv's rule (`mmcv.rescale_size`): the long side must fit max(scale), the short one min(scale). Upscales as well.
    """
    return scale_size(size, min(max(scale) / max(size), min(scale) / min(size)))


def input_size(size: Size, preprocessing: Preprocessing) -> Size:
    """The (height, width) at which a network of any size gets an image of (height, width) `size`."""
    if preprocessing.test_scale is None:
        return size
    if preprocessing.keep_ratio:
        return fitted_size(size, preprocessing.test_scale)
    width, height = preprocessing.test_scale
    return height, width


def normalized_planes(image: npt.NDArray[np.uint8], preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """uint8 [H, W, 3], RGB, to float32 [3, H, W] in the network's order: `(pixel - mean) / std`, all in float32.

    Bit for bit what mmseg's SegDataPreProcessor computes.
    """
    image = image if preprocessing.channels == "rgb" else image[:, :, ::-1]
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    planes -= np.asarray(preprocessing.mean, np.float32)[:, None, None]
    planes /= np.asarray(preprocessing.std, np.float32)[:, None, None]
    return planes

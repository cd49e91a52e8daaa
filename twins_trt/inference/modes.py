"""Whole, sliding-window and multi-scale + flip inference as mmsegmentation defines them, with any network.

The network is a callable from float32 [N, 3, H, W], normalized, to logits [N, C, h, w] of any size, a NumPy array or a
torch tensor. It can be a PyTorch model, an ONNX Runtime session or an engine that gives logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from twins_trt.data.images import UInt8Array
from twins_trt.data.preprocessing import Preprocessing, Size, input_size
from twins_trt.errors import EngineError, UsageError
from twins_trt.inference.interface import MAX_CLASSES
from twins_trt.inference.logits import (
    Logits,
    class_probabilities,
    divide,
    flip_width,
    holds_nan,
    resize_logits,
    resized_argmax,
    zeros_of_size,
)
from twins_trt.inference.pipeline import image_size, normalize, resize_image, scaled_size
from twins_trt.spelling import spelled

Pixels = npt.NDArray[np.float32]
PredictLogits = Callable[[Pixels], Logits]

MMSEG_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclass(frozen=True)
class InferenceMode:
    """How an image's logits are computed. `inference_mode(name)` gives the usual modes.

    crop, stride: sides and steps of sliding windows, (height, width) in pixels of the resized image, or one number for
    both; None for the whole image.
    ratios: sizes to average over. flip: average over the mirrored image too. With one ratio of 1 and no flip the logits
    are compared directly; otherwise the softmax of every variant is averaged.
    """

    name: str = "whole"
    crop: int | tuple[int, int] | None = None
    stride: int | tuple[int, int] | None = None
    ratios: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if (self.crop is None) != (self.stride is None):
            raise UsageError(f"crop={self.crop} and stride={self.stride} go together", "give both, or neither")
        sides = zip(_both(self.crop), _both(self.stride), strict=True) if self.crop and self.stride else ()
        if self.crop is not None and not (sides and all(0 < stride <= crop for crop, stride in sides)):
            raise UsageError(f"stride {self.stride} must be between 1 and the crop, {self.crop}")
        if not self.ratios or any(ratio <= 0 for ratio in self.ratios):
            raise UsageError(f"ratios {self.ratios} must be positive numbers, at least one")

    @property
    def windows(self) -> tuple[Size, Size] | None:
        """Size and step of sliding windows, each (height, width) in pixels; None for the whole image."""
        return None if self.crop is None or self.stride is None else (_both(self.crop), _both(self.stride))

    @property
    def augmented(self) -> bool:
        """Whether several variants of an image are averaged."""
        return self.flip or self.ratios != (1.0,)

    def to_json(self) -> dict[str, Any]:
        plain = {**asdict(self), "ratios": list(self.ratios)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> InferenceMode:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


def _both(sides: int | tuple[int, int]) -> Size:
    return (sides, sides) if isinstance(sides, int) else sides


INFERENCE_MODES = {
    mode.name: mode
    for mode in (
        InferenceMode("whole"),
        InferenceMode("slide", crop=512, stride=341),
        InferenceMode("ms_flip", ratios=MMSEG_RATIOS, flip=True),
        InferenceMode("slide_ms_flip", crop=512, stride=341, ratios=MMSEG_RATIOS, flip=True),
    )
}


def inference_mode(mode: str | InferenceMode) -> InferenceMode:
    """The mode with a name, or `mode` itself if it is an `InferenceMode`. Raises UsageError for another name.

    The names are `whole`, `slide` (512 by 512, stride 341), `ms_flip` (mmseg's six ratios and flip) and
    `slide_ms_flip`.
    """
    if isinstance(mode, InferenceMode):
        return mode
    if mode not in INFERENCE_MODES:
        raise UsageError(f"{mode!r} is not an inference mode", f"one of {', '.join(INFERENCE_MODES)}")
    return INFERENCE_MODES[mode]


def predict_mask(
    predict: PredictLogits,
    image: UInt8Array,
    *,
    preprocessing: Preprocessing | None = None,
    mode: str | InferenceMode = "whole",
    normalized: bool = True,
    threshold: float | None = None,
) -> UInt8Array:
    """Segments one image at its own size.

    predict: float32 [1, 3, h, w] -> logits [1, C, h', w']. image: uint8 [H, W, 3], RGB. Returns uint8 [H, W].
    normalized: False for a network that normalizes inside; it gets the pixels themselves, uint8 [1, 3, h, w].
    threshold: of a head with one logit, which is channel 1 of two (`Segmentor.class_logits`); None for softmax.

    Logits are resized to the network's input and then to the image, in two steps as in mmseg (`predict_by_feat` and
    `postprocess_result`), because a single step gives slightly different edges. Raises ImageError for another kind of
    image, EngineError if `predict` does not return logits, or returns NaN.
    """
    preprocessing = preprocessing or Preprocessing()
    mode = inference_mode(mode)
    size = image_size(image)

    def pixels_at(wanted: Size) -> Any:
        resized = resize_image(image, wanted)
        return normalize(resized, preprocessing) if normalized else resized.transpose(2, 0, 1)[None]

    if not mode.augmented:
        pixels = pixels_at(input_size(size, preprocessing))
        # At the image's own size mmseg's second resize does nothing, so the first one can work band by band.
        one_step = mode.crop is None and pixels.shape[2:] == size
        return resized_argmax(checked_logits(predict, pixels) if one_step else _logits(predict, pixels, mode), size)

    total: Logits = None
    sizes = variant_sizes(size, preprocessing, mode)
    for variant in sizes:
        pixels = pixels_at(variant)
        for flipped in (False, True) if mode.flip else (False,):
            logits = _logits(predict, flip_width(pixels) if flipped else pixels, mode)
            logits = flip_width(logits) if flipped else logits
            probabilities = class_probabilities(resize_logits(logits, size), threshold=threshold)
            total = probabilities if total is None else total + probabilities
    # Dividing the sum would not change the argmax.
    return resized_argmax(total, size)


def variant_sizes(size: Size, preprocessing: Preprocessing, mode: InferenceMode) -> tuple[Size, ...]:
    """(height, width) of the network's input for every ratio of the mode.

    With a test scale the ratios scale that (mmseg 0.x, which the published ms+flip figures were measured with);
    without one they scale the image (mmseg 1.x's `tta_pipeline`).
    """
    scale = preprocessing.test_scale
    if scale is None:
        return tuple(scaled_size(size, ratio) for ratio in mode.ratios)
    scaled = [(max(1, int(scale[0] * ratio)), max(1, int(scale[1] * ratio))) for ratio in mode.ratios]
    return tuple(input_size(size, replace(preprocessing, test_scale=variant)) for variant in scaled)


def sliding_windows(size: Size, crop: int | Size, stride: int | Size) -> Iterator[tuple[slice, slice]]:
    """The (rows, columns) of mmseg's windows over (height, width) `size`.

    crop, stride: (height, width) in pixels, or one number for both. A window that would extend beyond the image is
    moved back inside, so all have the full side unless the image is smaller.
    """
    crop, stride = _both(crop), _both(stride)
    counts = [max(side - c + s - 1, 0) // s + 1 for side, c, s in zip(size, crop, stride, strict=True)]
    for row in range(counts[0]):
        bottom = min(row * stride[0] + crop[0], size[0])
        for column in range(counts[1]):
            right = min(column * stride[1] + crop[1], size[1])
            yield slice(max(bottom - crop[0], 0), bottom), slice(max(right - crop[1], 0), right)


def slide_logits(predict: PredictLogits, pixels: Pixels, *, crop: int | Size, stride: int | Size) -> Logits:
    """Logits [1, C, H, W] of normalized pixels [1, 3, H, W]: windows predicted one by one, overlaps averaged."""
    size: Size = (pixels.shape[2], pixels.shape[3])
    total: Logits = None
    count = np.zeros(size, np.float32)
    for rows, columns in sliding_windows(size, crop, stride):
        logits = whole_logits(predict, np.ascontiguousarray(pixels[:, :, rows, columns]))
        if total is None:
            total = zeros_of_size(logits, size)
        total[:, :, rows, columns] += logits
        count[rows, columns] += 1
    return divide(total, count)


def whole_logits(predict: PredictLogits, pixels: Pixels) -> Logits:
    """Logits [1, C, H, W] of normalized pixels [1, 3, H, W] in one go, at the size of the pixels."""
    return resize_logits(checked_logits(predict, pixels), (pixels.shape[2], pixels.shape[3]))


def _logits(predict: PredictLogits, pixels: Pixels, mode: InferenceMode) -> Logits:
    if mode.windows is None:
        return whole_logits(predict, pixels)
    crop, stride = mode.windows
    return slide_logits(predict, pixels, crop=crop, stride=stride)


def checked_logits(predict: PredictLogits, pixels: Pixels) -> Logits:
    """The network's logits of pixels [N, 3, h, w], at its own size. Raises EngineError if it does not return logits."""
    logits = predict(pixels)
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 4 or shape[0] != pixels.shape[0] or shape[1] > MAX_CLASSES:
        given = type(logits).__name__ if shape is None else list(shape)
        raise EngineError(f"a network must return logits [{pixels.shape[0]}, classes, h, w], this one returned {given}")
    # Every comparison with NaN is false, so NaN would become class 0.
    if holds_nan(logits):
        raise EngineError(
            "the network returned NaN: its precision overflows, or its weights are broken",
            f"build with {spelled('precision', 'fp32')}, or check the checkpoint",
        )
    return logits

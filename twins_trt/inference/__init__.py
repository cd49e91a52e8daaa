"""From a picture to a mask over any network: how it is fitted, run whole, in windows or tiles, and resized back."""

from __future__ import annotations

from twins_trt.data.preprocessing import fitted_size, input_size
from twins_trt.inference.modes import INFERENCE_MODES, InferenceMode, inference_mode, predict_mask
from twins_trt.inference.pipeline import normalize, prepare, resize_image
from twins_trt.inference.tiling import Tiles

__all__ = [
    "INFERENCE_MODES",
    "InferenceMode",
    "Tiles",
    "fitted_size",
    "inference_mode",
    "input_size",
    "normalize",
    "predict_mask",
    "prepare",
    "resize_image",
]

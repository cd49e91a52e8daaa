"""Twins segmentation models as FP16 and INT8 TensorRT engines: build, gate, run, profile.

Names are loaded when first used, so `import twins_trt` pulls in none of torch, onnx, onnxruntime or tensorrt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.errors import TwinsError
from twins_trt.lazy import lazy_names
from twins_trt.version import __version__

if TYPE_CHECKING:
    from twins_trt.models import ModelSpec, build_model, get_spec, list_models
    from twins_trt.runtime import Segmentation, Segmenter

__all__ = [
    "ModelSpec",
    "Segmentation",
    "Segmenter",
    "TwinsError",
    "__version__",
    "build_model",
    "get_spec",
    "list_models",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "twins_trt.models": ["ModelSpec", "build_model", "get_spec", "list_models"],
        "twins_trt.runtime": ["Segmentation", "Segmenter"],
    },
)

"""Twins segmentation models as FP16 and INT8 TensorRT engines: build, gate, run, profile.

Names are loaded when first used, so `import twins_trt` pulls in none of torch, onnx, onnxruntime or tensorrt.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from twins_trt.errors import TwinsError
from twins_trt.version import __version__

if TYPE_CHECKING:
    from twins_trt.models import ModelSpec, build_model, get_spec, list_models
    from twins_trt.runtime import Segmentation, Segmenter

_HOME = {
    "ModelSpec": "twins_trt.models",
    "build_model": "twins_trt.models",
    "get_spec": "twins_trt.models",
    "list_models": "twins_trt.models",
    "Segmentation": "twins_trt.runtime",
    "Segmenter": "twins_trt.runtime",
}

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


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Makes `help` and completion show the names that are not loaded yet."""
    return sorted({*globals(), *__all__})

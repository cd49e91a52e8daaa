"""Twins segmentation models as FP16 and INT8 TensorRT engines: build, gate, run, profile.

Names are loaded when first used, so `import twins_trt` pulls in none of torch, onnx, onnxruntime or tensorrt.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from twins_trt.errors import TwinsError
from twins_trt.lazy import lazy_names
from twins_trt.version import __version__

if TYPE_CHECKING:
    from twins_trt.models import ModelSpec, build_model, get_spec, list_models
    from twins_trt.runtime import Segmentation, Segmenter, open_bundle
    from twins_trt.verbs.build import BuildRequest, build
    from twins_trt.verbs.calibrate import calibrate
    from twins_trt.verbs.compile import compile_engine
    from twins_trt.verbs.evaluate import evaluate
    from twins_trt.verbs.gate import gate
    from twins_trt.verbs.profile import profile
    from twins_trt.verbs.speed import compare_speed

__all__ = [
    "BuildRequest",
    "ModelSpec",
    "Segmentation",
    "Segmenter",
    "TwinsError",
    "__version__",
    "build",
    "build_model",
    "calibrate",
    "compare_speed",
    "compile_engine",
    "evaluate",
    "gate",
    "get_spec",
    "list_models",
    "open_bundle",
    "profile",
]

_here = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_here, "kernels")):
    # A checkout: kernels/, builders/ and calib/ lie beside this folder, and an installation copies them into it. So
    # they import without an installation too, and never from another checkout that happens to be installed.
    __path__.append(os.path.dirname(_here))

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "twins_trt.models": ["ModelSpec", "build_model", "get_spec", "list_models"],
        "twins_trt.runtime": ["Segmentation", "Segmenter", "open_bundle"],
        "twins_trt.verbs.build": ["BuildRequest", "build"],
        "twins_trt.verbs.calibrate": ["calibrate"],
        "twins_trt.verbs.compile": ["compile_engine"],
        "twins_trt.verbs.evaluate": ["evaluate"],
        "twins_trt.verbs.gate": ["gate"],
        "twins_trt.verbs.profile": ["profile"],
        "twins_trt.verbs.speed": ["compare_speed"],
    },
)

"""The zoo: specs as literal data, the models they describe, and their weights. Torch is loaded by `build_model`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from twins_trt.models.zoo import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, get_spec, list_models

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor, build_model

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "ModelSpec", "Segmentor", "build_model", "get_spec", "list_models"]


def __getattr__(name: str) -> Any:
    if name in ("Segmentor", "build_model"):
        return getattr(importlib.import_module("twins_trt.models.segmentor"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

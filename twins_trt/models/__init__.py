"""The zoo: specs as literal data, the models they describe, and their weights. Torch is loaded by `build_model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.lazy import lazy_names
from twins_trt.models.zoo import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, get_spec, list_models

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor, build_model

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "ModelSpec", "Segmentor", "build_model", "get_spec", "list_models"]

__getattr__, __dir__ = lazy_names(__name__, {"twins_trt.models.segmentor": ["Segmentor", "build_model"]})

"""Bundles and what runs them. Names are loaded when first used: a device needs only what its engine needs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twins_trt.data.images import read_image
    from twins_trt.data.preprocessing import Preprocessing
    from twins_trt.runtime.bundle import Bundle, open_bundle, write_bundle
    from twins_trt.runtime.engines import Engine, EngineSettings, open_engine
    from twins_trt.runtime.manifest import EngineFile, Figure, FileEntry, Manifest, Source
    from twins_trt.runtime.segmentation import Segmentation
    from twins_trt.runtime.segmenter import Segmenter
    from twins_trt.runtime.sources import expand_sources
    from twins_trt.runtime.stream import Frame
    from twins_trt.runtime.tensors import TensorSpec

_HOME = {
    "Bundle": "twins_trt.runtime.bundle",
    "Engine": "twins_trt.runtime.engines",
    "EngineFile": "twins_trt.runtime.manifest",
    "EngineSettings": "twins_trt.runtime.engines",
    "Figure": "twins_trt.runtime.manifest",
    "FileEntry": "twins_trt.runtime.manifest",
    "Frame": "twins_trt.runtime.stream",
    "Manifest": "twins_trt.runtime.manifest",
    "Preprocessing": "twins_trt.data.preprocessing",
    "Segmentation": "twins_trt.runtime.segmentation",
    "Segmenter": "twins_trt.runtime.segmenter",
    "Source": "twins_trt.runtime.manifest",
    "TensorSpec": "twins_trt.runtime.tensors",
    "expand_sources": "twins_trt.runtime.sources",
    "open_bundle": "twins_trt.runtime.bundle",
    "open_engine": "twins_trt.runtime.engines",
    "read_image": "twins_trt.data.images",
    "write_bundle": "twins_trt.runtime.bundle",
}

__all__ = [
    "Bundle",
    "Engine",
    "EngineFile",
    "EngineSettings",
    "Figure",
    "FileEntry",
    "Frame",
    "Manifest",
    "Preprocessing",
    "Segmentation",
    "Segmenter",
    "Source",
    "TensorSpec",
    "expand_sources",
    "open_bundle",
    "open_engine",
    "read_image",
    "write_bundle",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Makes `help` and completion show the names that are not loaded yet."""
    return sorted({*globals(), *__all__})

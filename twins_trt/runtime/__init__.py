"""Bundles and what runs them. Names are loaded when first used: a device needs only what its engine needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.lazy import lazy_names

if TYPE_CHECKING:
    from twins_trt.data.images import read_image
    from twins_trt.data.preprocessing import Preprocessing
    from twins_trt.evaluation.tiling import Tiles
    from twins_trt.runtime.bundle import Bundle, open_bundle, write_bundle
    from twins_trt.runtime.engines import Engine, EngineSettings, open_engine
    from twins_trt.runtime.manifest import EngineFile, Figure, FileEntry, Manifest, Source
    from twins_trt.runtime.segmentation import Segmentation
    from twins_trt.runtime.segmenter import Segmenter
    from twins_trt.runtime.sources import expand_sources
    from twins_trt.runtime.stream import Frame
    from twins_trt.runtime.tensors import TensorSpec

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
    "Tiles",
    "expand_sources",
    "open_bundle",
    "open_engine",
    "read_image",
    "write_bundle",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "twins_trt.runtime.bundle": ["Bundle", "open_bundle", "write_bundle"],
        "twins_trt.runtime.engines": ["Engine", "EngineSettings", "open_engine"],
        "twins_trt.runtime.manifest": ["EngineFile", "Figure", "FileEntry", "Manifest", "Source"],
        "twins_trt.runtime.stream": ["Frame"],
        "twins_trt.data.preprocessing": ["Preprocessing"],
        "twins_trt.evaluation.tiling": ["Tiles"],
        "twins_trt.runtime.segmentation": ["Segmentation"],
        "twins_trt.runtime.segmenter": ["Segmenter"],
        "twins_trt.runtime.tensors": ["TensorSpec"],
        "twins_trt.runtime.sources": ["expand_sources"],
        "twins_trt.data.images": ["read_image"],
    },
)

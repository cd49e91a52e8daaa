"""Bundles and the engines that run them. Names are loaded at first use: a device needs only its engine's packages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.lazy import lazy_names

if TYPE_CHECKING:
    from twins_trt.data.images import read_image
    from twins_trt.data.preprocessing import Preprocessing
    from twins_trt.inference.interface import GraphInterface
    from twins_trt.inference.tensors import TensorSpec
    from twins_trt.inference.tiling import Tiles
    from twins_trt.models.source import Source
    from twins_trt.runtime.bundle import Bundle, open_bundle, write_bundle
    from twins_trt.runtime.engines import Engine, RuntimeOptions, open_engine
    from twins_trt.runtime.manifest import EngineFile, Figure, FileEntry, Manifest
    from twins_trt.runtime.segmentation import Segmentation
    from twins_trt.runtime.segmenter import Segmenter
    from twins_trt.runtime.sources import expand_sources
    from twins_trt.runtime.stream import Frame

__all__ = [
    "Bundle",
    "Engine",
    "EngineFile",
    "Figure",
    "FileEntry",
    "Frame",
    "GraphInterface",
    "Manifest",
    "Preprocessing",
    "RuntimeOptions",
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
        "twins_trt.runtime.engines": ["Engine", "RuntimeOptions", "open_engine"],
        "twins_trt.runtime.manifest": ["EngineFile", "Figure", "FileEntry", "Manifest"],
        "twins_trt.models.source": ["Source"],
        "twins_trt.runtime.stream": ["Frame"],
        "twins_trt.data.preprocessing": ["Preprocessing"],
        "twins_trt.inference.interface": ["GraphInterface"],
        "twins_trt.inference.tiling": ["Tiles"],
        "twins_trt.runtime.segmentation": ["Segmentation"],
        "twins_trt.runtime.segmenter": ["Segmenter"],
        "twins_trt.inference.tensors": ["TensorSpec"],
        "twins_trt.runtime.sources": ["expand_sources"],
        "twins_trt.data.images": ["read_image"],
    },
)

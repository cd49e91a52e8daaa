"""One builder of engines for TensorRT-RTX (any target, no GPU) and TensorRT 8.6 to 11 (for the GPU it runs on).

`build_engine(graph, options)` reads a precision-complete ONNX file and returns the serialized engine with its layers.
"""

from __future__ import annotations

from twins_trt.builders.engine.build import BuiltEngine, build_engine
from twins_trt.builders.engine.header import GraphHeader, TensorInfo, read_header
from twins_trt.builders.engine.in_thread import build_in_thread
from twins_trt.builders.engine.options import FLAVOURS, EngineOptions
from twins_trt.builders.engine.versions import Compiler, group_targets, open_compiler
from twins_trt.device import Device, current_device

__all__ = [
    "FLAVOURS",
    "BuiltEngine",
    "Compiler",
    "Device",
    "EngineOptions",
    "GraphHeader",
    "TensorInfo",
    "build_engine",
    "build_in_thread",
    "current_device",
    "group_targets",
    "open_compiler",
    "read_header",
]

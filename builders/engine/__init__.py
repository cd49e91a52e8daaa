"""One builder of engines for TensorRT-RTX (any target, no GPU) and TensorRT 8.6 to 11 (for the GPU it runs on).

`build_engine(graph, options)` reads a precision-complete ONNX file and returns the plan and the finished layer list.
"""

from __future__ import annotations

from twins_trt.builders.engine.build import BuiltEngine, build_engine
from twins_trt.builders.engine.options import FLAVOURS, EngineOptions, parse_target

__all__ = ["FLAVOURS", "BuiltEngine", "EngineOptions", "build_engine", "parse_target"]

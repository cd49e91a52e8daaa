"""From a model to a precision-complete ONNX graph. Onnx is loaded by what writes or reads graphs, not by options."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from twins_trt.builders.export.options import ExportOptions, GraphInfo, Range

if TYPE_CHECKING:
    from twins_trt.builders.export.export import export_graph, read_info

__all__ = ["ExportOptions", "GraphInfo", "Range", "export_graph", "read_info"]


def __getattr__(name: str) -> Any:
    if name in ("export_graph", "read_info"):
        return getattr(importlib.import_module("twins_trt.builders.export.export"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

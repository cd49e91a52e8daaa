"""From a model to a precision-complete ONNX graph. Onnx is loaded by what writes or reads graphs, not by options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.builders.export.options import DynamicDim, ExportOptions, GraphInfo
from twins_trt.lazy import lazy_names

if TYPE_CHECKING:
    from twins_trt.builders.export.export import export_graph, read_info

__all__ = ["DynamicDim", "ExportOptions", "GraphInfo", "export_graph", "read_info"]

__getattr__, __dir__ = lazy_names(__name__, {"twins_trt.builders.export.export": ["export_graph", "read_info"]})

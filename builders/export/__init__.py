"""From a model to a precision-complete ONNX graph."""

from twins_trt.builders.export.export import export_graph, read_info
from twins_trt.builders.export.options import ExportOptions, GraphInfo, Range

__all__ = ["ExportOptions", "GraphInfo", "Range", "export_graph", "read_info"]

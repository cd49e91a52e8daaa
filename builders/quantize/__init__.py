"""INT8 graphs: QuantizeLinear and DequantizeLinear nodes where a plan has INT8. Importing the options loads no onnx."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.lazy import lazy_names

if TYPE_CHECKING:
    from twins_trt.builders.quantize.check import check_int8
    from twins_trt.builders.quantize.graphs import QuantizedGraphs, sites_of
    from twins_trt.builders.quantize.rewrite import Quantization, observed_tensors, quantize
    from twins_trt.builders.quantize.smooth import smoothed_tensors

__all__ = [
    "Quantization",
    "QuantizedGraphs",
    "check_int8",
    "observed_tensors",
    "quantize",
    "sites_of",
    "smoothed_tensors",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "twins_trt.builders.quantize.check": ["check_int8"],
        "twins_trt.builders.quantize.graphs": ["QuantizedGraphs", "sites_of"],
        "twins_trt.builders.quantize.rewrite": ["Quantization", "observed_tensors", "quantize"],
        "twins_trt.builders.quantize.smooth": ["smoothed_tensors"],
    },
)

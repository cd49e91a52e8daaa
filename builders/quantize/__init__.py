"""INT8 as nodes of the graph: QuantizeLinear and DequantizeLinear where a plan wants them."""

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

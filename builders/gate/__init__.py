"""The gate: does an engine's accuracy hold against the PyTorch reference on the same images? Pass or fail."""

from twins_trt.builders.gate.gate import GateResult, ImageResult, Thresholds, gate_bundle
from twins_trt.builders.gate.statistics import Drop, bootstrap_drop

__all__ = ["Drop", "GateResult", "ImageResult", "Thresholds", "bootstrap_drop", "gate_bundle"]

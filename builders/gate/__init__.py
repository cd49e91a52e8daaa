"""The gate: does an engine's accuracy hold against the PyTorch reference on the same images? Pass or fail."""

from twins_trt.builders.gate.gate import MAX_DROP, GateResult, ImageResult, Thresholds, gate_bundle
from twins_trt.builders.gate.record import Gallery, gate_file, record, verdict
from twins_trt.builders.gate.reference import load_reference
from twins_trt.builders.gate.statistics import Drop, bootstrap_drop

__all__ = [
    "MAX_DROP",
    "Drop",
    "Gallery",
    "GateResult",
    "ImageResult",
    "Thresholds",
    "bootstrap_drop",
    "gate_bundle",
    "gate_file",
    "load_reference",
    "record",
    "verdict",
]

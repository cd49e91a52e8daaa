"""The gate: compares an engine's masks with those of the PyTorch reference, and passes or fails it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.builders.gate.options import MAX_DROP, MIN_IMAGES, GateOptions, Thresholds
from twins_trt.lazy import lazy_names

if TYPE_CHECKING:
    from twins_trt.builders.gate.gate import gate_bundle
    from twins_trt.builders.gate.record import Gallery, gate_file, gate_status, record_gate
    from twins_trt.builders.gate.reference import load_reference
    from twins_trt.builders.gate.result import GateResult, ImageResult
    from twins_trt.builders.gate.statistics import Drop, bootstrap_drop

__all__ = [
    "MAX_DROP",
    "MIN_IMAGES",
    "Drop",
    "Gallery",
    "GateOptions",
    "GateResult",
    "ImageResult",
    "Thresholds",
    "bootstrap_drop",
    "gate_bundle",
    "gate_file",
    "gate_status",
    "load_reference",
    "record_gate",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "twins_trt.builders.gate.gate": ["gate_bundle"],
        "twins_trt.builders.gate.record": ["Gallery", "gate_file", "gate_status", "record_gate"],
        "twins_trt.builders.gate.reference": ["load_reference"],
        "twins_trt.builders.gate.result": ["GateResult", "ImageResult"],
        "twins_trt.builders.gate.statistics": ["Drop", "bootstrap_drop"],
    },
)

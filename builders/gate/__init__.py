"""The gate: compares an engine's masks with those of the PyTorch reference, and passes or fails it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.builders.gate.options import MAX_DROP, MIN_IMAGES, GateOptions, Thresholds
from twins_trt.lazy import lazy_names

if TYPE_CHECKING:
    from twins_trt.builders.gate.gate import gate_bundle
    from twins_trt.builders.gate.pack import Pack, open_pack
    from twins_trt.builders.gate.pack_key import PackKey
    from twins_trt.builders.gate.pack_writing import check_fits, check_new_pack, packing
    from twins_trt.builders.gate.record import Gallery, gate_file, gate_status, record_gate, with_simulation
    from twins_trt.builders.gate.reference import ModelImages, load_reference, reference_images
    from twins_trt.builders.gate.result import GateResult, ImageResult, Simulation
    from twins_trt.builders.gate.statistics import Drop, bootstrap_drop, overlap

__all__ = [
    "MAX_DROP",
    "MIN_IMAGES",
    "Drop",
    "Gallery",
    "GateOptions",
    "GateResult",
    "ImageResult",
    "ModelImages",
    "Pack",
    "PackKey",
    "Simulation",
    "Thresholds",
    "bootstrap_drop",
    "check_fits",
    "check_new_pack",
    "gate_bundle",
    "gate_file",
    "gate_status",
    "load_reference",
    "open_pack",
    "overlap",
    "packing",
    "record_gate",
    "reference_images",
    "with_simulation",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "twins_trt.builders.gate.gate": ["gate_bundle"],
        "twins_trt.builders.gate.pack_key": ["PackKey"],
        "twins_trt.builders.gate.pack": ["Pack", "open_pack"],
        "twins_trt.builders.gate.pack_writing": ["check_fits", "check_new_pack", "packing"],
        "twins_trt.builders.gate.record": ["Gallery", "gate_file", "gate_status", "record_gate", "with_simulation"],
        "twins_trt.builders.gate.reference": ["ModelImages", "load_reference", "reference_images"],
        "twins_trt.builders.gate.result": ["GateResult", "ImageResult", "Simulation"],
        "twins_trt.builders.gate.statistics": ["Drop", "bootstrap_drop", "overlap"],
    },
)

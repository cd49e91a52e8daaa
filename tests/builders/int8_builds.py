"""Builds in INT8 of the small model, judged on eight images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pictures import CLASSES, MODEL, SIZE

from twins_trt.builders.plan.precision_plan import PrecisionPlan
from twins_trt.calib import Ranges
from twins_trt.runtime import Bundle
from twins_trt.verbs.build import BuildRequest

FP16 = {"precision": "fp16", "calibrate_on": None}
"""Fields that make an INT8 build one in FP16."""


def int8(data: Path, out: Path, **fields: Any) -> BuildRequest:
    """A build for the CPU, calibrated and judged on eight images."""
    given: dict[str, Any] = {
        "size": SIZE,
        "precision": "int8",
        "targets": ("cpu",),
        "calibrate_on": f"folder:{data}",
        "gate_on": f"folder:{data}",
        "max_drop": 50.0,
        "min_images": 8,
        "min_agreement": 0.0,  # random weights decide hardly any pixel: 97.07 % agree
        **fields,
    }
    return BuildRequest(MODEL, str(out), seeded=True, num_classes=CLASSES, **given)


def from_files(plan: Path, calibration: Path) -> dict[str, Any]:
    """A plan and a range file instead of calibration."""
    return {"plan": str(plan), "calibration": str(calibration), "calibrate_on": None}


def sabotaged(built: Bundle, path: Path) -> dict[str, Any]:
    """The bundle's plan with one range 100 times too small."""
    plan = PrecisionPlan.from_json(built.file("plan.json").read_text())
    tensor = "stages.1.blocks.0.ffn/gelu"
    largest = Ranges.from_json(built.read_json("calibration.json")).amax(tensor)
    path.write_text(replace(plan, ranges={tensor: largest / 100}).to_json())
    return from_files(path, built.file("calibration.json"))

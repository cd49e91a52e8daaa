"""Fine-tuning: mmsegmentation's recipe for Twins, resumable, on one process or several. Torch is loaded by `train`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from twins_trt.training.options import TrainOptions

if TYPE_CHECKING:
    from twins_trt.training.loop import TrainPlan, TrainReport, TrainStep, plan_training, train
    from twins_trt.training.run import load_options

_HOME = {
    "TrainPlan": "twins_trt.training.loop",
    "TrainReport": "twins_trt.training.loop",
    "TrainStep": "twins_trt.training.loop",
    "load_options": "twins_trt.training.run",
    "plan_training": "twins_trt.training.loop",
    "train": "twins_trt.training.loop",
}

__all__ = [
    "TrainOptions",
    "TrainPlan",
    "TrainReport",
    "TrainStep",
    "load_options",
    "plan_training",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

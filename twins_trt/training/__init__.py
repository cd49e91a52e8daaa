"""Fine-tuning: mmsegmentation's recipe for Twins, resumable, on one process or several. `train` loads torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.lazy import lazy_names
from twins_trt.training.options import TrainOptions, resolve_options
from twins_trt.verbs.train import TrainRequest

if TYPE_CHECKING:
    from twins_trt.training.run.folder import load_options
    from twins_trt.training.run.job import TrainJob, resolve_training
    from twins_trt.training.run.loop import train
    from twins_trt.training.run.report import TrainReport, TrainStep

__all__ = [
    "TrainJob",
    "TrainOptions",
    "TrainReport",
    "TrainRequest",
    "TrainStep",
    "load_options",
    "resolve_options",
    "resolve_training",
    "train",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "twins_trt.training.run.loop": ["train"],
        "twins_trt.training.run.job": ["TrainJob", "resolve_training"],
        "twins_trt.training.run.report": ["TrainReport", "TrainStep"],
        "twins_trt.training.run.folder": ["load_options"],
    },
)

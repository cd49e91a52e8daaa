"""Fine-tuning: mmsegmentation's recipe for Twins, resumable, on one process or several. Torch is loaded by `train`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.lazy import lazy_names
from twins_trt.training.options import TrainOptions, resolve
from twins_trt.verbs.train import TrainRequest

if TYPE_CHECKING:
    from twins_trt.training.job import TrainJob, resolve_training
    from twins_trt.training.loop import train
    from twins_trt.training.report import TrainReport, TrainStep
    from twins_trt.training.run import load_options

__all__ = [
    "TrainJob",
    "TrainOptions",
    "TrainReport",
    "TrainRequest",
    "TrainStep",
    "load_options",
    "resolve",
    "resolve_training",
    "train",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "twins_trt.training.loop": ["train"],
        "twins_trt.training.job": ["TrainJob", "resolve_training"],
        "twins_trt.training.report": ["TrainReport", "TrainStep"],
        "twins_trt.training.run": ["load_options"],
    },
)

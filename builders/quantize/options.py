"""How a graph is quantized, and on which images."""

from __future__ import annotations

from dataclasses import dataclass, replace

from twins_trt.calib.options import CalibrationOptions
from twins_trt.data import Dataset, open_dataset


@dataclass(frozen=True)
class CalibrationImages:
    """Images to calibrate on. data: as `open_dataset` takes it. count: how many, spread over the split; 0 for all."""

    data: str
    split: str
    count: int

    def open(self) -> Dataset:
        """The images, without their labels. Raises as `open_dataset` does."""
        dataset = open_dataset(self.data, split=self.split).thinned(self.count)
        return replace(dataset, items=tuple(replace(item, label=None) for item in dataset.items))


@dataclass(frozen=True)
class Int8Options:
    """How a graph is quantized.

    plan: the file of a precision plan; None for the uniform plan of `level`.
    ranges: images to collect ranges on, or a range file. images: those that biases are corrected on, or None.
    calibration: how ranges are collected and chosen; the ranges of its first observer are used.
    smooth, bias_correction: of the uniform plan. smooth: SmoothQuant's strength, 0 to 1; images to search the best
    strength on; or None for no SmoothQuant. bias_correction: whether biases include the mean shift that INT8 causes.
    """

    level: str
    plan: str | None
    ranges: CalibrationImages | str
    images: CalibrationImages | None
    calibration: CalibrationOptions
    smooth: float | CalibrationImages | None
    bias_correction: bool

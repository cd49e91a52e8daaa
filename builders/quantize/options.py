"""How a graph is quantized, and on which images."""

from __future__ import annotations

from dataclasses import dataclass, replace

from twins_trt.calib.settings import CalibrationOptions
from twins_trt.data import Dataset, open_dataset


@dataclass(frozen=True)
class CalibrationImages:
    """Where ranges come from. data: as `open_dataset` takes it. count: spread over the split; 0 for all."""

    data: str
    split: str
    count: int

    def open(self) -> Dataset:
        """The images, without their labels. Raises as `open_dataset` does."""
        dataset = open_dataset(self.data, split=self.split).spread(self.count)
        return replace(dataset, items=tuple(replace(item, label=None) for item in dataset.items))


@dataclass(frozen=True)
class Int8Options:
    """How a graph is quantized.

    ranges: images to collect ranges on, or a range file. calibration: how ranges are collected and chosen; the first
    observer is the one used. images: what biases are corrected on, where there are any.
    plan: the file of the precision plan to build. None builds the uniform plan of `level`, with `smooth`,
    SmoothQuant's strength, images to search the best one on, or None; and with `bias_correction`, whether the mean
    shift of every quantized product goes into its bias.
    """

    level: str
    plan: str | None
    ranges: CalibrationImages | str
    images: CalibrationImages | None
    calibration: CalibrationOptions
    smooth: float | CalibrationImages | None
    bias_correction: bool

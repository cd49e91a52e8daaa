"""Activation ranges over the images of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from twins_trt.calib.collecting import CollectRun, calibrate
from twins_trt.calib.options import CalibrationOptions
from twins_trt.calib.ranges import Ranges
from twins_trt.data import Dataset
from twins_trt.data.images import UInt8Array


def pixels(dataset: Dataset, *, workers: int = 0) -> Iterator[UInt8Array]:
    """The images of a data set, uint8 [H, W, 3]. workers: processes that read them ahead."""
    return (sample.image for sample in dataset.load(workers=workers))


def calibrate_on(
    dataset: Dataset, graph: Path, options: CalibrationOptions, run: CollectRun, *, workers: int = 0
) -> Ranges:
    """The ranges of an FP32 graph over the images of a data set.

    run: how the collection runs; its names and their number are taken from the data set. workers: processes that read
    images ahead. Raises as `calib.calibrate` does.
    """
    run = replace(run, total=len(dataset), names=[str(item.image) for item in dataset.items])
    return calibrate(graph, pixels(dataset, workers=workers), options=options, run=run)

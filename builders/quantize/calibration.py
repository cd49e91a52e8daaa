"""From an INT8 job to activation ranges and a first plan."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twins_trt.builders.plan.precision_plan import PrecisionPlan, read_plan, uniform_plan
from twins_trt.builders.plan.sites import Site
from twins_trt.builders.quantize.graphs import QuantizedGraphs, relative_error
from twins_trt.builders.quantize.options import CalibrationImages, Int8Options
from twins_trt.calib import CollectRun, Ranges, calibrate, load_ranges
from twins_trt.data import Dataset
from twins_trt.errors import UsageError
from twins_trt.progress import Progress
from twins_trt.spelling import spelled

STRENGTHS = (0.25, 0.5, 0.75)  # of SmoothQuant; beside none at all, what a search tries
SEARCHED = 4  # calibration images that SmoothQuant's strength is searched on

log = logging.getLogger("twins_trt")


def pixels(dataset: Dataset) -> Iterator[npt.NDArray[np.uint8]]:
    """The images alone, one after another."""
    return (sample.image for sample in dataset.load())


def collect_ranges(int8: Int8Options, graph: Path, *, state: Path, threads: int | None, progress: Progress) -> Ranges:
    """The ranges of an FP32 graph: of the file that the job names, else collected.

    state: keeps what was collected, for a run that goes on. threads: of the CPU, None for every core. Raises
    `DataError` for a file of another graph.
    """
    if isinstance(int8.ranges, str):
        return load_ranges(int8.ranges, graph=graph)
    dataset = int8.ranges.open()

    names = [str(item.image) for item in dataset.items]
    run = CollectRun(state=state, progress=progress, total=len(dataset), names=names, threads=threads)
    return calibrate(graph, pixels(dataset), options=int8.calibration, run=run)


def refine(
    int8: Int8Options, graphs: QuantizedGraphs, plan: PrecisionPlan, *, threads: int | None, progress: Progress
) -> PrecisionPlan:
    """The plan with SmoothQuant's strength searched, where that was asked for, and biases corrected, where it says so.

    The strength is the one whose logits differ least from the FP32 graph's, in mean square, over the first `SEARCHED`
    calibration images. Raises `UsageError` for a plan that corrects biases without images to do so on.
    """
    if isinstance(int8.smooth, CalibrationImages) and int8.plan is None:
        some = list(pixels(int8.smooth.open().spread(SEARCHED)))
        wanted = graphs.logits(None, some, threads=threads)
        errors: dict[float | None, float] = {}
        for strength in (None, *STRENGTHS):
            progress("SmoothQuant", f"strength {strength or 'none'}", len(errors) / (len(STRENGTHS) + 1))
            errors[strength] = relative_error(
                graphs.logits(replace(plan, smooth=strength), some, threads=threads), wanted
            )
        plan = replace(plan, smooth=min(errors, key=lambda each: errors[each]))
        log.info("SmoothQuant: relative squared error of the logits by strength: %s", errors)
    if plan.bias_correction:
        if int8.images is None:
            raise UsageError(
                "the plan corrects biases on images, and there are none",
                f"name some: {spelled('calibrate_on', 'KIND:PATH')}",
            )
        progress("bias correction", "", None)
        graphs.correct_biases(plan, pixels(int8.images.open()), threads=threads)
    return plan


def first_plan(int8: Int8Options, sites: tuple[Site, ...], *, model: str) -> PrecisionPlan:
    """The plan file that the job names, else the uniform plan of their level.

    Raises `UsageError` for a file that cannot be read, is no plan, or is of another model.
    """
    if int8.plan is None:
        smooth = int8.smooth if isinstance(int8.smooth, float) else None
        plan = uniform_plan(sites, int8.level, model=model, smooth=smooth)
        return replace(plan, observer=int8.calibration.observers[0], bias_correction=int8.bias_correction)
    plan = read_plan(int8.plan)
    if plan.model != model:
        raise UsageError(f"{int8.plan} is a plan of {plan.model}, not of {model}", "name the plan of this model")
    plan.quantized(sites)  # refuses names that the model does not have
    return plan

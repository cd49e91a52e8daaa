"""The activation ranges and the first plan of an INT8 build."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from twins_trt.builders.plan.precision_plan import PrecisionPlan, read_plan, uniform_plan
from twins_trt.builders.plan.sites import Site
from twins_trt.builders.quantize.graphs import QuantizedGraphs, relative_error
from twins_trt.builders.quantize.options import CalibrationImages, Int8Options
from twins_trt.calib import CollectRun, Ranges, load_ranges
from twins_trt.calib.datasets import calibrate_on, pixels
from twins_trt.errors import UsageError
from twins_trt.progress import Progress
from twins_trt.spelling import spelled

STRENGTHS = (0.25, 0.5, 0.75)  # of SmoothQuant, which a search tries beside no SmoothQuant
SEARCHED = 4  # calibration images that SmoothQuant's strength is searched on

log = logging.getLogger("twins_trt")


def find_ranges(int8: Int8Options, graph: Path, *, state: Path, threads: int | None, progress: Progress) -> Ranges:
    """The ranges of an FP32 graph: read from the range file that the options name, else collected.

    state: the file that keeps what has been collected, so that a later run resumes. threads: of the CPU; None for every
    core. Raises `DataError` for a range file of another graph, and as `calibrate_on` does.
    """
    if isinstance(int8.ranges, str):
        return load_ranges(int8.ranges, graph=graph)
    run = CollectRun(state=state, progress=progress, threads=threads)
    return calibrate_on(int8.ranges.open(), graph, int8.calibration, run)


def refine(
    int8: Int8Options, graphs: QuantizedGraphs, plan: PrecisionPlan, *, threads: int | None, progress: Progress
) -> PrecisionPlan:
    """The plan with SmoothQuant's strength, if the options search it; `graphs` with bias shifts, if the plan has them.

    The search takes the strength whose logits differ least from those of the FP32 graph, in mean square, over
    `SEARCHED` calibration images. Raises `UsageError` for a plan that corrects biases if there are no images for it.
    """
    if isinstance(int8.smooth, CalibrationImages) and int8.plan is None:
        images = list(pixels(int8.smooth.open().thinned(SEARCHED)))
        wanted = graphs.logits(None, images, threads=threads)
        errors: dict[float | None, float] = {}
        for strength in (None, *STRENGTHS):
            progress("plan", f"SmoothQuant {strength or 'none'}", len(errors) / (len(STRENGTHS) + 1))
            logits = graphs.logits(replace(plan, smooth=strength), images, threads=threads)
            errors[strength] = relative_error(logits, wanted)
        plan = replace(plan, smooth=min(errors, key=lambda each: errors[each]))
        log.info("SmoothQuant: relative squared error of the logits by strength: %s", errors)
    if plan.bias_correction:
        if int8.images is None:
            raise UsageError(
                "the plan corrects biases on images, and no images are given",
                f"name some: {spelled('calibrate_on', 'KIND:PATH')}",
            )
        progress("plan", "bias correction", None)
        graphs.correct_biases(plan, pixels(int8.images.open()), threads=threads)
    return plan


def first_plan(int8: Int8Options, sites: tuple[Site, ...], *, model: str) -> PrecisionPlan:
    """The plan of the file that the options name, else the uniform plan of their level.

    Raises `UsageError` for a file that cannot be read, is no plan, or is of another model.
    """
    if int8.plan is None:
        smooth = int8.smooth if isinstance(int8.smooth, float) else None
        plan = uniform_plan(sites, int8.level, model=model, smooth=smooth)
        return replace(plan, observer=int8.calibration.observers[0], bias_correction=int8.bias_correction)
    plan = read_plan(int8.plan)
    if plan.model != model:
        raise UsageError(f"{int8.plan} is a plan of {plan.model}, not of {model}", "name the plan of this model")
    plan.int8_sites(sites)  # raises for names that the model does not have
    return plan

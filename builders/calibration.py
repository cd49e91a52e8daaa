"""From an INT8 job to activation ranges and a first plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twins_trt.builders.job import CalibrationImages, Int8Job
from twins_trt.builders.plan import Plan, uniform_plan
from twins_trt.builders.quantize.graphs import QuantizedGraphs, relative_error
from twins_trt.builders.sites import Site
from twins_trt.calib import CalibrationStep, CollectOptions, Ranges, calibrate, load_ranges
from twins_trt.data import Dataset
from twins_trt.errors import UsageError
from twins_trt.spelling import spelled

STRENGTHS = (0.25, 0.5, 0.75)  # of SmoothQuant; beside none at all, what a search tries
SEARCHED = 4  # calibration images that SmoothQuant's strength is searched on

log = logging.getLogger("twins_trt")

# report(detail, share of what is to be done): as a build's steps tell it.
Report = Callable[[str, float | None], None]


def pixels(dataset: Dataset) -> Iterator[npt.NDArray[np.uint8]]:
    """The images alone, one after another."""
    return (sample.image for sample in dataset.load())


def collect_ranges(int8: Int8Job, graph: Path, *, state: Path, threads: int | None, report: Report) -> Ranges:
    """The ranges of an FP32 graph: of the file that the job names, else collected.

    state: keeps what was collected, for a run that goes on. threads: of the CPU, None for every core. Raises
    `DataError` for a file of another graph.
    """
    if isinstance(int8.ranges, str):
        return load_ranges(int8.ranges, graph=graph)
    dataset = int8.ranges.open()

    def progress(step: CalibrationStep) -> None:
        left = "" if step.eta is None else f", {step.eta:.0f} s left"
        report(f"{step.done} of {len(dataset)} images{left}", step.done / len(dataset))

    names = [str(item.image) for item in dataset.items]
    options = CollectOptions(state=state, progress=progress, total=len(dataset), names=names, threads=threads)
    return calibrate(graph, pixels(dataset), settings=int8.settings, options=options)


def refine(int8: Int8Job, graphs: QuantizedGraphs, plan: Plan, *, threads: int | None, report: Report) -> Plan:
    """The plan with SmoothQuant's strength searched, where that was asked for, and biases corrected, where it says so.

    The strength is the one whose logits differ least from the FP32 graph's, in mean square, over the first `SEARCHED`
    calibration images. Raises `UsageError` for a plan that corrects biases without images to do so on.
    """
    if isinstance(int8.smooth, CalibrationImages) and int8.plan is None:
        some = list(pixels(int8.smooth.open().spread(SEARCHED)))
        wanted = graphs.logits(None, some, threads=threads)
        errors: dict[float | None, float] = {}
        for strength in (None, *STRENGTHS):
            report(f"SmoothQuant {strength or 'none'}", len(errors) / (len(STRENGTHS) + 1))
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
        report("bias correction", None)
        graphs.correct_biases(plan, pixels(int8.images.open()), threads=threads)
    return plan


def first_plan(int8: Int8Job, sites: tuple[Site, ...], *, model: str) -> Plan:
    """The plan file that the job names, else the uniform plan of their level.

    Raises `UsageError` for a file that cannot be read, is no plan, or is of another model.
    """
    if int8.plan is None:
        smooth = int8.smooth if isinstance(int8.smooth, float) else None
        plan = uniform_plan(sites, int8.level, model=model, smooth=smooth)
        return replace(plan, observer=int8.settings.observers[0], bias_correction=int8.bias_correction)
    plan = read_plan(int8.plan)
    if plan.model != model:
        raise UsageError(f"{int8.plan} is a plan of {plan.model}, not of {model}", "name the plan of this model")
    plan.quantised(sites)  # refuses names that the model does not have
    return plan


def read_plan(path: str | Path) -> Plan:
    """A plan file. Raises `UsageError` where it cannot be read or is no plan."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the plan {path} cannot be read: {error}", "name a plan.json as a bundle holds it") from error
    try:
        return Plan.from_json(text)
    except UsageError as error:
        raise UsageError(f"{path}: {error.cause}", error.fix) from error

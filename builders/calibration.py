"""From a build's options to activation ranges and a first plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twins_trt.builders.int8_options import SEARCH, STRENGTHS, Int8Options
from twins_trt.builders.plan import Plan, uniform_plan
from twins_trt.builders.quantize.graphs import QuantizedGraphs, relative_error
from twins_trt.builders.sites import Site
from twins_trt.calib import CalibrationStep, CollectOptions, Ranges, calibrate, load_ranges
from twins_trt.data import Dataset, open_dataset
from twins_trt.errors import UsageError

SEARCHED = 4  # calibration images that SmoothQuant's strength is searched on

log = logging.getLogger("twins_trt")

# report(detail, share of what is to be done): as a build's steps tell it.
Report = Callable[[str, float | None], None]


def calibration_images(int8: Int8Options) -> Dataset | None:
    """The images to calibrate on, without their labels; None where there are none.

    Raises as `open_dataset` does.
    """
    if int8.data is None:
        return None
    dataset = open_dataset(int8.data, split=int8.split).spread(int8.images)
    return replace(dataset, items=tuple(replace(item, label=None) for item in dataset.items))


def pixels(dataset: Dataset) -> Iterator[npt.NDArray[np.uint8]]:
    """The images alone, one after another."""
    return (sample.image for sample in dataset.load())


def collect_ranges(int8: Int8Options, graph: Path, *, state: Path, report: Report) -> Ranges:
    """The ranges of an FP32 graph: of the file that the options name, else collected.

    state: keeps what was collected, for a run that goes on. Raises `DataError` for a file of another graph.
    """
    if int8.calibration is not None:
        return load_ranges(int8.calibration, graph=graph)
    dataset = calibration_images(int8)
    assert dataset is not None  # the options hold a file or images

    def progress(step: CalibrationStep) -> None:
        left = "" if step.eta is None else f", {step.eta:.0f} s left"
        report(f"{step.done} of {len(dataset)} images{left}", step.done / len(dataset))

    names = [str(item.image) for item in dataset.items]
    options = CollectOptions(state=state, progress=progress, total=len(dataset), names=names)
    return calibrate(graph, pixels(dataset), settings=int8.settings, options=options)


def refine(int8: Int8Options, graphs: QuantizedGraphs, plan: Plan, *, report: Report) -> Plan:
    """The plan with SmoothQuant's strength searched, where that was asked for, and biases corrected, where it says so.

    The strength is the one whose logits differ least from the FP32 graph's, in mean square, over the first `SEARCHED`
    calibration images. Raises `UsageError` for a plan that corrects biases without images to do so on.
    """
    images = calibration_images(int8)
    if int8.smooth == SEARCH and int8.plan is None:
        assert images is not None  # the options saw to it
        some = list(pixels(images.spread(SEARCHED)))
        wanted = graphs.logits(None, some)
        errors: dict[float | None, float] = {}
        for strength in (None, *STRENGTHS):
            report(f"SmoothQuant {strength or 'none'}", len(errors) / (len(STRENGTHS) + 1))
            errors[strength] = relative_error(graphs.logits(replace(plan, smooth=strength), some), wanted)
        plan = replace(plan, smooth=min(errors, key=lambda each: errors[each]))
        log.info("SmoothQuant: relative squared error of the logits by strength: %s", errors)
    if plan.bias_correction:
        if images is None:
            raise UsageError("the plan corrects biases on images, and there are none", "name some: --calib-data")
        report("bias correction", None)
        graphs.correct_biases(plan, pixels(images))
    return plan


def first_plan(int8: Int8Options, sites: tuple[Site, ...], *, model: str) -> Plan:
    """The plan file that the options name, else the uniform plan of their level.

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

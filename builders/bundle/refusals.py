"""Values of a request that are refused: impossible ones, and idle ones, which would have no effect."""

from __future__ import annotations

from collections.abc import Iterable

from twins_trt.builders.bundle.targets import CPU
from twins_trt.builders.engine import EngineOptions
from twins_trt.errors import UsageError
from twins_trt.models.zoo import check_num_classes, check_padding
from twins_trt.spelling import spelled
from twins_trt.verbs import build as verb
from twins_trt.verbs.build import DEFAULTS, BuildRequest

PRECISIONS = ("fp32", "fp16", "int8")


def refuse_impossible(request: BuildRequest) -> None:
    """Raises `UsageError` for a value that is wrong whatever the other values are."""
    if request.threads is not None and request.threads < 1:
        raise UsageError(f"{spelled('threads')} is {request.threads}", "give at least 1, or leave it out")
    if request.padding is not None:
        check_padding(request.padding)
    if request.num_classes is not None:
        check_num_classes(request.num_classes)
    if request.precision not in (None, *PRECISIONS):
        raise UsageError(
            f"{spelled('precision')} cannot be {request.precision!r}", f"use one of {', '.join(PRECISIONS)}"
        )


def refuse_idle(request: BuildRequest, precision: str, engines: tuple[EngineOptions, ...]) -> None:
    """Raises `UsageError` for a value that would have no effect, such as a threshold without a gate.

    precision, engines: of the build, as they were decided.
    """

    def given(names: Iterable[str]) -> str | None:
        """The first of the fields that has a value of its own."""
        for name in names:
            value = getattr(request, name)
            if value is None or (isinstance(value, bool) and value == getattr(DEFAULTS, name)):
                continue  # a switch at its default has no effect
            return name
        return None

    def fields(group: str) -> list[str]:
        return [flag.field for flag in verb.TABLE if flag.group == group]

    if precision != "int8" and (idle := given([*fields(verb.INT8), *fields(verb.RANGES), "no_gate"])):
        raise UsageError(
            f"{spelled(idle)} applies only to INT8 builds", f"add {spelled('precision', 'int8')}, or leave it out"
        )
    if precision != "int8" and (idle := given(("fallback", "max_evaluations"))):
        raise UsageError(f"{spelled(idle)} applies only to INT8 builds", "leave it out")
    if request.calibration is not None and (idle := given(("percentile", "bins", "minimum", "fit"))):
        raise UsageError(
            f"{spelled(idle)} applies only to calibration, and {spelled('calibration')} has its ranges", "leave it out"
        )
    gating = [name for name in fields(verb.GATE) if name not in ("gate_on", "no_gate")]
    if request.gate_on is None and (idle := given(gating)):
        raise UsageError(f"{spelled(idle)} needs images to judge on", f"name some: {spelled('gate_on', 'KIND:PATH')}")
    if request.calibrate_on is None and (idle := given(("calib_split", "calib_images"))):
        raise UsageError(
            f"{spelled(idle)} needs images to calibrate on", f"name some: {spelled('calibrate_on', 'KIND:PATH')}"
        )
    of_engines = [name for name in fields(verb.ENGINES) if name not in ("targets", "with_weights")]
    if not engines and (idle := given(of_engines)):
        raise UsageError(
            f"{spelled(idle)} applies only to engines, and the target {CPU} has none",
            "leave it out, or name GPUs as targets",
        )

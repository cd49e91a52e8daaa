"""Values of a request that are refused: impossible ones, and idle ones, which would have no effect."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from twins_trt.builders.bundle.targets import TENSORRT, TargetChoice
from twins_trt.builders.engine.devices import CPU
from twins_trt.builders.export import ExportOptions
from twins_trt.builders.plan.levels import FIRST_OPSET
from twins_trt.errors import UsageError
from twins_trt.models.zoo import check_num_classes, check_padding
from twins_trt.runtime.archive import holds_bundle
from twins_trt.runtime.manifest import MANIFEST
from twins_trt.spelling import spelled
from twins_trt.verbs import build as verb
from twins_trt.verbs.build import DEFAULTS, BuildRequest

PRECISIONS = ("fp32", "fp16", "int8")


def refuse_impossible(request: BuildRequest) -> None:
    """Raises `UsageError` for a value that is wrong whatever the other values are."""
    if request.model is not None and _is_bundle(Path(request.model)):
        raise UsageError(
            f"{request.model} is a bundle, and a build needs a model or a checkpoint",
            f"to compile the bundle's graph for the GPU of this machine: "
            f"twins-trt compile {shlex.quote(request.model)}",
        )
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


def _is_bundle(path: Path) -> bool:
    return path.suffix == ".bundle" or (path / MANIFEST).is_file() or holds_bundle(path)


def check_opset(graph: ExportOptions, choice: TargetChoice, *, int8: bool) -> None:
    """Raises `UsageError` for an opset that a target's TensorRT does not read, or that INT8 beside FP16 lacks."""
    limiting, ceiling = choice.limiting, choice.opset
    reader = ""
    if limiting is not None and ceiling is not None:
        reader = f"TensorRT {limiting.tensorrt} of {limiting.text} reads opset {ceiling} at most"
    if int8 and choice.gpu and reader and ceiling is not None and ceiling < FIRST_OPSET:
        raise UsageError(
            f"INT8 beside FP16 needs opset {FIRST_OPSET} or later, and {reader}",
            f"build {spelled('precision', 'fp16')}, or for {spelled('jetpack', '6.1')} or later",
        )
    if int8 and choice.gpu and graph.opset < FIRST_OPSET:
        raise UsageError(
            f"INT8 beside FP16 needs opset {FIRST_OPSET} or later, not {graph.opset}", f"leave {spelled('opset')} out"
        )
    if ceiling is not None and graph.opset > ceiling:
        raise UsageError(f"opset {graph.opset} is too high: {reader}", f"leave {spelled('opset')} out")


def refuse_idle(request: BuildRequest, precision: str, choice: TargetChoice) -> None:
    """Raises `UsageError` for a value that would have no effect, such as a threshold without a gate.

    precision, choice: of the build, as they were decided.
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
    of_engines = [name for name in fields(verb.ENGINES) if name not in ("targets", "jetpack", "with_weights")]
    if not choice.gpu and (idle := given(of_engines)):
        raise UsageError(
            f"{spelled(idle)} applies only to engines, and the target {CPU} has none",
            "leave it out, or name GPUs as targets",
        )
    of_compilers = {"workspace", "optimization_level", "timing_cache", "hardware_compatibility"}
    if any(engine.flavour == TENSORRT for engine in choice.engines) or not choice.awaits:
        return
    if choice.engines:  # of TensorRT-RTX, which has the other two
        of_compilers = {"timing_cache", "hardware_compatibility"}
    if idle := given(name for name in of_engines if name in of_compilers):
        there = "" if idle == "hardware_compatibility" else ", and give it to twins-trt compile on the device"
        raise UsageError(
            f"{spelled(idle)} applies only to an engine that is compiled here, and the device compiles its own",
            f"leave it out{there}",
        )

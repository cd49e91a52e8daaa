"""From the request of a build to its job: decides every default, and checks that everything fits together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from twins_trt.builders.bundle.job import BuildJob, EngineJob
from twins_trt.builders.bundle.refusals import check_opset, refuse_idle, refuse_impossible
from twins_trt.builders.bundle.targets import TargetChoice, choose_targets, engine_jobs, nearest_jobs
from twins_trt.builders.engine.devices import CPU
from twins_trt.builders.export import ExportOptions
from twins_trt.builders.gate.options import GateOptions, Thresholds
from twins_trt.builders.plan.levels import INT8_OPSET, LEVELS
from twins_trt.builders.quantize.options import CalibrationImages, Int8Options
from twins_trt.calib.options import CalibrationOptions
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.errors import UsageError
from twins_trt.inference.fitting import fit_mode
from twins_trt.models.weights import FoundModel, find_model
from twins_trt.runtime.bundle import PACKED
from twins_trt.runtime.manifest import AwaitedEngine
from twins_trt.spelling import spelled
from twins_trt.verbs.build import DEFAULTS, SEARCH, BuildRequest
from twins_trt.verbs.request import either


def resolve(request: BuildRequest) -> BuildJob:
    """The job of a request. Writes and compiles nothing; reads a checkpoint if nothing else tells the model.

    Raises `UsageError` for values that do not fit together or would do nothing, `CheckpointError` and `UsageError` for
    missing weights, `MissingDependencyError` for a missing compiler, or a missing GPU that it needs.
    """
    refuse_impossible(request)
    out = _out(request.out)
    model = find_model(
        request.model,
        checkpoint=request.checkpoint,
        seeded=either(request.seeded, DEFAULTS.seeded),
        num_classes=request.num_classes,
        padding=request.padding,
        weights=request.weights or "auto",
        conventions=request.conventions,
    )
    choice = _targets(request)
    precision = either(request.precision, "fp16" if choice.gpu else "fp32")
    refuse_idle(request, precision, choice)
    graph = _graph(request, choice, precision, crop_size=model.spec.crop_size)
    graph.check_model(model.spec, threshold=model.conventions.threshold)
    preprocessing = _preprocessing(request, graph, model.conventions.preprocessing)
    jobs = engine_jobs(choice.engines, graph)
    return BuildJob(
        request=_with_decisions(request, model, graph=graph, precision=precision, engines=jobs, choice=choice),
        out=out,
        overwrite=either(request.overwrite, DEFAULTS.overwrite),
        found=model,
        graph=graph,
        preprocessing=preprocessing,
        engines=jobs,
        awaits=tuple(AwaitedEngine(each.target, each.name, each.tensorrt) for each in choice.awaits),
        nearest=nearest_jobs(choice.awaits, jobs, graph) if choice.awaits else (),
        allow_unfused=either(request.allow_unfused, DEFAULTS.allow_unfused),
        with_weights=either(request.with_weights, DEFAULTS.with_weights),
        int8=_int8(request, preprocessing) if precision == "int8" else None,
        gate=_gate(request, precision),
        threads=request.threads,
    )


def _out(name: str | None) -> Path:
    if name is None:
        raise UsageError("no bundle is named to write", f"name one: {spelled('out', 'x.bundle')}")
    out = Path(name)
    if not out.name:
        raise UsageError(f"{name} is not a name for a bundle", "give a new folder, such as x.bundle")
    if out.name.endswith(PACKED):
        raise UsageError(
            f"{name}: a build writes a folder, not a packed bundle",
            f"name a folder, such as {spelled('out', 'x.bundle')}: twins-trt export-to device packs it",
        )
    return out


def _graph(request: BuildRequest, choice: TargetChoice, precision: str, *, crop_size: tuple[int, int]) -> ExportOptions:
    """How the graph is written. For an INT8 build: how the FP32 graph is written that is calibrated."""
    quantized = precision == "int8"
    height, width = either(request.size, crop_size)
    graph = ExportOptions(
        height=height,
        width=width,
        batch=either(request.batch, DEFAULTS.batch),
        precision="fp32" if quantized else precision,
        opset=either(request.opset, INT8_OPSET if quantized else ExportOptions.opset),
        input=either(request.input, DEFAULTS.input),
        outputs=either(request.outputs, DEFAULTS.outputs),
        target="gpu" if choice.gpu else "cpu",
        upernet_levels=request.upernet_levels,
    )
    check_opset(graph, choice, int8=quantized)
    return graph


def _preprocessing(request: BuildRequest, graph: ExportOptions, told: Preprocessing) -> Preprocessing:
    """What is done to an image. A graph of fixed size sees every image at that size, so it follows no test scale."""
    unscaled = replace(told, test_scale=None, keep_ratio=True)
    if isinstance(request.test_scale, str):  # none
        return unscaled
    if request.test_scale is None:
        return told if graph.dynamic_size else unscaled
    if not graph.dynamic_size:
        raise UsageError(
            "a test scale needs a graph of dynamic size: one of fixed size sees every image at that size",
            f"leave {spelled('test_scale')} out, or give the size as MIN:OPT:MAXxMIN:OPT:MAX",
        )
    return replace(unscaled, test_scale=request.test_scale)


def _targets(request: BuildRequest) -> TargetChoice:
    return choose_targets(
        either(request.targets, ()),
        jetpack=request.jetpack,
        flavours=either(request.flavour, DEFAULTS.flavour),
        workspace_mib=request.workspace,
        optimization_level=request.optimization_level,
        timing_cache=request.timing_cache,
        hardware_compatibility=either(request.hardware_compatibility, DEFAULTS.hardware_compatibility),
    )


def _int8(request: BuildRequest, preprocessing: Preprocessing) -> Int8Options:
    level = either(request.level, DEFAULTS.level)
    if level not in LEVELS:
        raise UsageError(f"unknown precision level {level!r}", f"use one of {', '.join(LEVELS)}")
    if not request.no_gate and request.gate_on is None:
        raise UsageError(
            "an INT8 build needs a gate",
            f"name labelled images to judge it on: {spelled('gate_on', 'KIND:PATH')}, or leave it unjudged: "
            f"{spelled('no_gate', True)}",
        )
    images = None
    if request.calibrate_on is not None:
        count = either(request.calib_images, DEFAULTS.calib_images)
        if count < 0:
            raise UsageError(f"{count} calibration images", "give how many, or 0 for all")
        images = CalibrationImages(request.calibrate_on, either(request.calib_split, DEFAULTS.calib_split), count)
    ranges = images if request.calibration is None else request.calibration
    if ranges is None:
        raise UsageError(
            "INT8 needs the ranges of the activations",
            f"name images to calibrate on: {spelled('calibrate_on', 'KIND:PATH')}, "
            f"or a range file: {spelled('calibration', 'FILE')}",
        )
    bias_correction = either(request.bias_correction, DEFAULTS.bias_correction)
    if bias_correction and images is None:
        raise _no_images("biases are corrected")
    return Int8Options(
        level=level,
        plan=request.plan,
        ranges=ranges,
        images=images,
        calibration=CalibrationOptions(
            observers=either(request.observers, DEFAULTS.observers),
            percentile=either(request.percentile, DEFAULTS.percentile),
            bins=either(request.bins, DEFAULTS.bins),
            minimum=either(request.minimum, DEFAULTS.minimum),
            fit=fit_mode(either(request.fit, DEFAULTS.fit)),
            preprocessing=preprocessing,
        ),
        smooth=_smooth(either(request.smooth, DEFAULTS.smooth), images),
        bias_correction=bias_correction,
    )


def _smooth(smooth: float | str, images: CalibrationImages | None) -> float | CalibrationImages | None:
    """SmoothQuant's strength, the images that it is searched on, or None."""
    if isinstance(smooth, float):
        if not 0 <= smooth <= 1:
            raise UsageError(f"a SmoothQuant strength of {smooth}", f"give 0 to 1, {SEARCH} or none")
        return smooth
    if smooth != SEARCH:
        return None
    if images is None:
        raise _no_images("SmoothQuant's strength is searched")
    return images


def _no_images(what: str) -> UsageError:
    return UsageError(
        f"{what} on images, and no images are given", f"name some: {spelled('calibrate_on', 'KIND:PATH')}"
    )


def _gate(request: BuildRequest, precision: str) -> GateOptions | None:
    if request.gate_on is None:
        return None
    if request.no_gate:
        raise UsageError(
            f"{spelled('no_gate', True)} and a gate exclude each other",
            f"leave {spelled('no_gate')} or {spelled('gate_on')} out",
        )
    if request.gate_limit is not None and request.gate_limit < 1:
        raise UsageError(f"a gate on {request.gate_limit} images", "give a limit of at least 1")
    evaluations = either(request.max_evaluations, DEFAULTS.max_evaluations)
    if evaluations < 1:
        raise UsageError(f"at most {evaluations} evaluations", "give 1 or more")
    return GateOptions(
        data=request.gate_on,
        split=either(request.gate_split, DEFAULTS.gate_split),
        limit=request.gate_limit,
        thresholds=Thresholds.of(
            precision,
            max_drop=request.max_drop,
            min_images=either(request.min_images, DEFAULTS.min_images),
            min_agreement=request.min_agreement,
            accept_reference=either(request.accept_reference, DEFAULTS.accept_reference),
        ),
        fallback=either(request.fallback, DEFAULTS.fallback),
        max_evaluations=evaluations,
        pack=request.pack,
    )


def _with_decisions(
    request: BuildRequest,
    model: FoundModel,
    *,
    graph: ExportOptions,
    precision: str,
    engines: tuple[EngineJob, ...],
    choice: TargetChoice,
) -> BuildRequest:
    """The request with the decisions that another version or another machine might make differently.

    Fields that hold their default are None again: they are the same everywhere.
    """
    defaults = {name: None for name, value in request.given().items() if value == getattr(DEFAULTS, name, None)}
    ahead = [target for each in engines if each.options.flavour == "tensorrt_rtx" for target in each.options.targets]
    targets = (*ahead, *choice.named) if choice.gpu else (CPU,)
    return replace(
        replace(request, **defaults),
        model=model.name,
        checkpoint=model.checkpoint,
        size=(graph.height, graph.width),
        precision=precision,
        targets=targets or None,  # none where TensorRT builds for the GPU of the machine that builds
        flavour=choice.flavours or None,
    )

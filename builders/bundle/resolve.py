"""From what was asked of a build to what is done: every default is decided here, every combination checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from twins_trt.builders.bundle.job import BuildJob, EngineJob
from twins_trt.builders.bundle.targets import CPU, engines_for
from twins_trt.builders.engine import EngineOptions, current_device, describe, load
from twins_trt.builders.engine.versions import settle_targets
from twins_trt.builders.export import ExportOptions
from twins_trt.builders.export.shapes import profile
from twins_trt.builders.gate.options import GateOptions, Thresholds
from twins_trt.builders.plan.levels import FIRST_OPSET, INT8_OPSET, LEVELS
from twins_trt.builders.quantize.options import CalibrationImages, Int8Options
from twins_trt.calib.settings import CalibrationOptions
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.errors import UsageError
from twins_trt.models.telling import tell_model
from twins_trt.models.weights import find_weights
from twins_trt.models.zoo import PADDINGS, get_spec
from twins_trt.spelling import spelled
from twins_trt.verbs import build as verb
from twins_trt.verbs.build import DEFAULTS, SEARCH, BuildRequest
from twins_trt.verbs.meanings import fit_of
from twins_trt.verbs.request import either

PRECISIONS = ("fp32", "fp16", "int8")


def resolve(asked: BuildRequest) -> BuildJob:
    """The job of a request. Reads a checkpoint where nothing else tells the model; writes and compiles nothing.

    Raises `UsageError` for what does not fit together or would do nothing, `CheckpointError` and `UsageError` where
    there are no weights, `MissingDependencyError` where a compiler, or the GPU it needs, is not there.
    """
    out = _out(asked.out)
    _refuse_impossible(asked)
    model, checkpoint = tell_model(asked.model, asked.checkpoint)
    weights = find_weights(model, checkpoint=checkpoint, seeded=either(asked.seeded, DEFAULTS.seeded))
    engines = _engines(asked)
    precision = either(asked.precision, "fp16" if engines else "fp32")
    _refuse_idle(asked, precision, engines)
    graph = _graph(asked, engines, precision, crop_size=get_spec(model).crop_size)
    test_scale = _test_scale(asked, graph)
    settled = _settled(engines, graph)
    return BuildJob(
        request=_with_decisions(asked, model, checkpoint, graph, precision, settled),
        out=out,
        overwrite=either(asked.overwrite, DEFAULTS.overwrite),
        model=model,
        weights=weights,
        published=weights is not None and checkpoint is None,
        num_classes=asked.num_classes,
        padding=either(asked.padding, DEFAULTS.padding),
        graph=graph,
        test_scale=test_scale,
        engines=settled,
        allow_unfused=either(asked.allow_unfused, DEFAULTS.allow_unfused),
        with_weights=either(asked.with_weights, DEFAULTS.with_weights),
        int8=_int8(asked, test_scale) if precision == "int8" else None,
        gate=_gate(asked, precision),
        threads=asked.threads,
    )


def _out(asked: str | None) -> Path:
    if asked is None:
        raise UsageError("no bundle is named to write", f"name one: {spelled('out', 'x.bundle')}")
    out = Path(asked)
    if not out.name:
        raise UsageError(f"{asked} is not a name for a bundle", "give a new folder, such as x.bundle")
    return out


def _refuse_impossible(asked: BuildRequest) -> None:
    """Values that fit nothing, whatever the rest says."""
    if asked.threads is not None and asked.threads < 1:
        raise UsageError(f"{spelled('threads')} is {asked.threads}", "give at least 1, or leave it out")
    if asked.padding not in (None, *PADDINGS):
        raise UsageError(
            f"{spelled('padding')} must be one of {', '.join(PADDINGS)}, not {asked.padding!r}",
            f"use {spelled('padding', 'parity')}",
        )
    if asked.num_classes is not None and not 1 <= asked.num_classes <= 255:
        raise UsageError(
            f"{spelled('num_classes')} must be 1 to 255 (masks are uint8), not {asked.num_classes}",
            f"check {spelled('num_classes')}",
        )
    if asked.precision not in (None, *PRECISIONS):
        raise UsageError(f"{spelled('precision')} cannot be {asked.precision!r}", f"use one of {', '.join(PRECISIONS)}")


def _refuse_idle(asked: BuildRequest, precision: str, engines: tuple[EngineOptions, ...]) -> None:
    """What would do nothing is refused: a build without the gate that was meant is no build that was meant."""

    def said(names: Iterable[str]) -> str | None:
        for name in names:
            value = getattr(asked, name)
            if value is None or (isinstance(value, bool) and value == getattr(DEFAULTS, name)):
                continue  # a switch that is left as it is asks for nothing
            return name
        return None

    def of(group: str) -> list[str]:
        return [flag.field for flag in verb.TABLE if flag.group == group]

    if precision != "int8" and (idle := said([*of(verb.INT8), *of(verb.RANGES), "no_gate"])):
        raise UsageError(
            f"{spelled(idle)} is of INT8 builds alone", f"add {spelled('precision', 'int8')}, or leave it out"
        )
    if precision != "int8" and (idle := said(("fallback", "max_evaluations"))):
        raise UsageError(f"{spelled(idle)} is of INT8 builds alone", "leave it out")
    if asked.calibration is not None and (idle := said(("percentile", "bins", "minimum", "fit"))):
        raise UsageError(
            f"{spelled(idle)} is of calibrating, and {spelled('calibration')} has its ranges", "leave it out"
        )
    gating = [name for name in of(verb.GATE) if name not in ("gate_on", "no_gate")]
    if asked.gate_on is None and (idle := said(gating)):
        raise UsageError(f"{spelled(idle)} needs images to judge on", f"name some: {spelled('gate_on', 'KIND:PATH')}")
    if asked.calibrate_on is None and (idle := said(("calib_split", "calib_images"))):
        raise UsageError(
            f"{spelled(idle)} needs images to calibrate on", f"name some: {spelled('calibrate_on', 'KIND:PATH')}"
        )
    if not engines and (idle := said(name for name in of(verb.ENGINES) if name not in ("targets", "with_weights"))):
        raise UsageError(
            f"{spelled(idle)} is of engines, and the target {CPU} has none", "leave it out, or name GPUs as targets"
        )


def _graph(
    asked: BuildRequest, engines: tuple[EngineOptions, ...], precision: str, *, crop_size: tuple[int, int]
) -> ExportOptions:
    """How the graph is written; of an INT8 build the FP32 graph that is calibrated."""
    quantized = precision == "int8"
    height, width = either(asked.size, crop_size)
    graph = ExportOptions(
        height=height,
        width=width,
        batch=either(asked.batch, DEFAULTS.batch),
        precision="fp32" if quantized else precision,
        opset=either(asked.opset, INT8_OPSET if quantized else ExportOptions.opset),
        input=either(asked.input, DEFAULTS.input),
        outputs=either(asked.outputs, DEFAULTS.outputs),
        target="gpu" if engines else "cpu",
        upernet_levels=asked.upernet_levels,
    )
    if quantized and engines and graph.opset < FIRST_OPSET:
        raise UsageError(
            f"INT8 beside FP16 needs opset {FIRST_OPSET} or later, not {graph.opset}", f"leave {spelled('opset')} out"
        )
    return graph


def _test_scale(asked: BuildRequest, graph: ExportOptions) -> tuple[int, int] | None:
    if asked.test_scale is None or isinstance(asked.test_scale, str):
        return None
    if not graph.dynamic_size:
        raise UsageError(
            "a test scale needs a graph of dynamic size: one of fixed size sees every image at that size",
            f"leave {spelled('test_scale')} out, or give the size as MIN:OPT:MAXxMIN:OPT:MAX",
        )
    return asked.test_scale


def _engines(asked: BuildRequest) -> tuple[EngineOptions, ...]:
    return engines_for(
        either(asked.targets, ()),
        flavours=either(asked.flavour, DEFAULTS.flavour),
        workspace_mib=asked.workspace,
        optimization_level=asked.optimization_level,
        timing_cache=asked.timing_cache,
        hardware_compatibility=either(asked.hardware_compatibility, DEFAULTS.hardware_compatibility),
    )


def _settled(engines: tuple[EngineOptions, ...], graph: ExportOptions) -> tuple[EngineJob, ...]:
    """The engines with their targets, files and compilers."""
    jobs = []
    device = current_device()
    for engine in engines:
        compiler = describe(load(engine.flavour), engine.flavour)
        try:
            targets = settle_targets(compiler, engine, device)
        except UsageError as error:
            fix = error.fix if engine.targets else f"{error.fix} ({spelled('targets', 'sm_86,sm_89')}), or {CPU}"
            raise UsageError(error.cause, fix) from error
        file = f"engines/{'-'.join((engine.flavour, *targets))}.engine"
        jobs.append(EngineJob(file, replace(engine, targets=targets, profile=profile(graph)), compiler.name))
    if len({job.file for job in jobs}) < len(jobs):
        raise UsageError("two engines are of one flavour and for the same targets", "name each of them once")
    return tuple(jobs)


def _int8(asked: BuildRequest, test_scale: tuple[int, int] | None) -> Int8Options:
    level = either(asked.level, DEFAULTS.level)
    if level not in LEVELS:
        raise UsageError(f"unknown precision level {level!r}", f"use one of {', '.join(LEVELS)}")
    if not asked.no_gate and asked.gate_on is None:
        raise UsageError(
            "an INT8 build needs a gate",
            f"name labelled images to judge it on: {spelled('gate_on', 'KIND:PATH')}, or leave it unjudged: "
            f"{spelled('no_gate', True)}",
        )
    images = None
    if asked.calibrate_on is not None:
        count = either(asked.calib_images, DEFAULTS.calib_images)
        if count < 0:
            raise UsageError(f"{count} calibration images", "give how many, or 0 for all")
        images = CalibrationImages(asked.calibrate_on, either(asked.calib_split, DEFAULTS.calib_split), count)
    ranges = images if asked.calibration is None else asked.calibration
    if ranges is None:
        raise UsageError(
            "INT8 needs the ranges of the activations",
            f"name images to calibrate on: {spelled('calibrate_on', 'KIND:PATH')}, "
            f"or a range file: {spelled('calibration', 'FILE')}",
        )
    corrects = either(asked.bias_correction, DEFAULTS.bias_correction)
    if corrects and images is None:
        raise _no_images("biases are corrected")
    return Int8Options(
        level=level,
        plan=asked.plan,
        ranges=ranges,
        images=images,
        calibration=CalibrationOptions(
            observers=either(asked.observers, DEFAULTS.observers),
            percentile=either(asked.percentile, DEFAULTS.percentile),
            bins=either(asked.bins, DEFAULTS.bins),
            minimum=either(asked.minimum, DEFAULTS.minimum),
            fit=fit_of(either(asked.fit, DEFAULTS.fit)),
            preprocessing=Preprocessing(test_scale=test_scale),
        ),
        smooth=_smooth(either(asked.smooth, DEFAULTS.smooth), images),
        bias_correction=corrects,
    )


def _smooth(asked: float | str, images: CalibrationImages | None) -> float | CalibrationImages | None:
    if isinstance(asked, float):
        if not 0 <= asked <= 1:
            raise UsageError(f"a SmoothQuant strength of {asked}", f"give 0 to 1, {SEARCH} or none")
        return asked
    if asked != SEARCH:
        return None
    if images is None:
        raise _no_images("SmoothQuant's strength is searched")
    return images


def _no_images(what: str) -> UsageError:
    return UsageError(f"{what} on images, and there are none", f"name some: {spelled('calibrate_on', 'KIND:PATH')}")


def _gate(asked: BuildRequest, precision: str) -> GateOptions | None:
    if asked.gate_on is None:
        return None
    if asked.no_gate:
        raise UsageError(
            f"{spelled('no_gate', True)} and a gate exclude each other",
            f"leave {spelled('no_gate')} or {spelled('gate_on')} out",
        )
    if asked.gate_limit is not None and asked.gate_limit < 1:
        raise UsageError(f"a gate on {asked.gate_limit} images", "give a limit of at least 1")
    evaluations = either(asked.max_evaluations, DEFAULTS.max_evaluations)
    if evaluations < 1:
        raise UsageError(f"at most {evaluations} evaluations", "give 1 or more")
    return GateOptions(
        data=asked.gate_on,
        split=either(asked.gate_split, DEFAULTS.gate_split),
        limit=asked.gate_limit,
        thresholds=Thresholds.of(
            precision,
            max_drop=asked.max_drop,
            min_images=either(asked.min_images, DEFAULTS.min_images),
            min_agreement=asked.min_agreement,
        ),
        fallback=either(asked.fallback, DEFAULTS.fallback),
        max_evaluations=evaluations,
    )


def _with_decisions(
    asked: BuildRequest,
    model: str,
    checkpoint: str | None,
    graph: ExportOptions,
    precision: str,
    engines: tuple[EngineJob, ...],
) -> BuildRequest:
    """The request that says what a later default or another machine would decide otherwise, and no usual value."""
    usual = {name: None for name, value in asked.given().items() if value == getattr(DEFAULTS, name, None)}
    targets = [target for each in engines if each.options.flavour == "tensorrt_rtx" for target in each.options.targets]
    return replace(
        replace(asked, **usual),
        model=model,
        checkpoint=checkpoint,
        size=(graph.height, graph.width),
        precision=precision,
        # TensorRT builds for the GPU of the machine, whichever that is then.
        targets=(tuple(targets) or None) if engines else (CPU,),
        flavour=tuple(dict.fromkeys(each.options.flavour for each in engines)) or None,
    )

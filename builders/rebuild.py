"""The command line that builds the same bundle again."""

from __future__ import annotations

import shlex
from pathlib import Path

from twins_trt.builders.build_options import CPU, BuildOptions, default_opset
from twins_trt.builders.engine import EngineOptions
from twins_trt.builders.export import ExportOptions, Range
from twins_trt.builders.int8_options import GateOptions, Int8Options
from twins_trt.calib.settings import CalibrationSettings


def rebuild_command(options: BuildOptions, out: str | Path) -> str:
    """The shell command that makes the bundle again; what is a default is left out, save size and precision."""
    graph, default = options.graph, ExportOptions()
    words = ["twins-trt", "build", options.model]
    words += ["--seeded"] if options.seeded else []
    words += _words("--checkpoint", options.checkpoint)
    words += _words("--num-classes", options.num_classes)
    words += _words("--padding", options.padding, unless="parity")
    words += ["--size", f"{_dimension(graph.height)}x{_dimension(graph.width)}", "--precision", options.precision]
    words += _words("--batch", _dimension(graph.batch), unless="1")
    words += _words("--opset", graph.opset, unless=default_opset(options.precision))
    words += _words("--input", graph.input, unless=default.input)
    words += _words("--outputs", ",".join(graph.outputs), unless=",".join(default.outputs))
    words += _words("--upernet-levels", graph.upernet_levels)
    words += _words("--test-scale", None if options.test_scale is None else "x".join(map(str, options.test_scale)))
    words += _engine_words(options.engines)
    words += ["--allow-unfused"] if options.allow_unfused else []
    words += [] if options.int8 is None else _int8_words(options.int8)
    words += [] if options.gate is None else _gate_words(options.gate)
    words += ["--no-gate"] if options.no_gate else []
    words += ["--with-weights"] if options.with_weights else []
    return shlex.join([*words, "--out", str(out)])


def _engine_words(engines: tuple[EngineOptions, ...]) -> list[str]:
    if not engines:
        return ["--target", CPU]
    targets = [target for engine in engines if engine.flavour == "tensorrt_rtx" for target in engine.targets]
    flavours = dict.fromkeys(engine.flavour for engine in engines)
    settings = engines[-1]  # the same for all, save the compatibility, which only TensorRT's engine has
    return [
        *_words("--target", ",".join(targets) or None),
        *_words("--flavour", ",".join(flavours)),
        *_words("--workspace", settings.workspace_mib),
        *_words("--optimization-level", settings.optimization_level),
        *_words("--timing-cache", settings.timing_cache),
        *_words("--hardware-compatibility", settings.hardware_compatibility, unless="none"),
    ]


def _int8_words(int8: Int8Options) -> list[str]:
    default, settings, usual = Int8Options(data=""), int8.settings, CalibrationSettings()
    return [
        *_words("--level", None if int8.plan else int8.level, unless=default.level),
        *_words("--plan", int8.plan),
        *_words("--calib-data", int8.data),
        *_words("--calib-split", int8.split, unless=default.split),
        *_words("--calib-images", int8.images, unless=default.images),
        *_words("--calibration", int8.calibration),
        *_words("--observer", ",".join(settings.observers), unless=",".join(usual.observers)),
        *_words("--percentile", settings.percentile, unless=usual.percentile),
        *_words("--bins", settings.bins, unless=usual.bins),
        *_words("--minimum", settings.minimum, unless=usual.minimum),
        *_words("--fit", settings.fit, unless=usual.fit),
        *_words("--smooth", int8.smooth),
        *(["--bias-correction"] if int8.bias_correction else []),
    ]


def _gate_words(gate: GateOptions) -> list[str]:
    default = GateOptions("")
    return [
        *_words("--gate-data", gate.data),
        *_words("--gate-split", gate.split, unless=default.split),
        *_words("--gate-limit", gate.limit),
        *_words("--max-drop", gate.max_drop),
        *_words("--min-images", gate.min_images, unless=default.min_images),
        *_words("--min-agreement", gate.min_agreement),
        *([] if gate.fallback else ["--no-fallback"]),
        *_words("--max-evaluations", gate.max_evaluations, unless=default.max_evaluations),
        *_words("--threads", gate.threads),
    ]


def _words(option: str, value: object, *, unless: object = None) -> list[str]:
    return [] if value is None or value == unless else [option, str(value)]


def _dimension(value: int | Range) -> str:
    return f"{value.min}:{value.opt}:{value.max}" if isinstance(value, Range) else str(value)

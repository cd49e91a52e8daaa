"""What to build, as one value: from targets to engines, and back to the command that builds the same again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twins_trt.builders.engine import EngineOptions, group_targets, parse_target
from twins_trt.builders.export import ExportOptions, Range
from twins_trt.errors import UsageError
from twins_trt.runtime.codec import decode, encode

CPU = "cpu"
"""The target that stands for no engine at all: the graph itself, on ONNX Runtime."""


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    model: a name of the zoo. graph, engines: how the graph is written and what is compiled from it; without engines the
    bundle holds the graph only, for ONNX Runtime. Profiles of dynamic graphs are set from the graph's ranges.
    checkpoint, seeded, num_classes, padding: as `load_weights` takes them. test_scale: (long, short) side that an image
    is fitted into before a graph of dynamic size sees it. allow_unfused: take engines with unfused attentions too.
    """

    model: str
    graph: ExportOptions = field(default_factory=ExportOptions)
    engines: tuple[EngineOptions, ...] = ()
    checkpoint: str | None = None
    seeded: bool = False
    num_classes: int | None = None
    padding: str = "parity"
    test_scale: tuple[int, int] | None = None
    allow_unfused: bool = False

    def __post_init__(self) -> None:
        if self.test_scale is not None and not self.graph.dynamic_size:
            raise UsageError(
                "a test scale needs a graph of dynamic size: one of fixed size sees every image at that size",
                "leave the test scale out, or give the size as MIN:OPT:MAXxMIN:OPT:MAX",
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        plain: dict[str, Any] = encode(self)
        return plain

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BuildOptions:
        """The inverse of `to_json`. Raises UsageError with the field that does not fit."""
        try:
            return decode(cls, dict(values))
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"build options: {error}") from error


def engines_for(
    targets: Sequence[str],
    *,
    flavours: Sequence[str] = ("auto",),
    workspace_mib: int | None = None,
    optimization_level: int | None = None,
    timing_cache: str | None = None,
    hardware_compatibility: str = "none",
) -> tuple[EngineOptions, ...]:
    """The engines for `targets`: as few as cost none of the targets anything (SM75 gets one of its own).

    targets: compute capabilities; empty for the GPU of this machine; `cpu`, alone, for no engine. flavours:
    `tensorrt_rtx`, `tensorrt` or both, or `auto`: TensorRT-RTX where it is installed, else TensorRT where that is. With
    both, the targets and none of the compatibility are TensorRT-RTX's, and TensorRT builds for the GPU of this machine.
    The rest is as in `EngineOptions`.
    Raises `UsageError` for targets and flavours that do not exist or do not go together.
    """
    named = [target.strip().lower() for target in targets]
    if CPU in named:
        if set(named) != {CPU}:
            raise UsageError(
                "the target cpu goes alone: its graph is written in another form than one for GPUs",
                "build two bundles, one of them with --target cpu",
            )
        return ()
    if "auto" in flavours:
        flavours = ("tensorrt" if find_spec("tensorrt_rtx") is None and find_spec("tensorrt") else "tensorrt_rtx",)
    flavours = tuple(dict.fromkeys(flavours))
    capabilities = tuple(dict.fromkeys(map(parse_target, targets)))
    engines = []
    for flavour in flavours:
        rtx = flavour == "tensorrt_rtx"
        groups = group_targets(capabilities) if rtx else (capabilities if len(flavours) == 1 else (),)
        for group in groups or ((),):
            engines.append(
                EngineOptions(
                    flavour=flavour,
                    targets=group,
                    workspace_mib=workspace_mib,
                    optimization_level=optimization_level,
                    timing_cache=timing_cache,
                    hardware_compatibility="none" if rtx and len(flavours) > 1 else hardware_compatibility,
                )
            )
    return tuple(engines)


def rebuild_command(options: BuildOptions, out: str | Path) -> str:
    """The shell command that makes the bundle again; what is a default is left out, save size and precision."""
    graph, default = options.graph, ExportOptions()
    words = ["twins-trt", "build", options.model]
    words += ["--seeded"] if options.seeded else []
    words += _words("--checkpoint", options.checkpoint)
    words += _words("--num-classes", options.num_classes)
    words += _words("--padding", options.padding, unless="parity")
    words += ["--size", f"{_dimension(graph.height)}x{_dimension(graph.width)}", "--precision", graph.precision]
    words += _words("--batch", _dimension(graph.batch), unless="1")
    words += _words("--opset", graph.opset, unless=default.opset)
    words += _words("--input", graph.input, unless=default.input)
    words += _words("--outputs", ",".join(graph.outputs), unless=",".join(default.outputs))
    words += _words("--upernet-levels", graph.upernet_levels)
    words += _words("--test-scale", None if options.test_scale is None else "x".join(map(str, options.test_scale)))
    words += _engine_words(options.engines)
    words += ["--allow-unfused"] if options.allow_unfused else []
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


def _words(option: str, value: object, *, unless: object = None) -> list[str]:
    return [] if value is None or value == unless else [option, str(value)]


def _dimension(value: int | Range) -> str:
    return f"{value.min}:{value.opt}:{value.max}" if isinstance(value, Range) else str(value)

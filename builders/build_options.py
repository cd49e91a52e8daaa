"""What to build, as one value, and from targets to engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from twins_trt.builders.engine import EngineOptions, group_targets, parse_target
from twins_trt.builders.export import ExportOptions
from twins_trt.builders.int8_options import GateOptions, Int8Options
from twins_trt.builders.levels import FIRST_OPSET
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
    int8: how to quantise; `graph` is then the FP32 graph that is calibrated and quantised. gate: what to judge the
    build on; one that fails is not written. no_gate: leave an INT8 build unjudged and marked so; else it needs `gate`.
    with_weights: add `weights.pth`, which the torch engine runs.
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
    int8: Int8Options | None = None
    gate: GateOptions | None = None
    no_gate: bool = False
    with_weights: bool = False

    def __post_init__(self) -> None:
        if self.int8 is not None:
            self._check_int8()
        if self.gate is not None and self.no_gate:
            raise UsageError("--no-gate and a gate exclude each other", "leave --no-gate or --gate-data out")
        if self.test_scale is not None and not self.graph.dynamic_size:
            raise UsageError(
                "a test scale needs a graph of dynamic size: one of fixed size sees every image at that size",
                "leave the test scale out, or give the size as MIN:OPT:MAXxMIN:OPT:MAX",
            )

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `int8`: what a manifest calls the build."""
        return self.graph.precision if self.int8 is None else "int8"

    @property
    def rest(self) -> str:
        """What an INT8 graph computes in where it is not INT8: ONNX Runtime has no FP16 kernels on x86."""
        return "fp16" if self.graph.forms == "gpu" else "fp32"

    def _check_int8(self) -> None:
        if self.graph.precision != "fp32":
            raise UsageError("an INT8 graph is quantised from the FP32 graph", "leave its precision at fp32")
        if self.rest == "fp16" and self.graph.opset < FIRST_OPSET:
            raise UsageError(
                f"INT8 beside FP16 needs opset {FIRST_OPSET} or later, not {self.graph.opset}", "leave --opset out"
            )
        if self.gate is None and not self.no_gate:
            raise UsageError(
                "an INT8 build needs a gate",
                "name labelled images to judge it on: --gate-data KIND:PATH, or leave it unjudged: --no-gate",
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


def default_opset(precision: str) -> int:
    """Of a graph where none is asked for: what TensorRT 8.6 reads, and for INT8 the latest that 10.3 reads."""
    return 20 if precision == "int8" else ExportOptions().opset

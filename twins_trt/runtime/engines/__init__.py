"""The kinds of engines. Their modules have `why_not`, which tells whether the kind can run here, and
`open_engine`."""

from __future__ import annotations

import importlib
import logging
from types import ModuleType
from typing import TYPE_CHECKING

from twins_trt.bindings import NAMES
from twins_trt.device import current_device
from twins_trt.errors import MissingDependencyError, TwinsError, UsageError
from twins_trt.runtime.advice import command_here, lacks_engine
from twins_trt.runtime.engines.protocol import (
    DeviceMemory,
    Engine,
    EngineSource,
    GivesInputBuffers,
    HoldsDeviceMemory,
    InspectsLayers,
    LayerTime,
    OnStage,
    Pipelined,
    ProfilesLayers,
    RunsOnDevice,
    RuntimeOptions,
    Stage,
)
from twins_trt.runtime.memory import PACKAGES, installed

if TYPE_CHECKING:
    from twins_trt.runtime.bundle import Bundle

log = logging.getLogger("twins_trt")

__all__ = [
    "CPU_KINDS",
    "KINDS",
    "DeviceMemory",
    "Engine",
    "EngineSource",
    "GivesInputBuffers",
    "HoldsDeviceMemory",
    "InspectsLayers",
    "LayerTime",
    "OnStage",
    "Pipelined",
    "ProfilesLayers",
    "RunsOnDevice",
    "RuntimeOptions",
    "Stage",
    "check_kind",
    "kind_here",
    "open_current_engine",
    "open_engine",
    "why_not",
]

# In the order in which `auto` prefers them: fastest first. Compared with ONNX Runtime, OpenVINO is faster on a float32
# graph and slower on an INT8 graph, which is what one builds for speed (docs/measurements.md). It also takes longer to
# open, and to run each new size of a dynamic graph for the first time.
KINDS = {
    "tensorrt": "twins_trt.runtime.tensorrt",
    "tensorrt_rtx": "twins_trt.runtime.tensorrt",
    "torch": "twins_trt.runtime.engines.torch",
    "onnxruntime": "twins_trt.runtime.engines.onnxruntime",
    "openvino": "twins_trt.runtime.engines.openvino",
}

# `auto` leaves these out: torch runs the weights, whatever graph and precision the gate judged.
NOT_AUTOMATIC = ("torch",)

# These run the graph on a CPU, even if the bundle has engines: as figures of a GPU's engine, theirs are simulated.
CPU_KINDS = ("onnxruntime", "openvino")


def check_kind(kind: str) -> None:
    """Raises UsageError unless `kind` is one of `KINDS` or `auto`."""
    if kind not in ("auto", *KINDS):
        raise UsageError(f"there is no engine {kind!r}", f"use auto, {', '.join(KINDS)}")


def open_engine(source: EngineSource, kind: str = "auto", *, options: RuntimeOptions | None = None) -> Engine:
    """Opens an engine that runs `source`.

    kind: one of `KINDS`, or `auto` for the first of them that can run here; `auto` never takes torch. If the source is
    for GPUs and has no engine that runs on the GPU of this machine, `auto` logs why, and the command that compiles one.
    Raises UsageError for an unknown kind, MissingDependencyError if a package that the kind needs is absent,
    EngineError if the kind refuses the source.
    """
    options = options or RuntimeOptions()
    check_kind(kind)
    if kind != "auto":
        return _open(kind, source, options)
    name, reasons = _first_that_runs(source)
    if name in CPU_KINDS and current_device() is not None and (source.engines or lacks_engine(source)):
        command = command_here(source)
        for_gpu = "" if command is None else f"; for an engine of this GPU: {command}"
        log.warning("%s runs on the CPU: %s%s", source.path, "; ".join(reasons), for_gpu)
    return _open(name, source, options)


def kind_here(source: EngineSource) -> str:
    """The kind that `auto` takes on this machine. Raises MissingDependencyError if none can run here."""
    return _first_that_runs(source)[0]


def _first_that_runs(source: EngineSource) -> tuple[str, list[str]]:
    """A kind, and why those before it cannot run."""
    reasons: list[str] = []
    for name in (kind for kind in KINDS if kind not in NOT_AUTOMATIC):
        reason = why_not(source, name)
        if reason is None:
            return name, reasons
        reasons.append(f"{name}: {reason}")
    raise MissingDependencyError(f"no engine can run {source.path} here ({'; '.join(reasons)})", _what_helps(source))


def _what_helps(source: EngineSource) -> str:
    """The command after which an engine can run `source` here."""
    command = command_here(source)
    if command is None:
        return 'pip install "twins-trt[cpu]"'
    return command if any(map(installed, PACKAGES)) else 'pip install "twins-trt[cuda]"'


def open_current_engine(bundle: Bundle, kind: str = "auto", *, options: RuntimeOptions | None = None) -> Engine | None:
    """`open_engine` of a bundle. None if another bundle has replaced it meanwhile: the engine may be of either."""
    try:
        engine = open_engine(bundle, kind, options=options)
    except TwinsError:
        if bundle.replaced:
            return None
        raise
    if not bundle.replaced:
        return engine
    engine.close()
    return None


def why_not(source: EngineSource, kind: str) -> str | None:
    """Why an engine of `kind` cannot run `source` on this machine, or None if it can."""
    reason: str | None = _module(kind).why_not(source, *_flavour(kind))
    return reason


def _module(kind: str) -> ModuleType:
    return importlib.import_module(KINDS[kind])


def _flavour(kind: str) -> tuple[str, ...]:
    """What the module of TensorRT is also told, since it serves both flavours; nothing for the others."""
    return (kind,) if kind in NAMES else ()


def _open(kind: str, source: EngineSource, options: RuntimeOptions) -> Engine:
    engine: Engine = _module(kind).open_engine(source, *_flavour(kind), options)
    return engine

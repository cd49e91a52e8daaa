"""The engine kinds, one module each: `why_not(source)` says whether it can run here, `open_engine` opens it."""

from __future__ import annotations

import importlib
import logging
from types import ModuleType

from twins_trt.device import current_device
from twins_trt.errors import MissingDependencyError, UsageError
from twins_trt.runtime.engines.protocol import (
    DeviceMemory,
    Engine,
    EngineSource,
    HoldsDeviceMemory,
    InspectsLayers,
    LayerTime,
    Observe,
    Pipelined,
    ProfilesLayers,
    RunsOnDevice,
    RuntimeOptions,
    Stage,
)

log = logging.getLogger("twins_trt")

__all__ = [
    "CPU_KINDS",
    "KINDS",
    "DeviceMemory",
    "Engine",
    "EngineSource",
    "HoldsDeviceMemory",
    "InspectsLayers",
    "LayerTime",
    "Observe",
    "Pipelined",
    "ProfilesLayers",
    "RunsOnDevice",
    "RuntimeOptions",
    "Stage",
    "check_kind",
    "open_engine",
    "why_not",
]

# In the order in which `auto` prefers them: fastest first. OpenVINO runs a float32 graph faster than ONNX Runtime, and
# an INT8 graph, which is what one builds for speed, slower (docs/measurements.md). It takes longer to open, and again
# for each new size of a dynamic graph.
KINDS = {
    "tensorrt": "twins_trt.runtime.engines.tensorrt",
    "tensorrt_rtx": "twins_trt.runtime.engines.tensorrt_rtx",
    "torch": "twins_trt.runtime.engines.torch",
    "onnxruntime": "twins_trt.runtime.engines.onnxruntime",
    "openvino": "twins_trt.runtime.engines.openvino",
}

# Only by name: it runs the weights, whatever graph and precision the gate judged.
NOT_BY_ITSELF = ("torch",)

# Run the graph on a CPU, whatever else a bundle holds: what they say of a GPU's engine is simulated.
CPU_KINDS = ("onnxruntime", "openvino")


def check_kind(kind: str) -> None:
    """Raises UsageError unless `kind` is a name of `KINDS` or `auto`."""
    if kind not in ("auto", *KINDS):
        raise UsageError(f"there is no engine {kind!r}", f"use auto, {', '.join(KINDS)}")


def open_engine(source: EngineSource, kind: str = "auto", *, options: RuntimeOptions | None = None) -> Engine:
    """An engine for `bundle`.

    kind: a name of `KINDS`, or `auto` for the first of them that can run here, save torch. Where the bundle has
    engines for a GPU and none of them runs on the one that is here, `auto` says why in the log.
    Raises UsageError for an unknown kind, MissingDependencyError if what it needs is absent, EngineError if it refuses
    the source.
    """
    options = options or RuntimeOptions()
    check_kind(kind)
    if kind != "auto":
        return _open(kind, source, options)
    reasons: list[str] = []
    for name in (kind for kind in KINDS if kind not in NOT_BY_ITSELF):
        reason = why_not(source, name)
        if reason is None:
            if source.engines and name in CPU_KINDS and current_device() is not None:
                log.warning("%s runs on the CPU: %s", source.path, "; ".join(reasons))
            return _open(name, source, options)
        reasons.append(f"{name}: {reason}")
    raise MissingDependencyError(
        f"no engine can run {source.path} here ({'; '.join(reasons)})", 'pip install "twins-trt[cpu]"'
    )


def why_not(source: EngineSource, kind: str) -> str | None:
    """Why the engine `kind` cannot run `bundle` on this machine, or None if it can."""
    reason: str | None = _module(kind).why_not(source)
    return reason


def _module(kind: str) -> ModuleType:
    return importlib.import_module(KINDS[kind])


def _open(kind: str, source: EngineSource, options: RuntimeOptions) -> Engine:
    engine: Engine = _module(kind).open_engine(source, options)
    return engine

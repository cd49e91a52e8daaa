"""The engine kinds, one module each: `why_not(bundle)` says whether it can run here, `open_engine` opens it."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from twins_trt.errors import MissingDependencyError, UsageError
from twins_trt.runtime.engines.protocol import (
    DeviceMemory,
    Engine,
    EngineSettings,
    HoldsDeviceMemory,
    LayerTime,
    Observe,
    Pipelined,
    ProfilesLayers,
    Stage,
)

if TYPE_CHECKING:
    from twins_trt.runtime.bundle import Bundle

__all__ = [
    "KINDS",
    "DeviceMemory",
    "Engine",
    "EngineSettings",
    "HoldsDeviceMemory",
    "LayerTime",
    "Observe",
    "Pipelined",
    "ProfilesLayers",
    "Stage",
    "open_engine",
]

# In the order in which `auto` prefers them: fastest first.
KINDS = {"onnxruntime": "twins_trt.runtime.engines.onnxruntime"}


def open_engine(bundle: Bundle, kind: str = "auto", *, settings: EngineSettings | None = None) -> Engine:
    """An engine for `bundle`.

    kind: a name of `KINDS`, or `auto` for the first of them that can run here.
    Raises UsageError for an unknown kind, MissingDependencyError if what it needs is absent, EngineError if it refuses
    the bundle.
    """
    settings = settings or EngineSettings()
    if kind != "auto":
        if kind not in KINDS:
            raise UsageError(f"there is no engine {kind!r}", f"use auto, {', '.join(KINDS)}")
        return _open(kind, bundle, settings)
    reasons = []
    for name in KINDS:
        reason = _module(name).why_not(bundle)
        if reason is None:
            return _open(name, bundle, settings)
        reasons.append(f"{name}: {reason}")
    raise MissingDependencyError(
        f"no engine can run {bundle.path} here ({'; '.join(reasons)})", 'pip install "twins-trt[cpu]"'
    )


def _module(kind: str) -> ModuleType:
    return importlib.import_module(KINDS[kind])


def _open(kind: str, bundle: Bundle, settings: EngineSettings) -> Engine:
    engine: Engine = _module(kind).open_engine(bundle, settings)
    return engine

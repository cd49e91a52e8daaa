"""From targets to engines: as few as cost none of the targets anything."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from twins_trt.builders.engine import FLAVOURS, EngineOptions, group_targets, parse_target
from twins_trt.errors import UsageError
from twins_trt.spelling import spelled
from twins_trt.verbs.build import DEFAULTS

CPU = "cpu"
"""The target that stands for no engine at all: the graph itself, on ONNX Runtime."""


def engines_for(
    targets: Sequence[str],
    *,
    flavours: Sequence[str] = DEFAULTS.flavour,
    workspace_mib: int | None = None,
    optimization_level: int | None = None,
    timing_cache: str | None = None,
    hardware_compatibility: str = DEFAULTS.hardware_compatibility,
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
                f"build two bundles, one of them with {spelled('targets', CPU)}",
            )
        return ()
    if not flavours:
        raise UsageError(f"{spelled('flavour')} names none", f"use one of {', '.join(FLAVOURS)}, or auto")
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

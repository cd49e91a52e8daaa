"""From targets to engines: as few engines as possible without slowing any target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

from twins_trt.builders.bundle.job import EngineJob
from twins_trt.builders.engine import (
    FLAVOURS,
    EngineOptions,
    current_device,
    group_targets,
    open_compiler,
    parse_target,
)
from twins_trt.builders.export import ExportOptions
from twins_trt.builders.export.shapes import profile
from twins_trt.errors import UsageError
from twins_trt.spelling import spelled
from twins_trt.verbs.build import DEFAULTS

CPU = "cpu"
"""The target of a bundle without an engine: ONNX Runtime runs its graph."""


def engines_for(
    targets: Sequence[str],
    *,
    flavours: Sequence[str] = DEFAULTS.flavour,
    workspace_mib: int | None = None,
    optimization_level: int | None = None,
    timing_cache: str | None = None,
    hardware_compatibility: str = DEFAULTS.hardware_compatibility,
) -> tuple[EngineOptions, ...]:
    """The engines for `targets`: as few engines as possible without slowing any target (SM75 gets one of its own).

    targets: compute capabilities; empty for the GPU of this machine; `cpu`, alone, for no engine.
    flavours: `tensorrt_rtx`, `tensorrt`, both, or `auto`. `auto` is TensorRT where that is installed and TensorRT-RTX
    is not, else TensorRT-RTX. With both, TensorRT-RTX takes the targets, and TensorRT builds for the GPU of this
    machine and takes the hardware compatibility.
    The other arguments are those of `EngineOptions`.
    Raises `UsageError` for targets and flavours that do not exist or do not go together.
    """
    named = [target.strip().lower() for target in targets]
    if CPU in named:
        if set(named) != {CPU}:
            raise UsageError(
                "the target cpu cannot be combined with others: its graph is written differently from one for GPUs",
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


def engine_jobs(engines: Sequence[EngineOptions], graph: ExportOptions) -> tuple[EngineJob, ...]:
    """The engines with their targets, their files, and the compilers that are installed here.

    graph: how the graph is written that they are built from. Raises `UsageError` for targets that a compiler does not
    have, and for two engines of one flavour and the same targets; `MissingDependencyError` where a compiler, or the
    GPU that it needs, is not there.
    """
    jobs = []
    device = current_device()
    for engine in engines:
        compiler = open_compiler(engine.flavour)
        try:
            targets = compiler.settle_targets(engine, device)
        except UsageError as error:
            fix = error.fix if engine.targets else f"{error.fix} ({spelled('targets', 'sm_86,sm_89')}), or {CPU}"
            raise UsageError(error.cause, fix) from error
        file = f"engines/{'-'.join((engine.flavour, *targets))}.engine"
        jobs.append(EngineJob(file, replace(engine, targets=targets, profile=profile(graph)), compiler.name))
    if len({job.file for job in jobs}) < len(jobs):
        raise UsageError("two engines are of one flavour and for the same targets", "name each of them once")
    return tuple(jobs)

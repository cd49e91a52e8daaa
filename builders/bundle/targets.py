"""From targets to engines: which are compiled here, in as few as possible, and which the device has to compile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from twins_trt.builders.bundle.job import EngineJob, NearestJob
from twins_trt.builders.engine import (
    FLAVOURS,
    Device,
    EngineOptions,
    current_device,
    group_targets,
    open_compiler,
)
from twins_trt.builders.engine.devices import CPU, KNOWN_TARGETS, RTX_TARGETS, Target, nearest_target, read_targets
from twins_trt.builders.export import ExportOptions
from twins_trt.builders.export.shapes import profile
from twins_trt.errors import MissingDependencyError, UsageError
from twins_trt.spelling import spelled
from twins_trt.verbs.build import DEFAULTS

RTX, TENSORRT = FLAVOURS


@dataclass(frozen=True)
class TargetChoice:
    """The targets of a build.

    engines: those that are compiled here; empty for the CPU. awaits: targets whose engine the device itself compiles.
    named: what the command that builds it again names besides TensorRT-RTX's targets. flavours: of all engines.
    limiting: the Jetson whose TensorRT reads the lowest opset; None without a Jetson.
    """

    engines: tuple[EngineOptions, ...]
    awaits: tuple[Target, ...] = ()
    named: tuple[str, ...] = ()
    flavours: tuple[str, ...] = ()
    limiting: Target | None = None

    @property
    def gpu(self) -> bool:
        """Whether the graph is one for GPUs."""
        return bool(self.engines or self.awaits)

    @property
    def opset(self) -> int | None:
        """The highest opset that the TensorRT of every named device reads; None if nothing limits it."""
        return None if self.limiting is None else self.limiting.opset


def choose_targets(
    texts: Sequence[str],
    *,
    jetpack: str | None = None,
    flavours: Sequence[str] = DEFAULTS.flavour,
    workspace_mib: int | None = None,
    optimization_level: int | None = None,
    timing_cache: str | None = None,
    hardware_compatibility: str = DEFAULTS.hardware_compatibility,
) -> TargetChoice:
    """What is compiled here and what awaits its device.

    texts: names of devices and compute capabilities, mixed; empty for the GPU of this machine; `cpu`, alone, for no
    engine. jetpack: of the Jetsons among them.
    flavours: `tensorrt_rtx`, `tensorrt`, both, or `auto`. TensorRT-RTX compiles ahead of time for the targets that it
    has, TensorRT for the GPU of this machine; with both, TensorRT takes the targets that TensorRT-RTX lacks, and the
    GPU of this machine where it lacks none. `auto` is TensorRT where that is installed and TensorRT-RTX is not, else
    TensorRT-RTX, and TensorRT for what that lacks. A target of TensorRT that is not the GPU of this machine awaits its
    device.
    The other arguments are those of `EngineOptions`.
    Raises `UsageError` for targets, JetPacks and flavours that do not exist or do not go together.
    """
    lowered = [text.strip().lower() for text in texts]
    if CPU in lowered:
        if set(lowered) != {CPU}:
            raise UsageError(
                "the target cpu cannot be combined with others: its graph is written differently from one for GPUs",
                f"build two bundles, one of them with {spelled('targets', CPU)}",
            )
        read_targets((), jetpack)
        return TargetChoice(())
    if not flavours:
        raise UsageError(f"{spelled('flavour')} names none", f"use one of {', '.join(FLAVOURS)}, or auto")
    targets = read_targets(tuple(texts), jetpack)
    device = current_device()
    flavours = tuple(dict.fromkeys(flavours))
    auto = "auto" in flavours
    if auto:
        flavours = (TENSORRT,) if find_spec(RTX) is None and find_spec(TENSORRT) else (RTX,)
    for flavour in flavours:
        EngineOptions(flavour=flavour)  # which refuses one that does not exist
    ahead = _of_rtx(targets, only=flavours == (RTX,) and not auto) if RTX in flavours else ()
    others = tuple(target for target in targets if target not in ahead)
    if auto and others:
        flavours = tuple(dict.fromkeys((*((RTX,) if ahead else ()), TENSORRT)))
    here = tuple(target for target in others if device is not None and target.target == device.target)
    if others:
        _refuse_unknown(others, device)
    options = EngineOptions(
        workspace_mib=workspace_mib,
        optimization_level=optimization_level,
        timing_cache=timing_cache,
        hardware_compatibility=hardware_compatibility,
    )
    engines = []
    for flavour in flavours:
        if flavour == RTX:
            rtx = replace(options, hardware_compatibility="none") if TENSORRT in flavours else options
            groups = group_targets(tuple(dict.fromkeys(target.target for target in ahead))) or ((),)
            # With no target of its own left, a TensorRT-RTX beside TensorRT would compile for nothing.
            engines += [replace(rtx, flavour=RTX, targets=group) for group in groups if group or not others]
        elif here or not others:
            engines.append(replace(options, flavour=flavour, targets=tuple(target.target for target in here[:1])))
    return TargetChoice(
        tuple(engines),
        awaits=tuple(target for target in others if target not in here),
        named=tuple(target.text for target in others),
        flavours=flavours,
        limiting=min((each for each in targets if each.opset), key=lambda each: each.opset or 0, default=None),
    )


def _of_rtx(targets: tuple[Target, ...], *, only: bool) -> tuple[Target, ...]:
    """The targets that TensorRT-RTX compiles for. only: no other compiler may, so all of them are its own."""
    if only or not targets:
        return targets
    try:
        available: tuple[str, ...] = open_compiler(RTX).targets
    except MissingDependencyError:
        available = RTX_TARGETS  # whoever names one of them is told what to install
    return tuple(target for target in targets if target.target in available)


def _refuse_unknown(targets: tuple[Target, ...], device: Device | None) -> None:
    """Raises `UsageError` for a compute capability that no GPU has: else a slip would await its device for ever."""
    for target in targets:
        if target.target not in KNOWN_TARGETS and (device is None or device.target != target.target):
            raise UsageError(
                f"there is no GPU of {target.target} on record", f"use one of {', '.join(KNOWN_TARGETS)}, or a name"
            )


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
            fix = f"{error.fix} ({spelled('targets', 'sm_86,sm_89')}), a device of twins-trt targets, or {CPU}"
            if engine.targets:
                fix = f"{error.fix}, or leave {spelled('flavour')} out: the device then compiles its engine itself"
            raise UsageError(error.cause, fix) from error
        file = f"engines/{'-'.join((engine.flavour, *targets))}.engine"
        jobs.append(EngineJob(file, replace(engine, targets=targets, profile=profile(graph)), compiler.name))
    if len({job.file for job in jobs}) < len(jobs):
        raise UsageError("two engines are of one flavour and for the same targets", "name each of them once")
    return tuple(jobs)


def nearest_jobs(
    awaits: Sequence[Target], engines: Sequence[EngineJob], graph: ExportOptions
) -> tuple[NearestJob, ...]:
    """What is audited in place of the engines that await their device, by the nearest architecture.

    engines: those that are compiled here: one of them may serve. Empty where TensorRT-RTX is not installed.
    """
    try:
        compiler = open_compiler(RTX)
    except MissingDependencyError:
        return ()
    found: dict[str, list[str]] = {}
    for target in awaits:
        if (nearest := nearest_target(target.target, compiler.targets)) is not None:
            found.setdefault(nearest, []).append(target.target)
    compiled = {target: job.file for job in engines if job.options.flavour == RTX for target in job.options.targets}
    return tuple(
        NearestJob(
            EngineOptions(flavour=RTX, targets=(nearest,), profile=profile(graph)),
            compiler.name,
            tuple(dict.fromkeys(targets)),
            compiled.get(nearest),
        )
        for nearest, targets in found.items()
    )

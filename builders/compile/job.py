"""The job of a compilation: what `resolve_compile` makes from a request, with every default decided."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twins_trt.builders.compile.graph import GraphFacts, graph_facts
from twins_trt.builders.compile.memory import Forecast, forecast, free_memory
from twins_trt.builders.engine import FLAVOURS, Compiler, EngineOptions, current_device, open_compiler
from twins_trt.builders.engine.devices import read_target
from twins_trt.codec import encode
from twins_trt.device import Device, board, cuda_version, kernel_driver
from twins_trt.errors import MissingDependencyError, TwinsError, UsageError
from twins_trt.runtime.bundle import Bundle, open_bundle
from twins_trt.runtime.manifest import GRAPH, EngineFile
from twins_trt.runtime.tensorrt.fit import Place, compiled_elsewhere, outdated, wrong_gpu
from twins_trt.spelling import spelled
from twins_trt.verbs.compile import NO_CACHE, CompileRequest

_ORDER = ("tensorrt", "tensorrt_rtx")  # as the runtime prefers their engines


@dataclass(frozen=True)
class Misfit:
    """An engine that was for this machine and no longer fits it, and why."""

    engine: EngineFile
    why: str


@dataclass(frozen=True)
class CompileJob:
    """A compilation with every default decided.

    target: what the engine is for. device: the GPU of this machine, None without one. file: of the engine, in the
    bundle. fitting: an engine that is there already, so that nothing is compiled; None if there is none.
    misfits: engines that the new one makes useless.
    """

    request: CompileRequest
    bundle: Bundle
    facts: GraphFacts
    compiler: Compiler
    target: str
    device: Device | None
    here: Place
    options: EngineOptions
    file: str
    fitting: EngineFile | None
    misfits: tuple[Misfit, ...]
    forecast: Forecast

    @property
    def gpu(self) -> str:
        """What the engine is for, in words: `Orin (sm_87)`."""
        if self.device is None or self.device.target != self.target:
            return self.target
        return f"{self.device.name} ({self.target})"

    @property
    def pruned(self) -> tuple[EngineFile, ...]:
        """The engines that are removed."""
        return tuple(misfit.engine for misfit in self.misfits) if self.request.prune else ()

    @property
    def key(self) -> dict[str, Any]:
        """What a finished engine depends on."""
        options = self.options.to_json()
        del options["timing_cache"]  # it makes a compilation faster
        options["workspace_mib"] = self.request.workspace  # the one that is chosen depends on what is free now
        return {
            "graph": self.bundle.manifest.graph_sha256,
            "version": self.compiler.version,
            "here": encode(self.here),
            "options": options,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {
            "bundle": str(self.bundle.path),
            "file": self.file,
            "compiler": self.compiler.name,
            "gpu": self.gpu,
            "target": self.target,
            "fitting": None if self.fitting is None else self.fitting.file,
            "misfits": {misfit.engine.file: misfit.why for misfit in self.misfits},
            "pruned": [engine.file for engine in self.pruned],
            "options": self.options.to_json(),
            "memory": {
                "host_mib": self.forecast.host,
                "gpu_mib": self.forecast.gpu,
                "workspace_mib": self.forecast.workspace,
                "free_host_mib": self.forecast.free.host,
                "free_swap_mib": self.forecast.free.swap,
                "free_gpu_mib": self.forecast.free.gpu,
                "shared": self.forecast.free.shared,
                "predicted": True,
                "reason": self.forecast.reason,
            },
        }


def resolve_compile(request: CompileRequest, *, verify: bool = True, root: Path = Path("/")) -> CompileJob:
    """The job of a request, checked as far as that is possible without compiling.

    verify: as in `open_bundle`. root: of the file system that holds /proc. Raises `BundleError` for a bundle that is
    damaged, whose graph is written for CPUs, or whose graph is needed and did not travel, `UsageError` for values that
    do not fit together, `MissingDependencyError` for a missing compiler or GPU.
    """
    _refuse_impossible(request)
    bundle = open_bundle(request.bundle, verify=verify)
    facts = graph_facts(bundle)
    device = current_device()
    here = _look(device, root)
    target = None if request.target is None else read_target(request.target).target
    compiler = _choose(bundle, request.flavour, target, device, here)
    options = EngineOptions(
        flavour=compiler.flavour,
        targets=() if target is None else (target,),
        workspace_mib=request.workspace,
        optimization_level=request.optimization_level,
        timing_cache=None if request.timing_cache == NO_CACHE else request.timing_cache,
        profile=facts.profile,
    )
    try:
        (target,) = compiler.settle_targets(options, device)
    except UsageError as error:
        if target is None:
            raise
        fix = f"{error.fix}, or compile on the device itself, without {spelled('target')}"
        raise UsageError(error.cause, fix) from error
    engines = [engine for engine in bundle.engines if engine.flavour == compiler.flavour]
    fitting = None if request.again else _fitting(bundle, compiler, target, here)
    if fitting is None:
        bundle.graph  # noqa: B018  # raises if it did not travel
    predicted = forecast(facts.nbytes, request.workspace, free_memory(device, root), on_gpu=not compiler.ahead_of_time)
    return CompileJob(
        request=request,
        bundle=bundle,
        facts=facts,
        compiler=compiler,
        target=target,
        device=device,
        here=here,
        options=replace(
            options,
            targets=(target,),
            workspace_mib=predicted.workspace if compiler.workspace else request.workspace,
        ),
        file=_file(engines, compiler, target, here),
        fitting=fitting,
        misfits=_misfits(engines, compiler, target, here) if GRAPH in bundle.files else (),
        forecast=predicted,
    )


def _refuse_impossible(request: CompileRequest) -> None:
    if request.flavour not in ("auto", *FLAVOURS):
        raise UsageError(
            f"{spelled('flavour')} cannot be {request.flavour!r}", f"use auto, {' or '.join(reversed(FLAVOURS))}"
        )
    if request.target is not None and request.flavour == "tensorrt":
        raise UsageError(
            f"{spelled('target')} is for TensorRT-RTX: TensorRT compiles for the GPU of its own machine",
            f"leave {spelled('target')} out, or choose {spelled('flavour', 'tensorrt_rtx')}",
        )


def _choose(bundle: Bundle, flavour: str, target: str | None, device: Device | None, here: Place) -> Compiler:
    """The compiler of a flavour. `auto`: of those that are installed and compile for this GPU, or for `target`, the one
    whose engine is in the bundle already, else TensorRT before TensorRT-RTX."""
    if target is None and device is None:
        named = f", or name a GPU to TensorRT-RTX: {spelled('target', 'sm_86')}"
        rtx = named if find_spec("tensorrt_rtx") is not None else ""  # a Jetson has none
        raise MissingDependencyError(
            "there is no CUDA device or driver here to compile for",
            f"twins-trt doctor --for compile, which says why{rtx}",
        )
    if flavour != "auto":
        return open_compiler(flavour)
    if target is not None or device is None:
        return open_compiler("tensorrt_rtx")
    able, refusals = [], []
    for name in (each for each in _ORDER if find_spec(each) is not None):
        try:
            compiler = open_compiler(name)
        except TwinsError as error:
            refusals.append(error)
            continue
        if not compiler.ahead_of_time or device.target in compiler.targets:
            able.append(compiler)
        else:
            refusals.append(
                MissingDependencyError(
                    f"{compiler.name} does not compile for this GPU ({device.name}, {device.target}), and TensorRT is "
                    "not installed",
                    "twins-trt doctor says how to install it",
                )
            )
    for compiler in able:
        if _fitting(bundle, compiler, device.target, here) is not None:
            return compiler
    if able:
        return able[0]
    if refusals:
        raise refusals[0]
    return open_compiler("tensorrt")  # which is not there, and its error says how to get it


def _fitting(bundle: Bundle, compiler: Compiler, target: str, here: Place) -> EngineFile | None:
    """The engine that makes a compilation needless. Without the graph, one that runs is enough, wherever its kernels
    were timed."""
    place = here if GRAPH in bundle.files else None
    for engine in bundle.engines:
        if engine.flavour != compiler.flavour or wrong_gpu(engine, target) is not None:
            continue
        if outdated(engine, compiler.version, here=place) is None:
            return engine
    return None


def _misfits(engines: list[EngineFile], compiler: Compiler, target: str, here: Place) -> tuple[Misfit, ...]:
    """The engines that were for this machine alone, and do not fit it any longer.

    An engine that serves another GPU, too, or was compiled on another one, may be in use there.
    """
    misfits = []
    for engine in engines:
        if engine.targets != (target,) or compiled_elsewhere(engine, here):
            continue
        if (why := outdated(engine, compiler.version, here=here)) is not None:
            misfits.append(Misfit(engine, why))
    return tuple(misfits)


def _file(engines: list[EngineFile], compiler: Compiler, target: str, here: Place) -> str:
    """A name of its own for each flavour, version and target; for a second machine of one target, with its name."""
    name = f"engines/{compiler.flavour}-{compiler.version}-{target}"
    if not any(each.file == f"{name}.engine" and compiled_elsewhere(each, here) for each in engines):
        return f"{name}.engine"
    machine = here.board or here.gpu
    return f"{name}-{re.sub(r'[^A-Za-z0-9]+', '-', machine).strip('-').lower()}.engine"


def _look(device: Device | None, root: Path) -> Place:
    """This machine, as far as it matters to an engine."""
    return Place("" if device is None else device.name, board(root), kernel_driver(root), cuda_version())

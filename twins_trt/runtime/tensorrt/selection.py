"""Chooses the engine of a bundle that runs on this machine, or says why none does."""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

from twins_trt.bindings import NAMES, load_bindings
from twins_trt.device import Device, board, current_device
from twins_trt.errors import BundleError, EngineError, TwinsError
from twins_trt.runtime.advice import engine_command
from twins_trt.runtime.memory import PACKAGES, installed
from twins_trt.runtime.tensorrt.fit import Place, compiled_elsewhere, outdated, wrong_gpu
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from twins_trt.runtime.engines.protocol import EngineSource
    from twins_trt.runtime.manifest import EngineFile


def why_not(source: EngineSource, flavour: str) -> str | None:
    """Why no engine of `flavour` in the source can run here, or None if one can. The cheap checks come first."""
    if not any(engine.flavour == flavour for engine in source.engines):
        return "the bundle has no such engine"
    if find_spec(flavour) is None:
        return f"{flavour} is not installed"
    if not any(installed(package) for package in PACKAGES):
        return f"neither {' nor '.join(PACKAGES)} is installed"
    try:
        device = here()
        choose(source, flavour, load_runtime(flavour), device)
    except TwinsError as error:
        return error.cause
    return None


def here() -> Device:
    """The GPU of this machine. Raises EngineError if there is none."""
    device = current_device()
    if device is None:
        raise EngineError(
            "there is no CUDA device or driver here",
            f"twins-trt doctor says more; {spelled('engine', 'onnxruntime')} needs none",
        )
    return device


def load_runtime(flavour: str) -> ModuleType:
    """The bindings of a flavour. Raises MissingDependencyError when they are absent, broken or another flavour's."""
    return load_bindings(
        flavour, purpose=f"running {NAMES[flavour]} engines", needs=("Runtime", "ICudaEngine", "IExecutionContext")
    )


def choose(source: EngineSource, flavour: str, module: ModuleType, device: Device) -> EngineFile:
    """The source's engine for this GPU and this version of the compiler's runtime.

    Raises BundleError if it has none, naming the GPUs and versions of its engines and those of this machine.
    """
    engines = [engine for engine in source.engines if engine.flavour == flavour]
    name, version = NAMES[flavour], str(module.__version__)
    if not engines:
        others = ", ".join(f"{NAMES.get(e.flavour, e.flavour)} for {'+'.join(e.targets)}" for e in source.engines)
        raise BundleError(
            f"{source.path} has no {name} engine; it has {others or 'only its graph'}",
            engine_command(source, flavour, device.target),
        )
    fitting = [engine for engine in engines if wrong_gpu(engine, device.target) is None]
    if not fitting:
        engines_by_target = ", ".join(f"{engine.file} for {'+'.join(engine.targets)}" for engine in engines)
        raise BundleError(
            f"{source.path} has {engines_by_target}; this GPU is {device.name} ({device.target})",
            engine_command(source, flavour, device.target),
        )
    current = [engine for engine in fitting if outdated(engine, version) is None]
    if not current:
        raise BundleError(
            f"{source.path}: {outdated(fitting[0], version)}", engine_command(source, flavour, device.target)
        )
    # An engine runs on every GPU of its target, and best on the model that its kernels were timed on.
    here = Place(device.name, board())
    timed_here = (each for each in current if each.compiled is not None and not compiled_elsewhere(each, here))
    return next(timed_here, current[0])


def engine_of(source: EngineSource, kind: str) -> EngineFile | None:
    """The source's engine that an engine of this kind runs here; None where the kind runs the graph itself.

    Raises as `load_runtime`, `here` and `choose` do.
    """
    return choose(source, kind, load_runtime(kind), here()) if kind in NAMES else None


def engine_here(source: EngineSource, kind: str = "auto") -> EngineFile | None:
    """The source's engine that an engine of this kind runs on this machine; None where it runs none of them."""
    flavours = NAMES if kind == "auto" else (kind,) if kind in NAMES else ()
    return next((engine_of(source, flavour) for flavour in flavours if why_not(source, flavour) is None), None)

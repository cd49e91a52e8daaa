"""From an ONNX graph to a serialized plan and its layer list."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from twins_trt.builders.engine import versions
from twins_trt.builders.engine.failures import build_failure, parser_failure, refuse_beforehand
from twins_trt.builders.engine.header import GraphHeader, read_header
from twins_trt.builders.engine.layers import Layer, parse_build_log, parse_inspector
from twins_trt.builders.engine.log import BuildLog, capture
from twins_trt.builders.engine.options import EngineOptions
from twins_trt.builders.engine.progress import BuildState, attach_monitor, watch
from twins_trt.builders.engine.versions import Compiler
from twins_trt.compiler_cache import CacheKey, CompilerCache
from twins_trt.device import Device, current_device
from twins_trt.errors import BuildError, MissingDependencyError, UsageError
from twins_trt.progress import Progress

log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class BuiltEngine:
    """A finished engine.

    `serialized`: exactly what the compiler made. `layers`: its final layer list. `version`: the compiler's, in full.
    `targets`: compute capabilities the plan is for. `seconds`: wall time from the graph to the plan.
    `peak_host_mib`: the process's highest resident memory so far, MiB; None where the platform does not tell.
    """

    serialized: bytes
    layers: tuple[Layer, ...]
    flavour: str
    version: str
    targets: tuple[str, ...]
    seconds: float
    peak_host_mib: float | None = None


def build_engine(graph: Path | str, options: EngineOptions, *, progress: Progress | None = None) -> BuiltEngine:
    """Compiles an ONNX graph into a plan. One build at a time runs in a process; others wait.

    `graph`: a precision-complete ONNX file (casts and Q/DQ in the graph; no builder flag changes a type).
    `progress`: called from this thread, at most ten times a second. Its detail is the compiler's phase, its share
        that of the whole build. What it raises cancels the build.

    Raises MissingDependencyError when the flavour is not installed or needs a GPU that is not there; UsageError for
    targets, profiles or a cache folder that do not fit; BuildError when the graph cannot be read or compiled, or an
    option is one that this version lacks. A KeyboardInterrupt stops the build where the version has a progress monitor.
    """
    graph = Path(graph)
    started = time.perf_counter()
    header = read_header(graph)
    module = versions.load(options.flavour)
    compiler = versions.describe(module, options.flavour)
    device = current_device()
    targets = versions.settle_targets(compiler, options, device)
    check_profile(header, options)
    refuse_beforehand(compiler, graph, header)
    if len(groups := versions.group_targets(targets)) > 1:
        log.warning("sm_75 in one plan with %s costs the others kernels: build it apart", ", ".join(groups[0]))
    with capture(module) as (logger, build_log):
        plan = _compile(module, compiler, logger, build_log, graph, header, options, targets, device, progress)
        layers = _layers(module, compiler, logger, build_log, plan)
    seconds = time.perf_counter() - started
    return BuiltEngine(plan, layers, options.flavour, compiler.version, targets, seconds, _peak_host_mib())


def check_profile(header: GraphHeader, options: EngineOptions) -> None:
    """Raises UsageError when the options' profile and the graph's dynamic inputs do not belong together."""
    profile = options.profile or {}
    ports = {port.name: port for port in header.inputs}
    for name in profile:
        if name not in ports:
            raise UsageError(f"the profile names {name!r}, which is no input", f"inputs: {', '.join(ports)}")
    for name, port in ports.items():
        shape = "x".join("?" if extent is None else str(extent) for extent in port.shape)
        if name not in profile:
            if port.dynamic:
                raise UsageError(
                    f"input {name!r} is dynamic ({shape}) and has no profile", "give its smallest, usual, largest shape"
                )
            continue
        if any(len(given) != len(port.shape) for given in profile[name]):
            raise UsageError(f"the profile of {name!r} has another rank than the input ({shape})")
        for given in profile[name]:
            for extent, fixed in zip(given, port.shape, strict=True):
                if isinstance(fixed, int) and extent != fixed:
                    raise UsageError(
                        f"the profile of {name!r} has {'x'.join(map(str, given))}, but the input is fixed to {shape}",
                        "export the graph with a dynamic size, or repeat the fixed extents",
                    )


def _compile(
    module: ModuleType,
    compiler: Compiler,
    logger: Any,
    build_log: BuildLog,
    graph: Path,
    header: GraphHeader,
    options: EngineOptions,
    targets: tuple[str, ...],
    device: Device | None,
    progress: Progress | None,
) -> bytes:
    builder = _create(module.Builder, logger, compiler)
    network = versions.create_network(module, compiler, builder)
    parser = module.OnnxParser(network, logger)
    if progress is not None:
        progress("engine", "Reading the graph", None)
    # From the file and not from bytes: weights may lie beside it.
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise parser_failure(compiler, graph, header, errors, build_log.errors)
    config = builder.create_builder_config()
    versions.configure(module, compiler, config, options, targets)
    versions.set_precision(module, compiler, config, network, header)
    if options.profile:
        shapes = builder.create_optimization_profile()
        for name, (least, usual, most) in options.profile.items():
            shapes.set_shape(name, least, usual, most)
        if config.add_optimization_profile(shapes) < 0:
            raise build_failure(compiler, graph, build_log.errors)
    cache = _open_cache(compiler, config, options, device)
    state = BuildState()
    if compiler.progress:
        attach_monitor(module, config, state)
    build_log.errors.clear()
    serialized = watch(
        lambda: builder.build_serialized_network(network, config), state, progress, can_cancel=compiler.progress
    )
    if serialized is None:
        raise build_failure(compiler, graph, build_log.errors)
    plan = bytes(serialized)
    for message in build_log.errors:
        log.warning("the compiler recovered from: %s", message)
    if cache is not None:
        _store_cache(config, cache)
    return plan


def _create(factory: Any, logger: Any, compiler: Compiler) -> Any:
    """A Builder or Runtime; the bindings turn the null that the library returns on failure into a TypeError."""
    try:
        return factory(logger)
    except (TypeError, RuntimeError) as error:
        raise MissingDependencyError(
            f"{compiler.name} does not start: {error}",
            "check that the GPU driver matches its CUDA version (nvidia-smi)",
        ) from error


def _open_cache(compiler: Compiler, config: Any, options: EngineOptions, device: Device | None) -> CompilerCache | None:
    if options.timing_cache is None:
        return None
    if not compiler.timing_cache:
        log.warning("%s never times kernels, so the timing cache is left alone", compiler.name)
        return None
    assert device is not None  # settle_targets saw to it: only a build on a device times anything
    key = CacheKey(compiler.flavour, compiler.version, device.target, device.name)
    cache = CompilerCache.at(options.timing_cache, key, "timing cache")
    if not config.set_timing_cache(config.create_timing_cache(cache.read()), False):
        log.warning("%s refuses timing cache %s: not used, and replaced after the build", compiler.name, cache.path)
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return cache


def _store_cache(config: Any, stored: CompilerCache) -> None:
    cache = config.get_timing_cache()

    def merge(present: bytes) -> bytes:
        # Another build may have added to the file since this one read it.
        if present:
            cache.combine(config.create_timing_cache(present), False)
        return bytes(cache.serialize())

    stored.write(merge)


def _layers(module: ModuleType, compiler: Compiler, logger: Any, build_log: BuildLog, plan: bytes) -> tuple[Layer, ...]:
    if compiler.inspector == "log":
        if not build_log.layers:
            raise BuildError(
                f"{compiler.name} printed no layer list into this build's log, so there is nothing to audit",
                "release runtimes and builders made with another logger, or build in a fresh process",
            )
        return parse_build_log(build_log.layers)
    engine = _create(module.Runtime, logger, compiler).deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildError(f"{compiler.name} cannot load the plan it has just built: {'; '.join(build_log.errors[-2:])}")
    return parse_inspector(engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON))


def _peak_host_mib() -> float | None:
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)

"""From an ONNX graph to a serialized engine and its layer list."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twins_trt.builders.engine.failures import build_failure, parser_failure, refuse_beforehand
from twins_trt.builders.engine.header import GraphHeader, read_header
from twins_trt.builders.engine.layers import Layer, parse_build_log, parse_inspector
from twins_trt.builders.engine.log import BuildLog, capture
from twins_trt.builders.engine.options import EngineOptions
from twins_trt.builders.engine.progress import BuildState, attach_monitor, watch
from twins_trt.builders.engine.versions import Compiler, group_targets, open_compiler
from twins_trt.compiler_cache import CacheKey, CompilerCache
from twins_trt.device import Device, current_device
from twins_trt.errors import BuildError, MissingDependencyError, UsageError, first_line
from twins_trt.host_memory import peak_host_mib
from twins_trt.progress import Progress, silent

log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class BuiltEngine:
    """A finished engine.

    `serialized`: exactly what the compiler made. `layers`: its final layer list. `version`: the compiler's, in full.
    `targets`: compute capabilities that the engine is for. `seconds`: wall time from the graph to the engine.
    `peak_host_mib`: the process's highest resident memory so far, MiB; None if the system does not tell.
    """

    serialized: bytes
    layers: tuple[Layer, ...]
    flavour: str
    version: str
    targets: tuple[str, ...]
    seconds: float
    peak_host_mib: float | None = None


@dataclass(frozen=True)
class _Compilation:
    """What the steps of one build share. `logger`: the compiler's; its messages go into `messages`."""

    compiler: Compiler
    logger: Any
    messages: BuildLog
    graph: Path
    header: GraphHeader
    options: EngineOptions
    progress: Progress


def build_engine(graph: Path | str, options: EngineOptions, *, progress: Progress | None = None) -> BuiltEngine:
    """Compiles an ONNX graph into an engine. A process runs one build at a time; other builds wait.

    `graph`: a precision-complete ONNX file (casts and Q/DQ in the graph; no builder flag changes a type).
    `progress`: called from this thread, at most ten times a second. Its detail is the compiler's phase, its share
        that of the whole build. An exception that it raises cancels the build.

    Raises MissingDependencyError when the flavour is not installed or needs a GPU that is not there; UsageError for
    targets, profiles or a cache folder that do not fit; BuildError when the graph cannot be read or compiled, or an
    option is one that this version lacks. A KeyboardInterrupt stops the build if the version has a progress monitor.
    """
    graph = Path(graph)
    started = time.perf_counter()
    header = read_header(graph)
    compiler = open_compiler(options.flavour)
    device = current_device()
    targets = compiler.settle_targets(options, device)
    check_profile(header, options)
    refuse_beforehand(compiler, graph, header)
    if len(groups := group_targets(targets)) > 1:
        log.warning("sm_75 in one engine with %s costs the others kernels: build it separately", ", ".join(groups[0]))
    with capture(compiler.module) as (logger, messages):
        compilation = _Compilation(compiler, logger, messages, graph, header, options, progress or silent)
        serialized = _compile(compilation, targets, device)
        layers = _layers(compilation, serialized)
    seconds = time.perf_counter() - started
    return BuiltEngine(serialized, layers, options.flavour, compiler.version, targets, seconds, peak_host_mib())


def check_profile(header: GraphHeader, options: EngineOptions) -> None:
    """Raises UsageError when the options' profile and the graph's dynamic inputs do not belong together."""
    profile = options.profile or {}
    tensors = {tensor.name: tensor for tensor in header.inputs}
    for name in profile:
        if name not in tensors:
            raise UsageError(f"the profile names {name!r}, which is no input", f"inputs: {', '.join(tensors)}")
    for name, tensor in tensors.items():
        shape = "x".join("?" if extent is None else str(extent) for extent in tensor.shape)
        if name not in profile:
            if tensor.dynamic:
                raise UsageError(
                    f"input {name!r} is dynamic ({shape}) and has no profile", "give its min, opt and max shape"
                )
            continue
        if any(len(given) != len(tensor.shape) for given in profile[name]):
            raise UsageError(f"the profile of {name!r} has another rank than the input ({shape})")
        for given in profile[name]:
            for extent, fixed in zip(given, tensor.shape, strict=True):
                if isinstance(fixed, int) and extent != fixed:
                    raise UsageError(
                        f"the profile of {name!r} has {'x'.join(map(str, given))}, but the input is fixed to {shape}",
                        "export the graph with a dynamic size, or repeat the fixed extents",
                    )


def _compile(compilation: _Compilation, targets: tuple[str, ...], device: Device | None) -> bytes:
    """The serialized engine."""
    module = compilation.compiler.module
    builder = _start(compilation, module.Builder)
    network = compilation.compiler.new_network(builder)
    # The parser owns the network's weights, so it must live until the end.
    parser = module.OnnxParser(network, compilation.logger)
    _parse(compilation, parser)
    config = _configure(compilation, builder, network, targets)
    cache = _open_cache(compilation, config, device)
    state = BuildState()
    try:
        return _serialize(compilation, builder, network, config, state)
    finally:
        # Also after a failure or an interrupt, so that the next build need not time the same kernels. A build that a
        # second interrupt left running still writes to the cache.
        if cache is not None and state.ended.is_set():
            _store_cache(config, cache)


def _start(compilation: _Compilation, factory: Any) -> Any:
    """A Builder or Runtime; the bindings turn the null that the library returns on failure into a TypeError."""
    try:
        return factory(compilation.logger)
    except (TypeError, RuntimeError) as error:
        raise MissingDependencyError(
            f"{compilation.compiler.name} does not start: {error}",
            "check that the GPU driver matches its CUDA version (nvidia-smi)",
        ) from error


def _parse(compilation: _Compilation, parser: Any) -> None:
    """Fills the parser's network with the graph."""
    compilation.progress("engine", "Reading the graph", None)
    graph = compilation.graph
    # From the file and not from bytes: weights may lie beside it.
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise parser_failure(compilation.compiler, graph, compilation.header, errors, compilation.messages.errors)


def _configure(compilation: _Compilation, builder: Any, network: Any, targets: tuple[str, ...]) -> Any:
    """A builder configuration with the options and the optimization profile."""
    compiler, options = compilation.compiler, compilation.options
    config = builder.create_builder_config()
    compiler.configure(config, options, targets)
    compiler.keep_precision(config, network, compilation.header)
    if options.profile:
        profile = builder.create_optimization_profile()
        for name, shapes in options.profile.items():  # min, opt, max
            profile.set_shape(name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise build_failure(compiler, compilation.graph, compilation.messages.errors)
    return config


def _serialize(compilation: _Compilation, builder: Any, network: Any, config: Any, state: BuildState) -> bytes:
    """Runs the compiler, which takes nearly all of a build's time."""
    compiler, messages = compilation.compiler, compilation.messages
    if compiler.progress:
        attach_monitor(compiler.module, config, state)
    messages.errors.clear()
    serialized = watch(
        lambda: builder.build_serialized_network(network, config),
        state,
        compilation.progress,
        can_cancel=compiler.progress,
    )
    if serialized is None:
        raise build_failure(compiler, compilation.graph, messages.errors)
    content = bytes(serialized)
    for message in messages.errors:
        log.warning("the compiler recovered from: %s", message)
    return content


def _open_cache(compilation: _Compilation, config: Any, device: Device | None) -> CompilerCache | None:
    """The timing cache that the options name, loaded into the configuration."""
    compiler, path = compilation.compiler, compilation.options.timing_cache
    if path is None:
        return None
    if not compiler.timing_cache:
        log.warning("%s never times kernels, so the timing cache is left alone", compiler.name)
        return None
    assert device is not None  # settle_targets made sure: only a build on a device times anything
    key = CacheKey(compiler.flavour, compiler.version, device.target, device.name)
    cache = CompilerCache.at(path, key, "timing cache")
    if not config.set_timing_cache(config.create_timing_cache(cache.read()), False):
        log.warning("%s refuses timing cache %s: not used, and replaced after the build", compiler.name, cache.path)
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return cache


def _store_cache(config: Any, stored: CompilerCache) -> None:
    """Writes what was timed to the file. A failure costs time in the next build, and never this one."""
    cache = config.get_timing_cache()

    def merge(present: bytes) -> bytes:
        # Another build may have added to the file since this one read it.
        if present:
            cache.combine(config.create_timing_cache(present), False)
        return bytes(cache.serialize())

    try:
        stored.write(merge)
    except Exception as error:  # the bindings return None, or raise what they like
        log.warning("timing cache %s cannot be written: %s", stored.path, first_line(error))


def _layers(compilation: _Compilation, serialized: bytes) -> tuple[Layer, ...]:
    """The finished layers: from the build's log, or from the engine loaded on the device."""
    compiler, messages = compilation.compiler, compilation.messages
    if compiler.inspector == "log":
        if not messages.layers:
            raise BuildError(
                f"{compiler.name} printed no layer list into this build's log, so there is nothing to audit",
                "release runtimes and builders made with another logger, or build in a fresh process",
            )
        return parse_build_log(messages.layers)
    engine = _start(compilation, compiler.module.Runtime).deserialize_cuda_engine(serialized)
    if engine is None:
        words = "; ".join(messages.errors[-2:])
        raise BuildError(f"{compiler.name} cannot load the engine it has just built: {words}")
    as_json = compiler.module.LayerInformationFormat.JSON
    return parse_inspector(engine.create_engine_inspector().get_engine_information(as_json))

"""From a bundle's engine file to an engine that is warm."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING

from twins_trt.compiler_cache import CacheKey, CompilerCache, home_folder
from twins_trt.device import Device
from twins_trt.runtime.advice import engine_command
from twins_trt.runtime.engines.checks import take_interface
from twins_trt.runtime.engines.protocol import RuntimeOptions
from twins_trt.runtime.memory import open_memory
from twins_trt.runtime.tensorrt.engine import TensorRTEngine
from twins_trt.runtime.tensorrt.loaded import LoadedEngine
from twins_trt.runtime.tensorrt.selection import choose, here, load_runtime

if TYPE_CHECKING:
    from twins_trt.runtime.engines.protocol import EngineSource

log = logging.getLogger("twins_trt")


def open_engine(source: EngineSource, flavour: str, options: RuntimeOptions) -> TensorRTEngine:
    """Opens the source's engine of `flavour` for this GPU and warms it up.

    Raises EngineError without a GPU, or if the runtime refuses the engine or has no room for it; BundleError if the
    source has no engine for this GPU and version, or its interface and the engine disagree; MissingDependencyError.
    """
    device = here()
    module = load_runtime(flavour)
    file = choose(source, flavour, module, device)
    memory = open_memory(options.memory)
    content, path = source.read(file), source.path / file.file
    with memory.entered():
        fix = engine_command(source, flavour, device.target, again=True)
        loaded = LoadedEngine(module, content, owner=str(path), fix=fix)
        loaded.specialize(
            cuda_graph=options.cuda_graph,
            stored=_runtime_cache(options, flavour, str(module.__version__), device, content),
        )
    del content  # as large as the weights on the device
    engine = TensorRTEngine(loaded, memory, device, name=flavour, options=options, owner=str(path))
    try:
        take_interface(engine, source, file=path.name)
        engine.warm_up()
    except BaseException:
        engine.close()
        raise
    return engine


def _runtime_cache(
    options: RuntimeOptions, flavour: str, version: str, device: Device, content: bytes
) -> CompilerCache | None:
    """The file for kernels that RTX compiles; None for the other flavour, or if it is unwanted or impossible."""
    if flavour != "tensorrt_rtx" or options.runtime_cache == "none":
        return None
    key = CacheKey(flavour, version, device.target, device.name, hashlib.sha256(content).hexdigest()[:12])
    if options.runtime_cache != "auto":
        return CompilerCache.at(options.runtime_cache, key, "runtime cache")
    folder = home_folder("runtime", what="compiled kernels are")
    if folder is None:
        return None
    return CompilerCache.at(folder, key, "runtime cache")

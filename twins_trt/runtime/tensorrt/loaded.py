"""A serialized engine in TensorRT's runtime. All calls of TensorRT or TensorRT-RTX by what runs engines are here.

TensorRT reports failure by null and False and gives the reason only in its log, so every result is checked and every
error quotes the log. Names that some version lacks are looked up, never assumed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, get_args

from twins_trt.bindings import NAMES, logged, members, process_logger
from twins_trt.compiler_cache import CompilerCache
from twins_trt.errors import EngineError, UsageError, first_line
from twins_trt.inference.tensors import DType, TensorSpec
from twins_trt.spelling import spelled

log = logging.getLogger("twins_trt")

_DTYPES: dict[str, DType] = {
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "HALF": "float16",
    "FLOAT": "float32",
}
_RAISED = (RuntimeError, TypeError, ValueError, MemoryError)
assert set(_DTYPES.values()) == set(get_args(DType))

ALIGNMENT = 256  # bytes, of every address that a context is bound to (IExecutionContext::setTensorAddress)

Shape = tuple[int, ...]


class LoadedEngine:
    """An engine in the runtime's memory. content: the serialized engine. owner, fix: for errors, its name and the
    command that makes it again.

    Several threads may make and use contexts, each context one thread at a time. Raises EngineError if the runtime does
    not start or refuses the engine, or if the engine does not take exactly one image.
    """

    def __init__(self, module: ModuleType, content: bytes, *, owner: str, fix: str) -> None:
        self._module, self._owner = module, owner
        self.name = f"{NAMES[module.__name__]} {module.__version__}"
        self._fix = fix
        self._config: Any = None
        self._cache: Any = None
        self._stored: CompilerCache | None = None
        self.refused_capture = False  # set by the first context that could not be captured
        try:
            self._runtime: Any = module.Runtime(process_logger(module))
        except (TypeError, RuntimeError) as error:  # the bindings raise these when the library returns null
            raise EngineError(
                f"{self.name} does not start: {logged(module)} ({error})",
                "check that the GPU driver matches its CUDA version (nvidia-smi)",
            ) from error
        self._runtime.engine_host_code_allowed = False  # an engine from a bundle must not run code on the CPU
        with refusals(module, f"{self.name} refuses {owner}", self._fix):
            self._check_validity(content)
            self._engine: Any = self._runtime.deserialize_cuda_engine(content)
            if self._engine is None:
                raise EngineError(f"{self.name} refuses {owner}: {logged(module)}", self._fix)
            self.inputs, self.outputs = self._specs()
            if len(self.inputs) != 1:
                raise EngineError(f"{owner} has {len(self.inputs)} inputs, not one image", self._fix)
            # Only some versions tell the size of the weights. The engine's own size is close: it is nearly all weights.
            self.weights = len(content)
            if "TOTAL_WEIGHTS_SIZE" in members(module, "EngineStat") and hasattr(self._engine, "get_engine_stat"):
                self.weights = int(self._engine.get_engine_stat(module.EngineStat.TOTAL_WEIGHTS_SIZE))

    @property
    def scratch(self) -> int:
        """Bytes of device memory that each context takes for tensors between layers, at the max shapes."""
        v2 = hasattr(self._engine, "device_memory_size_v2")
        return int(self._engine.device_memory_size_v2 if v2 else self._engine.device_memory_size)

    @property
    def opt(self) -> Shape:
        """The input shape that the engine was tuned for."""
        spec = self.inputs[0]
        return spec.opt or tuple(dim for dim in spec.shape if isinstance(dim, int))

    @property
    def captures(self) -> bool:
        """Whether the runtime captures CUDA graphs on its own (RTX, after `specialize` turned it on)."""
        return self._config is not None and "WHOLE_GRAPH_CAPTURE" in members(self._module, "CudaGraphStrategy")

    def specialize(self, *, cuda_graph: bool, stored: CompilerCache | None) -> None:
        """Sets up what only RTX has: its own CUDA graphs, and the kernels compiled in an earlier process.

        Call it before the first context. A version without runtime configuration is left as it is. Raises EngineError
        if the runtime makes no configuration.
        """
        if not members(self._module, "CudaGraphStrategy"):
            return
        with refusals(self._module, f"{self.name} takes no runtime configuration for {self._owner}"):
            self._configure(cuda_graph=cuda_graph, stored=stored)

    def _configure(self, *, cuda_graph: bool, stored: CompilerCache | None) -> None:
        module = self._module
        self._config = self._engine.create_runtime_config()
        if self._config is None:
            raise EngineError(f"{self.name} makes no runtime configuration for {self._owner}: {logged(module)}")
        name = "WHOLE_GRAPH_CAPTURE" if cuda_graph else "DISABLED"
        strategy = module.CudaGraphStrategy.__members__[name]
        self._config.cuda_graph_strategy = strategy
        if self._config.cuda_graph_strategy != strategy:  # the bindings drop what the library's setter returns
            log.warning("%s does not take the CUDA graph strategy %s: %s", self.name, name, logged(module))
        if stored is None:
            return
        self._stored, self._cache = stored, self._config.create_runtime_cache()
        if self._cache is None or not self._config.set_runtime_cache(self._cache):
            log.warning("%s takes no runtime cache (%s): kernels are compiled again", self.name, logged(module))
            self._cache = None
            return
        blob = stored.read()
        if blob and not self._cache.deserialize(blob):
            log.warning("%s does not take %s (%s): kernels are compiled again", self.name, stored.path, logged(module))

    def store(self) -> None:
        """Keeps the kernels that RTX has compiled for the next process. A failure is only logged."""
        if self._cache is None or self._stored is None:
            return
        try:
            serialized = self._cache.serialize()
        except _RAISED as error:
            log.warning("%s does not keep its compiled kernels: %s", self.name, first_line(error))
            return
        if serialized is not None:
            blob = bytes(serialized)  # it contains what was read, so there is nothing to merge
            self._stored.write(lambda present: blob)

    def new_context(self) -> Context:
        """Scratch memory and state for one call at a time. Raises EngineError if there is no room for it."""
        cause = f"{self.name} makes no context for {self._owner}, which needs {self.scratch >> 20} MiB"
        fix = f"close other programs on the GPU, or build with a smaller {spelled('size')} or {spelled('batch')}"
        with refusals(self._module, cause, fix):
            # By position: up to 10.3 there is no configuration, and so no keyword.
            context = self._engine.create_execution_context(*(() if self._config is None else (self._config,)))
        if context is None:
            raise EngineError(f"{cause}: {logged(self._module)}", fix)
        return Context(context, self._module, self._owner, tuple(spec.name for spec in self.outputs))

    def new_profiler(self, times: dict[str, float]) -> Any:
        """An `IProfiler` that adds every layer's milliseconds to `times`."""

        class Profiler(self._module.IProfiler):  # type: ignore[name-defined]
            def __init__(self) -> None:
                super_init(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times[layer_name] = times.get(layer_name, 0.0) + ms

        super_init = self._module.IProfiler.__init__  # the bindings demand this call by its name
        return Profiler()

    def inspect(self) -> str:
        """The layers as the compiler describes them, JSON; only their names if it was built without details.

        Raises EngineError if there is no description.
        """
        cause = f"{self.name} tells nothing of the layers of {self._owner}"
        with refusals(self._module, cause):
            inspector = self._engine.create_engine_inspector()
            layers = inspector and inspector.get_engine_information(self._module.LayerInformationFormat.JSON)
        if not layers:
            raise EngineError(f"{cause}: {logged(self._module)}")
        return str(layers)

    def close(self) -> None:
        """Frees the engine; every context must be gone."""
        self._cache = self._config = self._engine = None
        self._runtime = None

    def _check_validity(self, content: bytes) -> None:
        """Asks the runtime whether it can run the engine, if it can tell: otherwise the reason is only in its log."""
        if not hasattr(self._runtime, "get_engine_validity"):
            return
        validity, diagnostics = self._runtime.get_engine_validity(content)
        kinds = self._module.EngineInvalidityDiagnostics.__members__
        names = [name for name, bit in kinds.items() if diagnostics & int(bit)]
        why = ", ".join(name.lower().replace("_", " ") for name in names) or "no reason given"
        if validity == self._module.EngineValidity.INVALID:
            raise EngineError(f"{self.name} cannot run {self._owner} on this GPU: {why}", self._fix)
        if validity == self._module.EngineValidity.SUBOPTIMAL:
            log.warning("%s runs %s slower than it could: %s", self.name, self._owner, why)

    def _specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        module, engine = self._module, self._engine
        inputs, outputs = [], []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = engine.get_tensor_dtype(name).name
            if kind not in _DTYPES:
                raise EngineError(f"{self._owner}: {name} is {kind}, not one of {', '.join(_DTYPES)}", self._fix)
            extents = tuple(engine.get_tensor_shape(name))
            shape = tuple(dim if dim >= 0 else f"{name}.{axis}" for axis, dim in enumerate(extents))
            if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT:
                smallest, opt, largest = (tuple(dims) for dims in engine.get_tensor_profile_shape(name, 0))
                limits = (smallest, opt, largest) if -1 in extents else (None, None, None)
                inputs.append(TensorSpec(name, _DTYPES[kind], shape, *limits))
            else:
                outputs.append(TensorSpec(name, _DTYPES[kind], shape))
        return tuple(inputs), tuple(outputs)


class Context:
    """An execution context: state and scratch memory for one call at a time."""

    def __init__(self, context: Any, module: ModuleType, owner: str, outputs: tuple[str, ...]) -> None:
        self._context: Any = context
        self._module, self._owner, self._outputs = module, owner, outputs

    def set_shape(self, name: str, shape: Shape) -> dict[str, Shape]:
        """Sets the input's shape and returns the outputs' shapes. Raises EngineError for one outside the profile."""
        refused = f"{self._owner} refuses {name} {list(shape)}"
        with refusals(self._module, refused):
            if not self._context.set_input_shape(name, shape):
                raise EngineError(f"{refused}: {logged(self._module)}")
            if unset := self._context.infer_shapes():
                raise EngineError(f"{self._owner} cannot tell the shape of {', '.join(unset)}: {logged(self._module)}")
            return {output: tuple(self._context.get_tensor_shape(output)) for output in self._outputs}

    def bind(self, name: str, address: int) -> None:
        """Sets the device address of a tensor. Raises EngineError."""
        refused = f"{self._owner} refuses the address {address:#x} for {name}"
        with refusals(self._module, refused):
            if not self._context.set_tensor_address(name, address):
                raise EngineError(f"{refused}: {logged(self._module)}")

    def enqueue(self, stream: int) -> None:
        """Gives one run to the stream. Raises EngineError if TensorRT refuses. A later failure on the GPU is raised
        when the stream is synchronized."""
        refused = f"{self._owner} failed to start on the GPU"
        with refusals(self._module, refused):
            if not self._context.execute_async_v3(stream):
                raise EngineError(f"{refused}: {logged(self._module)}")

    def profile(self, profiler: Any) -> None:
        """Reports the layer times of every run to `profiler`; None stops that. Raises EngineError."""
        with refusals(self._module, f"{self._owner} takes no profiler"):
            self._context.profiler = profiler

    def close(self) -> None:
        self._context = None


@contextmanager
def refusals(module: ModuleType, cause: str, fix: str | None = None) -> Iterator[None]:
    """Raises EngineError for what the bindings raise instead of returning None or False.

    pybind11 also raises for a value that does not fit the C++ type: TypeError, or ValueError.
    """
    try:
        yield
    except UsageError:  # ours, and a ValueError
        raise
    except _RAISED as error:
        raise EngineError(f"{cause}: {logged(module)} ({first_line(error)})", fix) from error

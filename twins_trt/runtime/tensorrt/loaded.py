"""A serialized engine, loaded: everything that is asked of TensorRT or TensorRT-RTX itself happens here.

TensorRT reports failure by null and False and says why only in its log, so every result is checked and every error
carries what was logged. Names that a version lacks are looked up, never assumed.
"""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any, get_args

from twins_trt.bindings import NAMES, members, process_logger, said
from twins_trt.compiler_cache import CompilerCache
from twins_trt.errors import EngineError
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
assert set(_DTYPES.values()) == set(get_args(DType))

Shape = tuple[int, ...]


class LoadedEngine:
    """An engine in memory. content: what the builder serialized. owner, rebuild: what errors call it and the mend.

    Contexts may be made and used by several threads, each by one thread at a time. Raises EngineError where the runtime
    does not start, refuses the plan, or the plan is not a network of one image.
    """

    def __init__(self, module: ModuleType, content: bytes, *, owner: str, rebuild: str) -> None:
        self._module, self._owner = module, owner
        self.name = f"{NAMES[module.__name__]} {module.__version__}"
        self._fix = f"rebuild it here: {rebuild}"
        self._config: Any = None
        self._cache: Any = None
        self._stored: CompilerCache | None = None
        try:
            self._runtime: Any = module.Runtime(process_logger(module))
        except (TypeError, RuntimeError) as error:  # the bindings' way to say that the library returned null
            raise EngineError(
                f"{self.name} does not start: {said(module)} ({error})",
                "check that the GPU driver matches its CUDA version (nvidia-smi)",
            ) from error
        self._runtime.engine_host_code_allowed = False  # a bundle's plan must not bring code for the CPU along
        self._check_validity(content)
        self._engine: Any = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise EngineError(f"{self.name} refuses {owner}: {said(module)}", self._fix)
        self.inputs, self.outputs = self._specs()
        if len(self.inputs) != 1:
            raise EngineError(f"{owner} has {len(self.inputs)} inputs, not one image", self._fix)
        # What version has which figure differs; the plan's own size is close, for weights are nearly all of it.
        self.weights = len(content)
        if "TOTAL_WEIGHTS_SIZE" in members(module, "EngineStat") and hasattr(self._engine, "get_engine_stat"):
            self.weights = int(self._engine.get_engine_stat(module.EngineStat.TOTAL_WEIGHTS_SIZE))

    @property
    def scratch(self) -> int:
        """Bytes of device memory that every context takes for what lies between layers, at the largest shapes."""
        v2 = hasattr(self._engine, "device_memory_size_v2")
        return int(self._engine.device_memory_size_v2 if v2 else self._engine.device_memory_size)

    @property
    def opt(self) -> Shape:
        """The input shape that the engine was tuned for."""
        spec = self.inputs[0]
        return spec.opt or tuple(dim for dim in spec.shape if isinstance(dim, int))

    @property
    def captures(self) -> bool:
        """Whether the runtime captures CUDA graphs by itself (RTX, once `specialize` asked it to)."""
        return self._config is not None and "WHOLE_GRAPH_CAPTURE" in members(self._module, "CudaGraphStrategy")

    def specialize(self, *, cuda_graph: bool, stored: CompilerCache | None) -> None:
        """What only RTX has, before the first context: its own CUDA graphs, and kernels compiled in an earlier run.

        A version without runtime configuration is left as it is.
        """
        module = self._module
        if not members(module, "CudaGraphStrategy"):
            return
        self._config = self._engine.create_runtime_config()
        if self._config is None:
            raise EngineError(f"{self.name} makes no runtime configuration for {self._owner}: {said(module)}")
        name = "WHOLE_GRAPH_CAPTURE" if cuda_graph else "DISABLED"
        strategy = module.CudaGraphStrategy.__members__[name]
        self._config.cuda_graph_strategy = strategy
        if self._config.cuda_graph_strategy != strategy:  # the bindings drop what the library's setter returns
            log.warning("%s does not take the CUDA graph strategy %s: %s", self.name, name, said(module))
        if stored is None:
            return
        self._stored, self._cache = stored, self._config.create_runtime_cache()
        if self._cache is None or not self._config.set_runtime_cache(self._cache):
            log.warning("%s takes no runtime cache (%s): kernels are compiled anew", self.name, said(module))
            self._cache = None
            return
        blob = stored.read()
        if blob and not self._cache.deserialize(blob):
            log.warning("%s does not take %s (%s): kernels are compiled anew", self.name, stored.path, said(module))

    def store(self) -> None:
        """Keeps what RTX compiled so far for the next process; a failure costs a log line."""
        if self._cache is None or self._stored is None:
            return
        serialized = self._cache.serialize()
        if serialized is not None:
            blob = bytes(serialized)  # what was read is in it, so there is nothing to merge
            self._stored.write(lambda present: blob)

    def new_context(self) -> Context:
        """Scratch memory and state for one call at a time. Raises EngineError where there is no room for it."""
        # Not the keyword: up to 10.3 there is no configuration to give.
        made = self._engine.create_execution_context(*(() if self._config is None else (self._config,)))
        if made is None:
            raise EngineError(
                f"{self.name} makes no context for {self._owner}, which needs {self.scratch >> 20} MiB: "
                f"{said(self._module)}",
                f"close other programs on the GPU, or build with a smaller {spelled('size')} or {spelled('batch')}",
            )
        return Context(made, self._module, self._owner, tuple(spec.name for spec in self.outputs))

    def new_profiler(self, times: dict[str, float]) -> Any:
        """An `IProfiler` that adds every layer's milliseconds to `times`."""

        class Profiler(self._module.IProfiler):  # type: ignore[name-defined]
            def __init__(self) -> None:
                super_init(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times[layer_name] = times.get(layer_name, 0.0) + ms

        super_init = self._module.IProfiler.__init__  # the bindings demand it by name
        return Profiler()

    def inspect(self) -> str:
        """What the compiler says of the layers, JSON; names alone for a plan that was not built in detail.

        Raises EngineError where it says nothing.
        """
        inspector = self._engine.create_engine_inspector()
        layers = inspector and inspector.get_engine_information(self._module.LayerInformationFormat.JSON)
        if not layers:
            raise EngineError(f"{self.name} tells nothing of the layers of {self._owner}: {said(self._module)}")
        return str(layers)

    def close(self) -> None:
        """Frees the engine; every context must be gone."""
        self._cache = self._config = self._engine = None
        self._runtime = None

    def _check_validity(self, content: bytes) -> None:
        """Asks a runtime that can tell, before it fails for a reason that it only logs."""
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
                least, usual, most = (tuple(dims) for dims in engine.get_tensor_profile_shape(name, 0))
                limits = (least, usual, most) if -1 in extents else (None, None, None)
                inputs.append(TensorSpec(name, _DTYPES[kind], shape, *limits))
            else:
                outputs.append(TensorSpec(name, _DTYPES[kind], shape))
        return tuple(inputs), tuple(outputs)


class Context:
    """What one call at a time needs of the engine."""

    def __init__(self, made: Any, module: ModuleType, owner: str, outputs: tuple[str, ...]) -> None:
        self._made: Any = made
        self._module, self._owner, self._outputs = module, owner, outputs

    def set_shape(self, name: str, shape: Shape) -> dict[str, Shape]:
        """Sets the input's shape; the shapes of the outputs. Raises EngineError for one outside the profile."""
        if not self._made.set_input_shape(name, shape):
            raise EngineError(f"{self._owner} refuses {name} {list(shape)}: {said(self._module)}")
        if unset := self._made.infer_shapes():
            raise EngineError(f"{self._owner} cannot tell the shape of {', '.join(unset)}: {said(self._module)}")
        return {output: tuple(self._made.get_tensor_shape(output)) for output in self._outputs}

    def bind(self, name: str, address: int) -> None:
        """Where a tensor lies on the device. Raises EngineError."""
        if not self._made.set_tensor_address(name, address):
            raise EngineError(f"{self._owner} refuses the address {address:#x} for {name}: {said(self._module)}")

    def enqueue(self, stream: int) -> None:
        """Gives one run to the stream. Raises EngineError where TensorRT refuses; what fails later on the GPU is told
        when the stream is synchronized."""
        if not self._made.execute_async_v3(stream):
            raise EngineError(f"{self._owner} failed to start on the GPU: {said(self._module)}")

    def profile(self, profiler: Any) -> None:
        """Reports layer times of every run to `profiler`, or to nobody where that is None."""
        self._made.profiler = profiler

    def close(self) -> None:
        self._made = None

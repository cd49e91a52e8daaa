"""TensorRT runtimes of any version that run engines on a `FakeGpu`; `fake_arithmetic.py` computes.

`runtime_module("10.3.0", gpu)` is `fake_tensorrt`'s module, whose names and signatures are the real ones, with a
runtime, engines and contexts behind them. `serialize(graph, ...)` makes what it deserializes. What TensorRT does only
sometimes or leaves undefined is an error here: running a graph whose context has changed since, capturing before the
work that follows a change of shape is done, a context in two streams at once, tensors without an address.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fake_arithmetic import OnnxSession, Session
from fake_gpu import FakeGpu, Status, Work
from fake_tensorrt import fake_module, made

MAGIC = b"fake engine\n"
DTYPES = {"tensor(uint8)": "UINT8", "tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
NUMPY = {"UINT8": np.uint8, "FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}
ALIGNMENT = 256  # "must have at least 256-byte alignment": C++ API, IExecutionContext::setTensorAddress
LAYERS = ("copy", "_gemm_mha_v2", "argmax")


@dataclass
class Faults:
    """What goes wrong: deserializing, making contexts after so many, so many enqueues to come, capturing.

    raises: methods that raise RuntimeError where they would report failure, as the bindings of some versions do.
    """

    loads: bool = True
    contexts: int | None = None
    enqueues: int = 0
    captures: bool = True
    binds: bool = True
    shapes: bool = True
    validity: tuple[str, int] = ("VALID", 0)
    cache: bool = True
    raises: frozenset[str] = frozenset()
    contexts_made: int = field(default=0, init=False)


def serialize(graph: bytes, *, version: str, profile: tuple[Any, Any, Any] | None = None) -> bytes:
    """A serialized engine. profile: min, opt and max shape of a dynamic input."""
    return MAGIC + json.dumps({"version": version, "profile": profile}).encode() + b"\n" + graph


def runtime_module(
    version: str,
    gpu: FakeGpu,
    faults: Faults | None = None,
    *,
    open_session: Callable[[bytes], Session] = OnnxSession,
    behaviours: Mapping[tuple[str, str], Callable[..., Any]] | None = None,
) -> Any:
    """The module of a version, with `module.faults`.

    open_session: what computes a graph. behaviours: as `fake_module` takes them, in place of those here.
    """
    module = fake_module(version, behaviours={**_BEHAVIOURS, **(behaviours or {})})
    module.gpu, module.faults, module.open_session = gpu, faults or Faults(), open_session
    module.IExecutionContext.profiler = property(_get_profiler, _set_profiler)
    return module


def _fail(fake: Any, text: str, method: str = "") -> None:
    module = fake._module
    module.Runtime.logger.log(module.ILogger.Severity.ERROR, text)
    if method in module.faults.raises:
        raise RuntimeError(text)


def _deserialize(self: Any, content: Any) -> Any:
    module = self._module
    module.Runtime.logger = self._logger
    assert self.engine_host_code_allowed is False, "an engine may bring code along"
    if not module.faults.loads or not bytes(content).startswith(MAGIC):
        _fail(self, "Serialization assertion failed: no engine")
        return None
    head, _, graph = bytes(content)[len(MAGIC) :].partition(b"\n")
    fields = json.loads(head)
    if fields["version"] != module.__version__:
        _fail(self, f"expecting library version {module.__version__} got {fields['version']}")
        return None
    engine = made(module, "ICudaEngine")
    engine._graph = graph
    engine._session = module.open_session(graph)
    engine._inputs, engine._outputs = engine._session.inputs, engine._session.outputs
    engine._nodes = {**engine._inputs, **engine._outputs}
    engine._profile = fields["profile"]
    engine._device = module.gpu.current
    return engine


def _profile_shape(self: Any, name: str, profile: int) -> Any:
    assert profile == 0
    if self._profile is None:
        return [tuple(self._nodes[name].shape)] * 3
    return [tuple(shape) for shape in self._profile]


def _shape(self: Any, name: str) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else -1 for dim in self._nodes[name].shape)


def _create_context(self: Any, config: Any = None) -> Any:
    module = self._module
    if module.faults.contexts is not None and module.faults.contexts_made >= module.faults.contexts:
        _fail(self, "OutOfMemory: no room for the context")
        return None
    module.faults.contexts_made += 1
    context = made(module, "IExecutionContext")
    context._engine, context._config = self, config
    context._shapes, context._addresses = {}, {}
    context._state = context._flushed = context._stream = context._profiler = None
    return context


def _set_profiler(self: Any, profiler: Any) -> None:
    """The bindings hand a pointer to the library and keep nothing alive."""
    self._profiler = None if profiler is None else weakref.ref(profiler)


def _get_profiler(self: Any) -> Any:
    if self._profiler is None:
        return None
    profiler = self._profiler()
    assert profiler is not None, "the profiler of a context is gone"
    return profiler


def _set_input_shape(self: Any, name: str, shape: Any) -> bool:
    limits = _profile_shape(self._engine, name, 0)
    fits = len(shape) == len(limits[0]) and all(
        low <= dim <= high for low, dim, high in zip(limits[0], shape, limits[2], strict=True)
    )
    if not fits or not self._module.faults.shapes:
        _fail(self, f"set input shape {tuple(shape)} out of the profile", "set_input_shape")
        return False
    self._shapes[name] = tuple(shape)
    self._state = object()
    return True


def _unset(self: Any) -> list[str]:
    """Inputs of a dynamic shape that was not set yet; a static one is known."""
    return [name for name in self._engine._inputs if name not in self._shapes and -1 in _shape(self._engine, name)]


def _tensor_shape(self: Any, name: str) -> tuple[int, ...]:
    if _unset(self):
        return _shape(self._engine, name)
    (image,) = self._engine._inputs.values()
    self._shapes.setdefault(image.name, _shape(self._engine, image.name))
    if name in self._engine._inputs:
        return self._shapes[name]
    if -1 not in _shape(self._engine, name):
        return _shape(self._engine, name)
    # What the graph computes for zeros of the input's shape.
    zeros = np.zeros(self._shapes[image.name], NUMPY[DTYPES[image.type]])
    return self._engine._session.run([name], {image.name: zeros})[0].shape


def _set_address(self: Any, name: str, address: int) -> bool:
    if name not in self._engine._nodes or not self._module.faults.binds:
        _fail(self, f"no tensor {name}", "set_tensor_address")
        return False
    if address % ALIGNMENT:
        _fail(self, f"the address {address:#x} of {name} is not aligned", "set_tensor_address")
        return False
    self._addresses[name] = address
    self._state = object()
    return True


def _execute(self: Any, stream: int) -> bool:
    module, gpu, engine = self._module, self._module.gpu, self._engine
    if module.faults.enqueues:
        module.faults.enqueues -= 1
        _fail(
            self, "enqueueV3: Error Code 1: Cuda Runtime (an illegal memory access was encountered)", "execute_async_v3"
        )
        return False
    if absent := [name for name in engine._nodes if name not in self._addresses]:
        _fail(self, f"address of {absent[0]} is not set", "execute_async_v3")
        return False
    if self._stream is not None and self._stream != stream:
        raise AssertionError("a context in two streams")
    if len({engine._device, gpu.current, gpu.find_stream(stream).device}) > 1:
        _fail(self, "enqueueV3: the stream, the engine and the current device differ", "execute_async_v3")
        return False
    capturing = gpu.capturing(stream)
    if capturing and (self._flushed != self._shapes or not module.faults.captures):
        _fail(self, "operation not permitted when stream is capturing", "execute_async_v3")
        return False
    self._flushed = dict(self._shapes)
    shapes, addresses, state, profiler = dict(self._shapes), dict(self._addresses), self._state, self.profiler
    (image,) = engine._inputs.values()
    sizes = {name: (_tensor_shape(self, name), NUMPY[DTYPES[node.type]]) for name, node in engine._outputs.items()}

    def memory(name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return gpu.bytes_at(addresses[name], size, device=engine._device).view(dtype).reshape(shape)

    def run() -> None:
        assert not capturing or state is self._state, "a graph was replayed after its context had changed"
        pixels = memory(image.name, shapes[image.name], NUMPY[DTYPES[image.type]])
        results = engine._session.run(list(sizes), {image.name: pixels.copy()})
        for (name, (shape, dtype)), result in zip(sizes.items(), results, strict=True):
            memory(name, shape, dtype)[...] = result
        if profiler is not None:
            for index, layer in enumerate(LAYERS):
                profiler.report_layer_time(layer, 0.5 * (index + 1))

    def writes() -> list[Any]:
        return [memory(name, shape, dtype).view(np.uint8) for name, (shape, dtype) in sizes.items()]

    gpu.give(stream, Work(run, writes))
    return True


def _validity(self: Any, content: Any) -> tuple[Any, int]:
    name, bits = self._module.faults.validity
    return self._module.EngineValidity.__members__[name], bits


def _set_cache(self: Any, cache: Any = None) -> bool:
    self._cache = cache
    return bool(self._module.faults.cache)


def _read_cache(self: Any, blob: Any) -> bool:
    self._content = bytes(blob)
    return self._content.startswith(b"kernels")


def _write_cache(self: Any) -> Any:
    memory = made(self._module, "IHostMemory")
    memory._content = b"kernels of " + str(self._module.__name__).encode()
    return memory


_BEHAVIOURS: dict[tuple[str, str], Any] = {
    ("Runtime", "deserialize_cuda_engine"): _deserialize,
    ("Runtime", "get_engine_validity"): _validity,
    ("ICudaEngine", "num_io_tensors"): lambda self: len(self._nodes),
    ("ICudaEngine", "get_tensor_name"): lambda self, index: list(self._nodes)[index],
    ("ICudaEngine", "get_tensor_dtype"): lambda self, name: self._module.DataType.__members__[
        DTYPES[self._nodes[name].type]
    ],
    ("ICudaEngine", "get_tensor_mode"): lambda self, name: self._module.TensorIOMode.__members__[
        "INPUT" if name in self._inputs else "OUTPUT"
    ],
    ("ICudaEngine", "get_tensor_shape"): _shape,
    ("ICudaEngine", "get_tensor_profile_shape"): _profile_shape,
    ("ICudaEngine", "create_execution_context"): _create_context,
    ("ICudaEngine", "create_runtime_config"): lambda self: made(self._module, "IRuntimeConfig"),
    ("ICudaEngine", "get_engine_stat"): lambda self, stat: 1000,
    ("ICudaEngine", "device_memory_size"): lambda self: 4096,
    ("ICudaEngine", "device_memory_size_v2"): lambda self: 4096,
    ("IRuntimeConfig", "create_runtime_cache"): lambda self: made(self._module, "IRuntimeCache"),
    ("IRuntimeConfig", "set_runtime_cache"): _set_cache,
    ("IRuntimeCache", "deserialize"): _read_cache,
    ("IRuntimeCache", "serialize"): _write_cache,
    ("IExecutionContext", "set_input_shape"): _set_input_shape,
    ("IExecutionContext", "get_tensor_shape"): _tensor_shape,
    ("IExecutionContext", "infer_shapes"): _unset,
    ("IExecutionContext", "set_tensor_address"): _set_address,
    ("IExecutionContext", "execute_async_v3"): _execute,
}


def broken(gpu: FakeGpu) -> None:
    """From now on every call fails, as after a kernel that wrote where it must not."""
    gpu.broken = Status.cudaErrorIllegalAddress

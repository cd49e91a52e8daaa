"""What every kind of engine offers, and what only some of them offer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from twins_trt.errors import UsageError
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from twins_trt.inference.interface import GraphInterface
    from twins_trt.inference.tensors import TensorSpec
    from twins_trt.runtime.manifest import EngineFile

    Array = npt.NDArray[np.generic]

# `run` is the engine's whole call as its caller sees it. `copy_in`, `engine` and `copy_out` are its parts, which only
# an engine with its own memory can time. The other stages are the Segmenter's.
Stage = Literal["decode", "preprocess", "run", "copy_in", "engine", "copy_out", "postprocess"]
# observe(stage, seconds): called after every stage, in the thread that ran it.
OnStage = Callable[[Stage, float], None]


@dataclass(frozen=True)
class RuntimeOptions:
    """How an engine runs. A kind ignores the options that do not concern it.

    threads: CPU threads for one call; None lets the runtime take every core. deterministic: use no kernel whose result
    depends on the order in which threads finish.
    contexts: calls that a GPU engine runs at once, each with its own buffers and scratch memory. With 2, the copies of
    one frame overlap the work on another. cuda_graph: replay calls as CUDA graphs if possible.
    memory: the package that moves data, `cuda-bindings` or `pycuda`; `auto` takes the one that is installed.
    runtime_cache: the folder or file where TensorRT-RTX keeps the kernels that it compiles on this GPU; `auto` is
    `~/.cache/twins-trt/runtime`, `none` compiles them again in every process.
    observe: the engine's `observe` at first, and that of a Segmenter that gets these options.
    """

    threads: int | None = None
    deterministic: bool = True
    contexts: int = 2
    cuda_graph: bool = True
    memory: str = "auto"
    runtime_cache: str = "auto"
    observe: OnStage | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(
                f"{spelled('threads')} is {self.threads}", "give 1 or more, or leave it out for every core"
            )
        if self.contexts < 1:
            raise UsageError(f"contexts is {self.contexts}", "give 1 or more")


class EngineSource(Protocol):
    """What an engine is opened from: a bundle, or a build that is not yet a bundle.

    path: the name in errors. graph: the ONNX file. interface: of the graph. precision: `fp32`, `fp16` or `int8`.
    engines: the serialized engines, each with the GPUs that it is for. rebuild: the command that makes it all again.
    """

    @property
    def path(self) -> Path: ...
    @property
    def graph(self) -> Path: ...
    @property
    def interface(self) -> GraphInterface: ...
    @property
    def precision(self) -> str: ...
    @property
    def engines(self) -> tuple[EngineFile, ...]: ...
    @property
    def rebuild(self) -> str: ...
    def read(self, engine: EngineFile) -> bytes:
        """The content of one of `engines`, as the compiler serialized it."""
        ...


@runtime_checkable
class Engine(Protocol):
    """An engine executes a graph.

    name: its kind (`onnxruntime`). inputs, outputs: its tensors; dynamic dimensions have limits.
    concurrent: whether several threads may call it at once. A Segmenter locks an engine that does not allow that.
    observe: called with the time of every stage that the engine can time, or None. It may be set at any time; a call
    keeps the one that it finds when it begins. An observed call waits for every stage, so that it takes longer than
    one that is not observed.
    """

    observe: OnStage | None

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def concurrent(self) -> bool: ...

    def __call__(
        self, image: Array, *, outputs: Sequence[str] | None = None, out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Runs on `image`, whose dtype and shape must fit `inputs[0]`.

        outputs: names of the outputs to copy to the host, by default all. Unneeded logits of 150 classes cost more than
        the network. out: C-contiguous arrays to write into, of exactly the output's dtype and shape. An output that is
        not in `out` is a new array, which the caller may keep. Raises EngineError.
        """
        ...

    def close(self) -> None:
        """Frees what the engine holds. Calling it again does nothing; no other call may follow."""
        ...


class Pending(Protocol):
    """A call that is under way. Call exactly one of its methods, once."""

    def result(self) -> dict[str, Array]:
        """Waits for the outputs, which the caller may keep. Raises EngineError if the call failed."""
        ...

    def discard(self) -> None:
        """Waits until nothing of the call runs any more, and drops its outputs."""
        ...


@runtime_checkable
class Pipelined(Protocol):
    """An engine whose caller can do something else while a call is under way."""

    def submit(self, image: Array, *, outputs: Sequence[str] | None = None, wait: bool = True) -> Pending | None:
        """Starts a call; `image` may be reused at once unless it is an `input_buffer`. Raises as `__call__` does.

        wait: wait until there is room for one more call (`RuntimeOptions.contexts`); otherwise return None if there is
        no room. A thread with a pending call must not wait: two such threads would wait for each other.
        """
        ...


@runtime_checkable
class GivesInputBuffers(Protocol):
    """An engine with memory for images that the GPU reads without a copy by the processor."""

    def input_buffer(self, shape: Sequence[int] | None = None) -> Array:
        """An array for an image, of the dtype of `inputs[0]` and of undefined content, that is not in use.

        shape: by default the graph's own, of a dynamic graph the one that it is tuned for. A call reads the array, or a
        C-contiguous view of it, where it lies: write it again when the call's result is there. The call keeps it
        alive. Its memory comes back to the engine when the last reference to it or to a view is gone.
        Raises UsageError for a shape that does not fit, EngineError without room for it.
        """
        ...


@runtime_checkable
class RunsOnDevice(Protocol):
    """An engine that takes arrays on a GPU and leaves its outputs there."""

    def run_on_device(
        self,
        image: Any,
        *,
        outputs: Sequence[str] | None = None,
        out: Mapping[str, Any] | None = None,
        stream: Any = None,
    ) -> dict[str, Any]:
        """Runs on an array on the GPU and leaves the outputs there; nothing goes through the host.

        image, out: anything with `__dlpack__` or `__cuda_array_interface__`, C-contiguous, of the graph's dtype and
        shape. An output that is not in `out` is a `DeviceArray`, in memory that an earlier result has left; its class
        says when that is. Inside a stream capture of your own, give `out`.
        stream: the caller's, a handle or an object of PyTorch, CuPy, Numba or cuda.core. The run waits for the work
        that the stream already has, later work on the stream waits for the run, and this method returns at once.
        Without a stream, those that the arrays name are used in the same way; if an array names none, this returns when
        the run is over.
        The run is replayed as a CUDA graph. Arrays that stay the same, and whose addresses the engine can use, are read
        and written in place; others are copied on the GPU. Raises UsageError for arrays that cannot be used,
        EngineError as `__call__` does.
        """
        ...


@dataclass(frozen=True)
class DeviceMemory:
    """The GPU memory of an engine, bytes: weights, scratch memory of all contexts, input and output buffers.

    Memory that the driver and the compiler's runtime take for themselves is not counted.
    """

    weights: int
    scratch: int
    buffers: int

    @property
    def total(self) -> int:
        return self.weights + self.scratch + self.buffers


@runtime_checkable
class HoldsDeviceMemory(Protocol):
    """An engine that can tell how much device memory it holds."""

    def device_memory(self) -> DeviceMemory: ...


@dataclass(frozen=True)
class LayerTime:
    """A layer as the engine names it, and its mean time in one run, milliseconds.

    operator: the engine's kind of layer. nodes: the graph nodes that it computes. Both are empty if the engine does not
    tell.
    """

    name: str
    milliseconds: float
    operator: str = ""
    nodes: tuple[str, ...] = ()


@runtime_checkable
class ProfilesLayers(Protocol):
    """An engine that can time its layers."""

    def profile_layers(self, image: Array, *, runs: int = 10) -> tuple[LayerTime, ...]:
        """Mean times over `runs` runs on `image`, in order of execution. Timing slows down the run, so their sum is
        more than a run takes. Raises EngineError."""
        ...


@runtime_checkable
class InspectsLayers(Protocol):
    """An engine whose compiler can describe its layers."""

    def inspect_layers(self) -> str:
        """The finished layers as the compiler's inspector gives them, JSON. Raises EngineError."""
        ...


@contextmanager
def observed(observe: OnStage | None, stage: Stage) -> Iterator[None]:
    """Calls `observe`, if there is one, with the time of the block, unless the block raises."""
    if observe is None:
        yield
        return
    start = time.perf_counter()
    yield
    observe(stage, time.perf_counter() - start)

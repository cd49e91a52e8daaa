"""What every engine kind offers, what some offer besides, and the checks they share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from twins_trt.errors import BundleError, EngineError, UsageError
from twins_trt.inference.tensors import Described, TensorSpec, describe
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from twins_trt.inference.interface import GraphInterface
    from twins_trt.runtime.manifest import EngineFile

    Array = npt.NDArray[np.generic]

# `run` is the engine's whole call as its caller sees it; `copy_in`, `engine` and `copy_out` are parts of it, which only
# an engine with a memory of its own can tell apart. The others are a Segmenter's.
Stage = Literal["decode", "preprocess", "run", "copy_in", "engine", "copy_out", "postprocess"]
# observe(stage, seconds): after every stage, in the thread that went through it.
Observe = Callable[[Stage, float], None]


@dataclass(frozen=True)
class RuntimeOptions:
    """How an engine runs. Settings that a kind has no use for are ignored by it.

    threads: CPU threads for one call; None lets the runtime take every core. deterministic: refuse kernels whose result
    depends on the order in which threads finish.
    contexts: calls that a GPU engine runs at once, each with buffers and scratch memory of its own; 2 let the copies of
    one frame overlap the work on another. cuda_graph: replay calls as CUDA graphs where that is possible.
    memory: which package moves data, `cuda-bindings` or `pycuda`; `auto` takes what is installed.
    runtime_cache: the folder or file where TensorRT-RTX keeps the kernels it compiles on this GPU; `auto` is
    `~/.cache/twins-trt/runtime`, `none` compiles them anew in every process.
    observe: called with the time of every stage, also by the Segmenter that was given these options.
    """

    threads: int | None = None
    deterministic: bool = True
    contexts: int = 2
    cuda_graph: bool = True
    memory: str = "auto"
    runtime_cache: str = "auto"
    observe: Observe | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(
                f"{spelled('threads')} is {self.threads}", "give 1 or more, or leave it out for every core"
            )
        if self.contexts < 1:
            raise UsageError(f"contexts is {self.contexts}", "give 1 or more")


class EngineSource(Protocol):
    """What an engine is opened from: a bundle, or what a build holds before it is one.

    path: what errors call it. graph: the ONNX file. interface: of the graph. precision: `fp32`, `fp16` or `int8`.
    engines: serialized ones, by the GPUs that they are for. rebuild: the command that makes all of it again.
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
        """One of `engines`, as the compiler serialized it."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Something that executes a graph.

    name: its kind (`onnxruntime`). inputs, outputs: the specs, dynamic dimensions with their limits.
    concurrent: whether several threads may call it at once; a Segmenter puts a lock around one that does not allow it.
    """

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
        """Run on `image`, whose dtype and shape must fit `inputs[0]`.

        outputs: which to bring back to the host, default all: 150 classes of logits nobody asked for cost more than the
        network. out: C-contiguous arrays, of exactly the resulting dtype and shape, to write into. An array that is not
        in `out` is newly allocated and the caller's to keep. Raises EngineError.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds; calling it again does nothing. No other call may follow."""
        ...


class Pending(Protocol):
    """A call that is under way. Exactly one of its methods must be called, once."""

    def result(self) -> dict[str, Array]:
        """Wait for the outputs, which are the caller's to keep. Raises EngineError if the call failed."""
        ...

    def discard(self) -> None:
        """Wait until nothing of the call runs any more, and drop its outputs."""
        ...


@runtime_checkable
class Pipelined(Protocol):
    """An engine whose calls can be under way while their caller does something else."""

    def submit(self, image: Array, *, outputs: Sequence[str] | None = None, wait: bool = True) -> Pending | None:
        """Start a call; `image` may be reused at once. Raises as `Engine.__call__` does.

        wait: until there is room for one more call (`RuntimeOptions.contexts`); without, None where there is none. Who
        has a call pending must not wait for room for another: two who do would wait for each other.
        """
        ...


@runtime_checkable
class RunsOnDevice(Protocol):
    """An engine that takes and gives arrays on a GPU where they lie."""

    def run_on_device(
        self,
        image: Any,
        *,
        outputs: Sequence[str] | None = None,
        out: Mapping[str, Any] | None = None,
        stream: Any = None,
    ) -> dict[str, Any]:
        """Run on an array on the GPU and leave the outputs there; nothing is copied.

        image, out: anything with `__dlpack__` or `__cuda_array_interface__`, C-contiguous, of the graph's dtype and
        shape. An output that is not in `out` is a new `DeviceArray`. stream: the caller's, a handle or an object of
        PyTorch, CuPy, Numba or cuda.core: the run waits for what it was given so far, and what it is given later waits
        for the run, while this returns at once. Without it, streams that the arrays themselves name are treated so; if
        one names none, this returns when the run is over.
        Give the same buffers every time: then the run is replayed as a CUDA graph. Raises UsageError for arrays that
        cannot be used, EngineError as `__call__` does.
        """
        ...


@dataclass(frozen=True)
class DeviceMemory:
    """What an engine holds of a GPU's memory, bytes: weights, scratch memory of all contexts, input and output buffers.

    What the driver and the compiler's runtime take for themselves is not in it.
    """

    weights: int
    scratch: int
    buffers: int

    @property
    def total(self) -> int:
        return self.weights + self.scratch + self.buffers


@runtime_checkable
class HoldsDeviceMemory(Protocol):
    """An engine that can tell what it holds of a device's memory."""

    def device_memory(self) -> DeviceMemory: ...


@dataclass(frozen=True)
class LayerTime:
    """A layer as the engine names it, and its mean time in one run, milliseconds.

    operator: the engine's kind of layer. nodes: the graph nodes it computes. Both empty where the engine does not tell.
    """

    name: str
    milliseconds: float
    operator: str = ""
    nodes: tuple[str, ...] = ()


@runtime_checkable
class ProfilesLayers(Protocol):
    """An engine that can time its layers."""

    def profile_layers(self, image: Array, *, runs: int = 10) -> tuple[LayerTime, ...]:
        """Mean times over `runs` runs on `image`, in order of execution. Timing every layer slows the whole, so their
        sum is more than a run takes. Raises EngineError."""
        ...


@runtime_checkable
class InspectsLayers(Protocol):
    """An engine whose compiler describes what it made."""

    def inspect_layers(self) -> str:
        """The finished layers as the compiler's inspector gives them, JSON. Raises EngineError."""
        ...


@contextmanager
def observed(observe: Observe | None, stage: Stage) -> Iterator[None]:
    """Reports how long the block took, if somebody wants to know and it did not fail."""
    if observe is None:
        yield
        return
    start = time.perf_counter()
    yield
    observe(stage, time.perf_counter() - start)


def match_interface(
    source: EngineSource, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, what: str
) -> None:
    """Raise BundleError, with both sides, unless an engine's tensors are those of the source's interface.

    what: the file that has these tensors.
    """
    interface = source.interface
    for kind, listed, actual in (("inputs", interface.inputs, inputs), ("outputs", interface.outputs, outputs)):
        found = {spec.name: spec for spec in actual}
        for i, spec in enumerate(listed):
            other = found.get(spec.name)
            if other is None or not _agree(spec, other):
                has = ", ".join(map(str, actual)) if other is None else str(other)
                raise BundleError(
                    f"{source.path}: manifest.json: {kind}[{i}] is {spec}, {what} has {has}", source.rebuild
                )


def _agree(listed: TensorSpec, actual: TensorSpec) -> bool:
    """Whether the manifest's spec describes the tensor; where the tensor leaves a size open, what it takes counts."""
    if listed.dtype != actual.dtype or len(listed.shape) != len(actual.shape):
        return False
    pairs = zip(listed.shape, actual.shape, strict=True)
    if not all(isinstance(theirs, str) or ours == theirs for ours, theirs in pairs):
        return False
    limits = zip(listed.limits(), actual.limits(), strict=True)
    return actual.min is None or all(
        low >= least and (high or most) <= most for (low, high), (least, most) in limits if most is not None
    )


def check_input(spec: TensorSpec, image: Described, *, owner: str) -> None:
    """Raise EngineError, with both shapes, if `image` cannot be bound to `spec` of `owner` (a bundle or graph)."""
    if str(image.dtype) != spec.dtype or not spec.fits(image.shape):
        raise EngineError(
            f"{owner} accepts {spec}, not {describe(image)}",
            "resize or convert it (a Segmenter does), or build for it: "
            f"{spelled('size', 'HxW')}, {spelled('batch', 'N')}",
        )


def wanted_outputs(specs: Sequence[TensorSpec], outputs: Sequence[str] | None, *, owner: str) -> list[str]:
    """The outputs to compute; all by default. Raises UsageError for a name the engine does not have."""
    names = [spec.name for spec in specs]
    if outputs is None:
        return names
    if unknown := [name for name in outputs if name not in names]:
        raise UsageError(f"{owner} has no output {unknown[0]!r}", f"use {' or '.join(names)}")
    return list(outputs)


def check_out(spec: TensorSpec, array: Array) -> None:
    """Raise EngineError unless the output `spec` can be written into `array`."""
    if str(array.dtype) != spec.dtype or not spec.fits(array.shape):
        raise EngineError(f"the buffer for {spec.name} is {describe(array)}, the output is {spec}")
    if not (array.flags.c_contiguous and array.flags.writeable):
        raise EngineError(f"the buffer for {spec.name} must be C-contiguous and writeable")

"""An engine whose network is one copy on the GPU: what the runtime costs by itself, and whether it is right.

It needs CUDA and cuda-bindings, not TensorRT. `mask` is the first batch·height·width bytes of `image`.

    engine, stub = stub_engine(open_cuda(simulated=False), (1, 512, 512, 3))
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twins_trt.device import Device
from twins_trt.errors import EngineError, MissingDependencyError
from twins_trt.inference.tensors import TensorSpec
from twins_trt.runtime.engines.protocol import RuntimeOptions
from twins_trt.runtime.memory.cuda_bindings import CudaBindings
from twins_trt.runtime.tensorrt.engine import TensorRTEngine

ROOT = Path(__file__).parents[2]
ALIGNMENT = 256  # bytes: TensorRT takes no other addresses
SIDES = (8, 4096)  # pixels, the smallest and the largest
Shape = tuple[int, ...]
Image = npt.NDArray[np.uint8]


def open_cuda(*, simulated: bool) -> Any:
    """The module `cuda.bindings.runtime`: the installed one, or a simulated one for a rehearsal without a GPU.

    Raises MissingDependencyError if it is not installed.
    """
    if not simulated:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise MissingDependencyError("cuda-bindings is not installed", 'pip install "twins-trt[cuda]"') from error
        return runtime
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        import fake_cuda
        import fake_gpu
    finally:
        sys.path.pop(0)
    return fake_cuda.cuda_bindings(fake_gpu.FakeGpu())


def call(cuda: Any, name: str, *given: Any) -> Any:
    """The result of a function of the CUDA runtime. Raises EngineError unless it succeeds."""
    status, *results = getattr(cuda, name)(*given)
    if status != cuda.cudaError_t.cudaSuccess:
        raise EngineError(f"{name} failed: {status.name}")
    return results[0] if results else None


def mask_of(images: Image) -> Image:
    """What the engine makes of images: uint8 [N, H, W] of uint8 [N, H, W, 3]."""
    batch, height, width, _ = images.shape
    return np.ascontiguousarray(images).ravel()[: batch * height * width].reshape(batch, height, width)


class StubContext:
    """What an execution context does, with a copy for the network. enqueued: how often it was given to a stream."""

    def __init__(self, stub: StubEngine, cuda: Any) -> None:
        self._stub, self._cuda = stub, cuda
        self._addresses: dict[str, int] = {}
        self._shape: Shape = ()
        self.enqueued = 0

    def set_shape(self, name: str, shape: Shape) -> dict[str, Shape]:
        """The shapes of the outputs."""
        self._shape = shape
        return {"mask": shape[:3]}

    def bind(self, name: str, address: int) -> None:
        """Sets the address of a tensor. Raises EngineError for one that TensorRT would not take."""
        if address % ALIGNMENT:
            raise EngineError(f"the address {address:#x} of {name} is no multiple of {ALIGNMENT}")
        self._addresses[name] = address

    def enqueue(self, stream: int) -> None:
        """Gives one run to the stream. Raises EngineError."""
        self.enqueued += 1
        active = self._cuda.cudaStreamCaptureStatus.cudaStreamCaptureStatusActive
        if self._stub.disturb is not None and call(self._cuda, "cudaStreamIsCapturing", stream) == active:
            self._stub.disturb()
        batch, height, width, _ = self._shape
        size, kind = batch * height * width, self._cuda.cudaMemcpyKind.cudaMemcpyDefault
        call(self._cuda, "cudaMemcpyAsync", self._addresses["mask"], self._addresses["image"], size, kind, stream)

    def profile(self, profiler: Any) -> None:
        """Does nothing: there are no layers."""

    def close(self) -> None:
        """Does nothing: there is no memory."""


class StubEngine:
    """Stands for `twins_trt.runtime.tensorrt.loaded.LoadedEngine`. opt: uint8 image [N, H, W, 3].

    disturb: called in the middle of every capture.
    """

    name = "stub"
    captures = False
    weights = scratch = 0

    def __init__(self, cuda: Any, opt: Shape) -> None:
        self._cuda, self.opt = cuda, opt
        self.refused_capture = False
        self.disturb: Callable[[], None] | None = None
        batch, height, width, _ = opt
        sides = [(SIDES[0], side, SIDES[1]) for side in (height, width)]
        self.inputs = (TensorSpec.image(sides[0], sides[1], batch=(1, batch, max(batch, 16))),)
        self.outputs = (TensorSpec.mask(sides[0], sides[1], batch=(1, batch, max(batch, 16))),)
        self.contexts: list[StubContext] = []

    @property
    def enqueued(self) -> int:
        """How often a context was given to a stream; a graph that is replayed does not count."""
        return sum(context.enqueued for context in self.contexts)

    def new_context(self) -> StubContext:
        """One more context."""
        self.contexts.append(StubContext(self, self._cuda))
        return self.contexts[-1]

    def store(self) -> None:
        """Does nothing: nothing is compiled."""

    def close(self) -> None:
        """Does nothing: nothing is held."""


def stub_engine(
    cuda: Any, opt: Shape, *, integrated: bool = False, options: RuntimeOptions | None = None
) -> tuple[TensorRTEngine, StubEngine]:
    """A warm engine, and what stands for TensorRT in it. opt: uint8 image [N, H, W, 3].

    integrated: as on a GPU that shares the host's memory, whose buffers are used in place. Raises EngineError.
    """
    stub: Any = StubEngine(cuda, opt)
    device = Device("stub", "sm_90", integrated)
    engine = TensorRTEngine(
        stub, CudaBindings(cuda), device, name="stub", options=options or RuntimeOptions(), owner="stub"
    )
    engine.warm_up()
    return engine, stub


class OnDevice:
    """An array of bytes in device memory, as another library lends it: uint8, C-contiguous.

    offset: bytes from a multiple of 256 to its beginning. stream: what it names in `__cuda_array_interface__`. Freed
    with the object.
    """

    def __init__(self, cuda: Any, shape: Sequence[int], *, offset: int = 0, stream: int | None = None) -> None:
        self._cuda, self.shape, self.stream = cuda, tuple(shape), stream
        self.size = int(np.prod(self.shape))
        self._base = int(call(cuda, "cudaMalloc", self.size + offset))
        self.address = self._base + offset

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": "|u1",
            "data": (self.address, False),
            "version": 3,
            "strides": None,
            "stream": self.stream,
        }

    def __del__(self) -> None:
        if hasattr(self, "_base"):  # its allocation may have failed
            self._cuda.cudaFree(self._base)


class Pinned:
    """An array of bytes in pinned host memory, freed with the object. array: uint8."""

    def __init__(self, cuda: Any, shape: Sequence[int]) -> None:
        self._cuda, size = cuda, int(np.prod(shape))
        self.address = int(call(cuda, "cudaHostAlloc", size, cuda.cudaHostAllocDefault))
        self.array: Image = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address)).reshape(shape)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._cuda.cudaFreeHost(self.address)


class Stream:
    """A caller's stream, which copies between pinned memory and the GPU."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self.handle = int(call(cuda, "cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking))

    def upload(self, target: Any, source: Pinned) -> None:
        """Copies an array to the GPU, in the order of the stream. target: anything with an address there."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(self._cuda, "cudaMemcpyAsync", target.address, source.address, source.array.nbytes, kind, self.handle)

    def download(self, target: Pinned, source: Any) -> None:
        """Copies an array from the GPU, in the order of the stream; `synchronize` waits for it."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(self._cuda, "cudaMemcpyAsync", target.address, source.address, target.array.nbytes, kind, self.handle)

    def synchronize(self) -> None:
        """Waits for all work of the stream."""
        call(self._cuda, "cudaStreamSynchronize", self.handle)

    def close(self) -> None:
        """Destroys it; what it has still runs."""
        call(self._cuda, "cudaStreamDestroy", self.handle)

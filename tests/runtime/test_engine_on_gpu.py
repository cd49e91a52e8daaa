"""The runtime's own CUDA code, on a real GPU without TensorRT: the network is one copy on the GPU.

Every test that needs no torch runs on the simulated GPU too, so that what runs on a real one is rehearsed everywhere.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from threads import in_threads

from benchmarks.gpu.stub import (
    OnDevice,
    Pinned,
    Stream,
    StubEngine,
    call,
    mask_of,
    open_cuda,
    stub_engine,
)
from twins_trt.errors import EngineError
from twins_trt.runtime import RuntimeOptions
from twins_trt.runtime.tensorrt.engine import TensorRTEngine

HEIGHT, WIDTH = 48, 64
IMAGE = (1, HEIGHT, WIDTH, 3)
ODD = (3, 33, 35, 3)  # whose second image begins at no multiple of 256

Draw = Callable[..., Any]


def real_cuda() -> Any:
    """`cuda.bindings.runtime` on a machine with a GPU."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    status, count = runtime.cudaGetDeviceCount()
    if int(status) != 0 or count < 1:
        pytest.skip("no CUDA GPU")
    return open_cuda(simulated=False)


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest) -> Any:
    return open_cuda(simulated=True) if request.param == "simulated" else real_cuda()


class Engines:
    """`make(**options)` is an engine and its stub. At the end all are closed, and nothing of them is left."""

    def __init__(self, cuda: Any, *, integrated: bool) -> None:
        self.cuda, self.integrated = cuda, integrated
        self._made: list[TensorRTEngine] = []

    def __call__(self, opt: tuple[int, ...] = IMAGE, **options: Any) -> tuple[TensorRTEngine, StubEngine]:
        engine, stub = stub_engine(self.cuda, opt, integrated=self.integrated, options=RuntimeOptions(**options))
        self._made.append(engine)
        return engine, stub

    def close(self) -> None:
        for engine in self._made:
            engine.close()


@pytest.fixture(params=[False, True], ids=["own memory", "shared memory"])
def make(request: pytest.FixtureRequest, cuda: Any) -> Iterator[Engines]:
    made = Engines(cuda, integrated=request.param)
    yield made
    made.close()
    gc.collect()
    gpu = getattr(cuda.cudaMalloc, "gpu", None)
    if gpu is not None:
        assert gpu.broken is None and gpu.held() == dict.fromkeys(gpu.held(), 0)


@pytest.fixture
def stream(cuda: Any) -> Iterator[Stream]:
    made = Stream(cuda)
    yield made
    made.synchronize()
    made.close()


@pytest.fixture
def draw(rng: np.random.Generator) -> Draw:
    """Random images: uint8 of a shape."""
    return lambda *shape: rng.integers(0, 256, shape or IMAGE, np.uint8)


def pinned(cuda: Any, content: Any) -> Pinned:
    made = Pinned(cuda, content.shape)
    made.array[...] = content
    return made


def read(cuda: Any, stream: Stream, source: Any, shape: tuple[int, ...]) -> Any:
    """An array on the GPU, as it is after the work that the stream has."""
    made = Pinned(cuda, shape)
    stream.download(made, source)
    stream.synchronize()
    return made.array.copy()


def test_calls_of_one_shape_are_replayed(make: Engines, draw: Draw) -> None:
    engine, stub = make()
    before = stub.enqueued
    for _ in range(5):
        image = draw()
        assert np.array_equal(engine(image)["mask"], mask_of(image))
    assert stub.enqueued == before


def test_shapes_change_and_buffers_grow(make: Engines, draw: Draw) -> None:
    engine, stub = make(contexts=1)
    for shape in (IMAGE, (2, 96, 128, 3), (1, 16, 24, 3), (4, 200, 120, 3), *[(1, 16, 24, 3)] * 4):
        image = draw(*shape)
        assert np.array_equal(engine(image)["mask"], mask_of(image)), shape
    before = stub.enqueued
    engine(draw(1, 16, 24, 3))
    assert stub.enqueued == before


def test_the_callers_arrays_are_written_into(make: Engines, draw: Draw) -> None:
    engine, _ = make()
    image, out = draw(), {"mask": np.empty(IMAGE[:3], np.uint8)}
    assert engine(image, out=out)["mask"] is out["mask"]
    assert np.array_equal(out["mask"], mask_of(image))


def test_six_threads_get_their_own_results(make: Engines, rng: np.random.Generator) -> None:
    engine, _ = make()
    groups = [[rng.integers(0, 256, (1, 16 + 8 * (i % 3), 24, 3), np.uint8) for i in range(30)] for _ in range(6)]

    def wrong(images: list[Any]) -> Iterator[Any]:
        return (image.shape for image in images if not np.array_equal(engine(image)["mask"], mask_of(image)))

    assert in_threads(wrong, groups) == []


def test_two_calls_are_under_way_at_once(make: Engines, draw: Draw) -> None:
    engine, _ = make(contexts=2)
    images = [draw() for _ in range(2)]
    pending = [engine.submit(image) for image in images]
    assert engine.submit(draw(), wait=False) is None
    for image, one in zip(images, pending, strict=True):
        assert one is not None and np.array_equal(one.result()["mask"], mask_of(image))


def test_a_camera_writes_into_pinned_memory(make: Engines, draw: Draw) -> None:
    engine, stub = make()
    addresses = set()
    for frame in range(6):
        buffer = engine.input_buffer()
        buffer[...] = image = draw()
        addresses.add(buffer.ctypes.data)
        before = stub.enqueued
        assert np.array_equal(engine(buffer)["mask"], mask_of(image))
        assert frame < 3 or stub.enqueued == before
        del buffer
    assert len(addresses) == 1  # the same memory every time


def test_arrays_on_the_gpu_in_the_order_of_a_stream(make: Engines, cuda: Any, draw: Draw, stream: Stream) -> None:
    """The host waits once, at the end: every image is written by the stream after the run before it has read it."""
    engine, stub = make()
    images = [draw() for _ in range(12)]
    sources = [pinned(cuda, image) for image in images]
    results = [Pinned(cuda, IMAGE[:3]) for _ in images]
    image, mask = OnDevice(cuda, IMAGE), OnDevice(cuda, IMAGE[:3])
    enqueued = []
    for source, result in zip(sources, results, strict=True):
        stream.upload(image, source)
        assert engine.run_on_device(image, out={"mask": mask}, stream=stream.handle)["mask"] is mask
        stream.download(result, mask)
        enqueued.append(stub.enqueued)
    stream.synchronize()
    for each, result in zip(images, results, strict=True):
        assert np.array_equal(result.array, mask_of(each))
    assert enqueued[-1] == enqueued[5]  # the same buffers are replayed


def test_results_are_lent_and_their_memory_comes_back(make: Engines, cuda: Any, draw: Draw, stream: Stream) -> None:
    """What the caller keeps stays as it is; what it lets go is written again, in the order of its stream."""
    engine, stub = make()
    image, kept, addresses = OnDevice(cuda, IMAGE), [], []
    for frame in range(10):
        content = draw()
        source = pinned(cuda, content)
        stream.upload(image, source)
        mask = engine.run_on_device(image, stream=stream.handle)["mask"]
        if frame in (2, 3):
            kept.append((mask, content))
        addresses.append(mask.address)
        assert np.array_equal(read(cuda, stream, mask, IMAGE[:3]), mask_of(content))
    # Two that are kept, and two that take turns: the loop still has the last result while the next one is made.
    assert len({mask.address for mask, _ in kept} | {mask.address}) == 3
    assert len(set(addresses[4:])) == 2
    for mask, content in kept:
        assert np.array_equal(read(cuda, stream, mask, IMAGE[:3]), mask_of(content))
    enqueued = []
    for _ in range(12):
        mask = engine.run_on_device(image, stream=stream.handle)["mask"]
        enqueued.append(stub.enqueued)
    assert enqueued[-1] == enqueued[6]  # replayed, although two addresses take turns
    stream.synchronize()


def test_without_a_stream_results_are_finished(make: Engines, cuda: Any, draw: Draw, stream: Stream) -> None:
    engine, _ = make()
    for _ in range(4):
        content = draw()
        image, source = OnDevice(cuda, IMAGE), pinned(cuda, content)
        stream.upload(image, source)
        stream.synchronize()
        mask = engine.run_on_device(image)["mask"]
        assert mask.stream is None
        other = Stream(cuda)  # which waits for nothing
        assert np.array_equal(read(cuda, other, mask, IMAGE[:3]), mask_of(content))
        other.close()


@pytest.mark.parametrize("offset", [1, 128, ODD[1] * ODD[2] * 3])
def test_arrays_that_begin_anywhere(make: Engines, cuda: Any, draw: Draw, stream: Stream, offset: int) -> None:
    engine, _ = make()
    shape = (1, *ODD[1:])
    image, mask = OnDevice(cuda, shape, offset=offset), OnDevice(cuda, shape[:3], offset=offset)
    for _ in range(5):
        content = draw(*shape)
        source = pinned(cuda, content)
        stream.upload(image, source)
        engine.run_on_device(image, out={"mask": mask}, stream=stream.handle)
        assert np.array_equal(read(cuda, stream, mask, shape[:3]), mask_of(content))
        assert np.array_equal(engine(image)["mask"], mask_of(content))


class Noise:
    """A thread that does the same again and again, as long as the block runs."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work, self._stop = work, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failed: list[BaseException] = []

    def __enter__(self) -> Noise:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._stop.is_set() and not self.failed:
            try:
                self._work()
            except BaseException as error:
                self.failed.append(error)


def test_captures_beside_a_thread_that_allocates_and_waits(make: Engines, cuda: Any, draw: Draw) -> None:
    engine, stub = make()

    def allocate() -> None:
        memory, theirs = OnDevice(cuda, (1 << 12,)), Stream(cuda)
        theirs.upload(memory, Pinned(cuda, (1 << 12,)))
        theirs.synchronize()
        theirs.close()

    with Noise(allocate) as noise:
        for size in range(16, 96, 8):
            for _ in range(3):
                image = draw(1, size, 24, 3)
                assert np.array_equal(engine(image)["mask"], mask_of(image))
    assert noise.failed == []
    before = stub.enqueued
    engine(image)
    assert stub.enqueued == before  # every capture succeeded


def test_a_capture_that_another_thread_breaks_fails_no_call(make: Engines, cuda: Any, draw: Draw) -> None:
    """CUDA lets nobody wait for a device while a stream of it is captured: the capture is lost, and so is the wait."""
    engine, stub = make(contexts=1)
    waited = []

    def wait_elsewhere() -> None:
        thread = threading.Thread(target=lambda: waited.append(int(cuda.cudaDeviceSynchronize()[0])))
        thread.start()
        thread.join(60)

    stub.disturb = wait_elsewhere
    image = draw(1, 16, 24, 3)
    for _ in range(3):  # not captured yet, and two captures that break
        assert np.array_equal(engine(image)["mask"], mask_of(image))
    stub.disturb = None
    engine(image)
    before = stub.enqueued
    assert np.array_equal(engine(image)["mask"], mask_of(image))
    assert stub.enqueued == before  # replayed: a capture that was broken by chance is tried again
    # CUDA's guide forbids it; a driver that allows it breaks no capture either.
    unsupported = int(cuda.cudaError_t.cudaErrorStreamCaptureUnsupported)
    assert waited and set(waited) <= {unsupported, 0}
    assert set(waited) == {unsupported} or not hasattr(cuda.cudaMalloc, "gpu")
    assert call(cuda, "cudaDeviceSynchronize") is None


def test_work_beside_a_global_capture_of_another_thread(make: Engines, cuda: Any, draw: Draw, stream: Stream) -> None:
    """As torch captures: a call that CUDA calls unsafe, in any thread, would break the capture."""
    source, target = OnDevice(cuda, (64,)), OnDevice(cuda, (64,))
    image = draw()
    said: list[Any] = []

    def ours() -> None:
        try:
            engine, _ = make()
            for _ in range(3):
                said.append(np.array_equal(engine(image)["mask"], mask_of(image)))
            buffer = engine.input_buffer()
            del buffer
            engine.close()
        except BaseException as error:
            said.append(error)

    thread = threading.Thread(target=ours)
    kind, mode = cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal
    call(cuda, "cudaStreamBeginCapture", stream.handle, mode)
    call(cuda, "cudaMemcpyAsync", target.address, source.address, 64, kind, stream.handle)
    thread.start()
    thread.join(60)
    graph = call(cuda, "cudaStreamEndCapture", stream.handle)
    call(cuda, "cudaGraphDestroy", graph)
    assert said == [True] * 3


def test_runs_become_a_part_of_the_callers_capture(make: Engines, cuda: Any, draw: Draw, stream: Stream) -> None:
    engine, stub = make(contexts=1)
    image, mask, source = OnDevice(cuda, IMAGE), OnDevice(cuda, IMAGE[:3]), pinned(cuda, draw())
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    call(cuda, "cudaStreamBeginCapture", stream.handle, mode)
    stream.upload(image, source)
    for _ in range(2):  # the second time the engine would capture a graph of its own
        engine.run_on_device(image, out={"mask": mask}, stream=stream.handle)
    lent = engine.run_on_device(image, stream=stream.handle)["mask"]
    graph = call(cuda, "cudaStreamEndCapture", stream.handle)
    executable = call(cuda, "cudaGraphInstantiate", graph, 0)
    call(cuda, "cudaGraphDestroy", graph)
    for _ in range(2):
        source.array[...] = content = draw()
        call(cuda, "cudaGraphLaunch", executable, stream.handle)
        for each in (mask, lent):
            assert np.array_equal(read(cuda, stream, each, IMAGE[:3]), mask_of(content))
    call(cuda, "cudaGraphExecDestroy", executable)
    del lent, each
    for call_number in range(5):  # afterwards the engine serves and replays as before
        other = draw()
        before = stub.enqueued
        assert np.array_equal(engine(other)["mask"], mask_of(other))
        assert call_number < 3 or stub.enqueued == before


def test_the_threads_device_and_mode_are_left_as_they_were(make: Engines, cuda: Any, draw: Draw) -> None:
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    before = call(cuda, "cudaThreadExchangeStreamCaptureMode", mode)
    engine, _ = make()
    engine(draw())
    assert call(cuda, "cudaThreadExchangeStreamCaptureMode", before) == mode
    assert call(cuda, "cudaGetDevice") == 0


def test_stages_are_timed_by_events(make: Engines, draw: Draw) -> None:
    seen: list[tuple[str, float]] = []
    engine, _ = make(observe=lambda stage, seconds: seen.append((stage, seconds)))
    seen.clear()
    for _ in range(3):
        engine(draw())
    assert [stage for stage, _ in seen] == ["copy_in", "engine", "copy_out"] * 3
    assert all(0 <= seconds < 10 for _, seconds in seen)


def test_a_closed_engine_says_so_and_its_results_live_on(make: Engines, cuda: Any, draw: Draw, stream: Stream) -> None:
    engine, _ = make()
    image, content = OnDevice(cuda, IMAGE), draw()
    source = pinned(cuda, content)
    stream.upload(image, source)
    mask = engine.run_on_device(image, stream=stream.handle)["mask"]
    pending = engine.submit(draw())
    engine.close()
    engine.close()
    assert pending is not None
    for late in (pending.result, lambda: engine(content), lambda: engine.run_on_device(image)):
        with pytest.raises(EngineError, match="is closed"):
            late()
    assert np.array_equal(read(cuda, stream, mask, IMAGE[:3]), mask_of(content))


# What follows needs torch, or CuPy, with a GPU.


@pytest.fixture
def torch_gpu() -> Any:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA GPU")
    return torch


@pytest.fixture(params=[False, True], ids=["own memory", "shared memory"])
def on_real(request: pytest.FixtureRequest) -> Iterator[Engines]:
    made = Engines(real_cuda(), integrated=request.param)
    yield made
    made.close()


def device_mask(image: Any) -> Any:
    """What the engine makes of an image of torch or CuPy."""
    batch, height, width, _ = image.shape
    return image.ravel()[: batch * height * width].reshape(batch, height, width)


@pytest.mark.gpu
def test_torch_tensors_on_a_stream_with_the_same_buffers(torch_gpu: Any, on_real: Engines) -> None:
    torch, (engine, stub) = torch_gpu, on_real()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        image = torch.empty(IMAGE, dtype=torch.uint8, device="cuda")
        out = torch.empty(IMAGE[:3], dtype=torch.uint8, device="cuda")
        seen, enqueued = [], []
        for _ in range(20):
            image.random_(0, 256)
            engine.run_on_device(image, out={"mask": out}, stream=stream)
            seen.append((out == device_mask(image)).all())
            enqueued.append(stub.enqueued)
        assert all(bool(each) for each in seen)
    assert enqueued[-1] == enqueued[5]


@pytest.mark.gpu
def test_torch_without_a_stream_and_results_that_are_lent(torch_gpu: Any, on_real: Engines) -> None:
    torch, (engine, _) = torch_gpu, on_real()
    image = torch.empty(IMAGE, dtype=torch.uint8, device="cuda")
    for _ in range(5):
        image.random_(0, 256)
        mask = torch.as_tensor(engine.run_on_device(image)["mask"], device="cuda")
        assert torch.equal(mask, device_mask(image))


@pytest.mark.gpu
def test_a_part_of_a_batch_of_odd_images(torch_gpu: Any, on_real: Engines) -> None:
    torch, (engine, _) = torch_gpu, on_real()
    batch = torch.empty(ODD, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.current_stream()
    for _ in range(4):
        batch.random_(0, 256)
        for index in range(ODD[0]):
            part = batch[index : index + 1]
            mask = torch.as_tensor(engine.run_on_device(part, stream=stream)["mask"], device="cuda")
            assert torch.equal(mask, device_mask(part))


@pytest.mark.gpu
def test_captures_beside_torch_that_allocates_and_waits(torch_gpu: Any, on_real: Engines, draw: Draw) -> None:
    """torch waits for the device, which breaks captures; its allocator gives memory back meanwhile."""
    torch, (engine, _) = torch_gpu, on_real()

    def work() -> None:
        try:
            torch.empty(1 << 20, device="cuda").normal_()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            if "captur" not in str(error):  # CUDA forbids to wait for a device with a capture under way
                raise

    with Noise(work) as noise:
        for size in range(16, 256, 8):
            for _ in range(3):
                image = draw(1, size, 96, 3)
                assert np.array_equal(engine(image)["mask"], mask_of(image))
    assert noise.failed == []


@pytest.mark.gpu
def test_torchs_capture_beside_ours(torch_gpu: Any, on_real: Engines, draw: Draw) -> None:
    torch, image = torch_gpu, draw()
    said: list[Any] = []
    number = torch.zeros(1, device="cuda")
    torch.cuda.synchronize()

    def ours() -> None:
        try:
            engine, _ = on_real()
            said.extend(np.array_equal(engine(image)["mask"], mask_of(image)) for _ in range(3))
        except BaseException as error:
            said.append(error)

    graph, thread = torch.cuda.CUDAGraph(), threading.Thread(target=ours)
    with torch.cuda.graph(graph):
        number.add_(1)
        thread.start()
        thread.join(60)
        number.add_(1)
    graph.replay()
    torch.cuda.synchronize()
    assert said == [True] * 3 and number.item() == 2


@pytest.mark.gpu
def test_cupy_arrays_on_its_current_stream(on_real: Engines) -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    engine, _ = on_real()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        for _ in range(3):
            image = cupy.random.randint(0, 256, IMAGE).astype(cupy.uint8)
            mask = cupy.asarray(engine.run_on_device(image, stream=stream)["mask"])
            assert bool((mask == device_mask(image)).all())

"""Results on the GPU: where their memory comes from, who may read it and how long, and where it goes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fake_capture import Mode
from fake_cuda import cuda_bindings
from fake_gpu import PER_THREAD, FakeGpu, Work
from fake_tensorrt import calls
from machine import Machine, OnGpu
from threads import in_threads
from tiny_graphs import UInt8Array, nearest_class

from twins_trt.runtime.memory import OutOfMemory
from twins_trt.runtime.memory.arrays import DeviceArray
from twins_trt.runtime.memory.cuda_bindings import CudaBindings
from twins_trt.runtime.memory.ring import OutputRing

Draw = Callable[[int, int], UInt8Array]
RANGE = (8, 32, 64)


def content(machine: Machine, mask: DeviceArray) -> Any:
    """What is in a result's memory now."""
    return machine.gpu.bytes_at(mask.address, int(np.prod(mask.shape))).reshape(mask.shape).copy()


def reader(machine: Machine, mask: DeviceArray, stream: int) -> list[Any]:
    """Queues work that reads the result when the stream gets there, into the list."""
    seen: list[Any] = []
    address, shape = mask.address, mask.shape
    machine.gpu.give(
        stream, Work(lambda: seen.append(machine.gpu.bytes_at(address, int(np.prod(shape))).reshape(shape).copy()))
    )
    return seen


def replayed(machine: Machine) -> tuple[int, int]:
    return machine.gpu.launched, len(calls(machine.module, "execute_async_v3"))


@pytest.mark.parametrize("kept", [False, True])
def test_no_frame_allocates_or_frees_and_all_are_replayed(machine: Machine, picture: Draw, kept: bool) -> None:
    """kept: a result lives until the next one has replaced it, so that two memories take turns."""
    engine, theirs = machine.engine(), machine.gpu.new_stream()
    images = [picture(24, 32)[None] for _ in range(12)]
    source = OnGpu(machine.gpu, images[0])
    pixels = machine.gpu.bytes_at(source.address, images[0].nbytes)
    mask, seen = None, []
    for index, image in enumerate(images):
        if index == 4:
            machine.gpu.calls.clear()
            launched, enqueued = replayed(machine)
        machine.gpu.give(theirs, Work(lambda image=image: np.copyto(pixels, image.ravel())))
        mask = engine.run_on_device(source, stream=theirs)["mask"]
        seen.append(reader(machine, mask, theirs))
        mask = mask if kept else None
    assert not {"cudaMalloc", "cudaFree"} & set(machine.gpu.calls)
    assert replayed(machine) == (launched + len(images) - 4, enqueued)
    machine.gpu.drain(theirs)
    for image, (got,) in zip(images, seen, strict=True):
        assert np.array_equal(got, nearest_class(image))
    del mask
    engine.close()
    machine.gpu.free_stream(theirs)


def test_the_next_writer_waits_for_the_stream_that_the_result_named(machine: Machine, picture: Draw) -> None:
    engine = machine.engine()
    one, other = machine.gpu.new_stream(), machine.gpu.new_stream()
    first, second = picture(24, 32)[None], picture(24, 32)[None]
    sources = [OnGpu(machine.gpu, image) for image in (first, second)]
    mask = engine.run_on_device(sources[0], stream=one)["mask"]
    address, seen = mask.address, reader(machine, mask, one)
    del mask
    mask = engine.run_on_device(sources[1], stream=other)["mask"]
    assert mask.address == address  # or there is nothing to see
    machine.gpu.drain(other)
    assert np.array_equal(content(machine, mask), nearest_class(second))
    assert np.array_equal(seen[0], nearest_class(first))
    del mask
    for stream in (one, other):
        machine.gpu.free_stream(stream)


@pytest.mark.parametrize(
    ("package", "device_stream"), [("cuda-bindings", None), ("cuda-bindings", PER_THREAD), ("pycuda", None)]
)
def test_readers_that_nobody_knows_are_waited_for(
    machine: Machine, picture: Draw, package: str, device_stream: int | None
) -> None:
    """The result is read on a stream that the engine never hears of."""
    machine.install(package=package)
    engine, hidden = machine.engine(), machine.gpu.new_stream()
    images = [picture(24, 32)[None] for _ in range(40)]
    sources = [OnGpu(machine.gpu, image) for image in images]
    machine.gpu.calls.clear()
    launched, enqueued = replayed(machine)
    seen = []
    for source in sources:
        mask = engine.run_on_device(source, stream=device_stream)["mask"]
        if device_stream is not None:
            machine.gpu.drain(device_stream)
        seen.append(reader(machine, mask, hidden))
        del mask
    machine.gpu.drain(hidden)
    for image, (got,) in zip(images, seen, strict=True):
        assert np.array_equal(got, nearest_class(image))
    taken = machine.gpu.calls.count("cudaMalloc") + machine.gpu.calls.count("allocate")
    assert taken <= len(images) // 3
    if package == "cuda-bindings":  # the images' addresses differ, and the results'
        assert replayed(machine)[1] - enqueued <= 8 and replayed(machine)[0] - launched >= len(images) - 4
    machine.gpu.free_stream(hidden)


def test_a_result_outlives_its_engine(machine: Machine, picture: Draw) -> None:
    engine, image = machine.engine(), picture(24, 32)[None]
    mask = engine.run_on_device(OnGpu(machine.gpu, image))["mask"]
    engine.close()
    assert np.array_equal(content(machine, mask), nearest_class(image))
    assert machine.gpu.held()["device"] == 1
    del mask
    assert machine.gpu.held() == dict.fromkeys(machine.gpu.held(), 0)


def test_a_result_may_go_in_another_thread(machine: Machine, picture: Draw) -> None:
    engine, theirs = machine.engine(), machine.gpu.new_stream()
    source = OnGpu(machine.gpu, picture(24, 32)[None])
    box = [engine.run_on_device(source, stream=theirs)["mask"]]
    address = box[0].address
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert engine.run_on_device(source, stream=theirs)["mask"].address == address
    machine.gpu.drain(theirs)
    machine.gpu.free_stream(theirs)


def test_many_threads_take_results(machine: Machine, picture: Draw) -> None:
    engine = machine.engine()

    def wrong(given: tuple[list[UInt8Array], list[OnGpu], int]) -> Iterator[str]:
        images, sources, theirs = given
        for image, source in zip(images, sources, strict=True):
            mask = engine.run_on_device(source, stream=theirs)["mask"]
            seen = reader(machine, mask, theirs)
            del mask
            machine.gpu.drain(theirs)
            if not np.array_equal(seen[0], nearest_class(image)):
                yield "another's mask"

    groups = [[picture(24, 32)[None] for _ in range(8)] for _ in range(4)]
    sources = [[OnGpu(machine.gpu, image) for image in group] for group in groups]
    streams = [machine.gpu.new_stream() for _ in groups]
    assert in_threads(wrong, list(zip(groups, sources, streams, strict=True))) == []
    for stream in streams:
        machine.gpu.free_stream(stream)


def test_results_of_many_sizes_do_not_pile_up(machine: Machine, picture: Draw) -> None:
    engine = machine.engine(machine.bundle(RANGE, RANGE), contexts=1)
    sizes = [(8 + 4 * (i % 15), 8 + 4 * (i // 3 % 15)) for i in range(60)]
    for size in sizes:
        image = picture(*size)[None]
        mask = engine.run_on_device(OnGpu(machine.gpu, image), stream=1)["mask"]
        machine.gpu.drain(1)
        assert np.array_equal(content(machine, mask), nearest_class(image))
        del mask
    assert machine.gpu.held()["device"] <= 2 + 9  # the slot's own, and what the ring keeps
    assert engine.device_memory().buffers > 0


def test_no_room_gives_back_what_waits_to_be_used_again() -> None:
    gpu = FakeGpu(capacity=1000)
    memory = CudaBindings(cuda_bindings(gpu))
    ring, stream = OutputRing(memory), memory.new_stream()
    ring.take((300,), "uint8", writer=stream, reader=stream)  # gone at once
    assert ring.idle == 300
    large = ring.take((800,), "uint8", writer=stream, reader=stream)
    assert gpu.device[large.address].size == 800 and ring.idle == 0
    with pytest.raises(OutOfMemory):
        ring.take((300,), "uint8", writer=stream, reader=stream)
    del large
    ring.close()
    memory.free_stream(stream)
    assert gpu.held() == dict.fromkeys(gpu.held(), 0)


def test_a_graph_under_way_ends_before_its_context_changes(machine: Machine, picture: Draw) -> None:
    """A run on the GPU returns at once. The next may bind other memory, and what TensorRT's graph does then is
    undefined."""
    engine = machine.engine(machine.bundle(RANGE, RANGE), contexts=1)
    sizes = [(24, 32), (24, 32), (24, 32), (64, 64)]
    images = [picture(*size)[None] for size in sizes]
    sources = [OnGpu(machine.gpu, image) for image in images]
    masks = [OnGpu(machine.gpu, np.zeros((1, *size), np.uint8)) for size in sizes]
    for at in (0, 0, 0, 1, 1, 1, 2, 3):
        engine.run_on_device(sources[at], out={"mask": masks[at]}, stream=1)
    machine.gpu.drain(1)
    for image, mask in zip(images, masks, strict=True):
        assert np.array_equal(mask.read(), nearest_class(image))


def test_a_graph_under_way_is_waited_for_although_the_last_run_was_captured(machine: Machine, picture: Draw) -> None:
    """A run that the caller captures leaves no event behind which the one before it ended."""
    engine = machine.engine(machine.bundle(RANGE, RANGE), contexts=1)
    busy, captured = machine.gpu.new_stream(), machine.gpu.new_stream()
    image, other = picture(24, 32)[None], picture(64, 64)[None]
    source, mask = OnGpu(machine.gpu, image), OnGpu(machine.gpu, np.zeros((1, 24, 32), np.uint8))
    for _ in range(3):
        engine.run_on_device(source, out={"mask": mask}, stream=busy)
    machine.gpu.drain(busy)
    reached: list[bool] = []
    machine.gpu.give(busy, Work(lambda: reached.append(True)))
    engine.run_on_device(source, out={"mask": mask}, stream=busy)
    machine.gpu.begin_capture(captured, Mode.cudaStreamCaptureModeGlobal)
    engine.run_on_device(source, out={"mask": mask}, stream=captured)
    machine.gpu.end_capture(captured)
    assert reached == []  # the run is under way
    large = OnGpu(machine.gpu, other)
    engine.run_on_device(large, out={"mask": OnGpu(machine.gpu, np.zeros((1, 64, 64), np.uint8))}, stream=busy)
    assert reached == [True]
    machine.gpu.drain(busy)
    for stream in (busy, captured):
        machine.gpu.free_stream(stream)


def test_a_result_that_goes_while_its_stream_is_captured_leaves_the_capture_whole(
    machine: Machine, picture: Draw
) -> None:
    engine, theirs = machine.engine(), machine.gpu.new_stream()
    image = picture(24, 32)[None]
    mask = engine.run_on_device(OnGpu(machine.gpu, image), stream=theirs)["mask"]
    seen, source = reader(machine, mask, theirs), OnGpu(machine.gpu, picture(24, 32)[None])
    address = mask.address
    machine.gpu.begin_capture(theirs, Mode.cudaStreamCaptureModeGlobal)
    del mask
    assert machine.gpu.end_capture(theirs).works == []
    other = engine.run_on_device(source)["mask"]
    assert other.address != address  # whether it is read still, nobody knows
    machine.gpu.drain(theirs)
    assert np.array_equal(seen[0], nearest_class(image))
    del other
    machine.gpu.free_stream(theirs)


def test_results_neither_break_nor_miss_a_capture_in_another_thread(machine: Machine, picture: Draw) -> None:
    engine, captured = machine.engine(), machine.gpu.new_stream()
    images = [picture(24, 32)[None] for _ in range(20)]
    sources = [OnGpu(machine.gpu, image) for image in images]
    begun, over = threading.Event(), threading.Event()
    lost: list[Any] = []

    def capture() -> None:
        machine.gpu.begin_capture(captured, Mode.cudaStreamCaptureModeGlobal)
        begun.set()
        over.wait(60)
        try:
            lost.extend(machine.gpu.end_capture(captured).works)
        except Exception as error:
            lost.append(error)

    thread = threading.Thread(target=capture)
    thread.start()
    begun.wait(60)
    try:
        for image, source in zip(images, sources, strict=True):
            mask = engine.run_on_device(source)["mask"]
            assert np.array_equal(content(machine, mask), nearest_class(image))
            del mask
    finally:
        over.set()
        thread.join()
    assert lost == []
    machine.gpu.free_stream(captured)


def test_a_result_that_goes_inside_our_capture_leaves_it_whole() -> None:
    """Python may collect an array at any time, also between the launches of a run that is being captured."""
    gpu = FakeGpu()
    memory = CudaBindings(cuda_bindings(gpu))
    ring, stream = OutputRing(memory), memory.new_stream()
    arrays = [ring.take((16,), "uint8", writer=stream, reader=None)]
    ring.close()  # so that its memory is freed when it goes, the worst that can happen
    graph = memory.capture(stream, arrays.clear)
    assert gpu.held() == {"device": 0, "host": 0, "streams": 1, "events": 0, "graphs": 1}
    memory.launch(graph, stream)
    memory.synchronize(stream)


def test_a_strangers_array_that_goes_inside_our_capture_leaves_it_whole() -> None:
    gpu = FakeGpu()
    memory = CudaBindings(cuda_bindings(gpu))
    stream, arrays = memory.new_stream(), [OnGpu(gpu, np.zeros(16, np.uint8))]
    memory.free_graph(memory.capture(stream, arrays.clear))
    memory.free_stream(stream)
    assert gpu.held() == dict.fromkeys(gpu.held(), 0)


def test_a_result_whose_stream_is_gone_is_treated_as_read_by_nobody_knows_whom(machine: Machine, picture: Draw) -> None:
    engine, theirs = machine.engine(), machine.gpu.new_stream()
    image = picture(24, 32)[None]
    mask = engine.run_on_device(OnGpu(machine.gpu, image), stream=theirs)["mask"]
    address = mask.address
    machine.gpu.drain(theirs)
    machine.gpu.free_stream(theirs)
    del mask
    assert engine.run_on_device(OnGpu(machine.gpu, image))["mask"].address != address


def test_a_stream_that_was_given_as_an_object_lives_as_long_as_the_result(machine: Machine, picture: Draw) -> None:
    class Theirs:
        def __init__(self) -> None:
            self.ptr = machine.gpu.new_stream()

        def __del__(self) -> None:
            machine.gpu.free_stream(self.ptr)

    engine, held = machine.engine(), machine.gpu.held()["streams"]
    mask = engine.run_on_device(OnGpu(machine.gpu, picture(24, 32)[None]), stream=Theirs())["mask"]
    assert machine.gpu.held()["streams"] == held + 1
    machine.gpu.drain(mask.stream)
    del mask
    assert machine.gpu.held()["streams"] == held

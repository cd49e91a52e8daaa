"""Arrays on the GPU are read and written in place, in the order of the caller's stream."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_capture import Mode
from fake_gpu import Executable, Work
from fake_tensorrt import calls
from machine import ADA, ORIN, Machine, OnGpu
from tiny_graphs import UInt8Array, nearest_class

from twins_trt.errors import EngineError, UsageError
from twins_trt.runtime import Segmenter
from twins_trt.runtime.memory.arrays import DeviceArray, on_device, stream_handle, view
from twins_trt.runtime.tensorrt.buffers import Borrowing

Draw = Callable[[int, int], UInt8Array]


class WithDlpack(OnGpu):
    """An array with DLPack only, as a C library would hand it out."""

    __cuda_array_interface__ = property()  # type: ignore[assignment]
    device_type, device_id, strided = 2, 0, False

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device_type, self.device_id

    def __dlpack__(self, *, stream: int) -> Any:
        self.asked = stream
        shape = (ctypes.c_int64 * len(self.shape))(*self.shape)
        steps = [int(np.prod(self.shape[axis + 1 :])) * (2 if self.strided else 1) for axis in range(len(self.shape))]
        code = {"u": 1, "f": 2}[self.dtype.kind]

        class Managed(ctypes.Structure):
            _fields_ = (
                ("data", ctypes.c_void_p),
                ("device", ctypes.c_int32 * 2),
                ("ndim", ctypes.c_int32),
                ("code", ctypes.c_uint8),
                ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16),
                ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)),
                ("byte_offset", ctypes.c_uint64),
            )

        self.tensor = Managed(
            self.address - 16,
            (ctypes.c_int32 * 2)(self.device_type, self.device_id),
            len(self.shape),
            code,
            self.dtype.itemsize * 8,
            1,
            shape,
            (ctypes.c_int64 * len(steps))(*steps),
            16,
        )
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        self.name = ctypes.c_char_p(b"dltensor")
        return new(ctypes.addressof(self.tensor), self.name, None)


@pytest.fixture
def images(picture: Draw) -> Any:
    return picture(24, 32)[None]


@pytest.mark.parametrize("kind", [OnGpu, WithDlpack])
@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
def test_arrays_are_used_where_they_lie(machine: Machine, images: Any, kind: Any, package: str) -> None:
    machine.install(package=package)
    engine = machine.engine()
    machine.gpu.calls.clear()
    source, target = kind(machine.gpu, images), kind(machine.gpu, np.zeros((1, 24, 32), np.uint8))
    result = engine.run_on_device(source, out={"mask": target})
    assert result["mask"] is target
    assert np.array_equal(target.read(), nearest_class(images))  # it named no stream, so this was waited for
    assert not {"cudaMemcpyAsync", "memcpy_htod_async", "memcpy_dtoh_async"} & set(machine.gpu.calls)


def test_a_new_array_is_given_where_none_was(machine: Machine, images: Any) -> None:
    engine = machine.engine()
    source = OnGpu(machine.gpu, images)
    held = machine.gpu.held()["device"]
    mask = engine.run_on_device(source)["mask"]
    assert (mask.shape, mask.dtype, mask.stream) == ((1, 24, 32), "uint8", None)
    interface = mask.__cuda_array_interface__
    assert interface["typestr"] == "|u1" and interface["version"] == 3 and interface["strides"] is None
    assert np.array_equal(machine.gpu.bytes_at(interface["data"][0], 768).reshape(24, 32), nearest_class(images)[0])
    assert machine.gpu.held()["device"] == held + 1


@pytest.mark.parametrize("how", ["argument", "interface"])
def test_the_callers_stream_is_waited_for_and_waits(machine: Machine, images: Any, how: str) -> None:
    """The image is written by work that the caller has queued; the mask is read by work he queues afterwards."""
    engine = machine.engine()
    theirs = machine.gpu.new_stream()
    source = OnGpu(machine.gpu, np.zeros_like(images), stream=theirs if how == "interface" else None)
    target = OnGpu(machine.gpu, np.zeros((1, 24, 32), np.uint8), stream=source.stream)
    pixels = machine.gpu.bytes_at(source.address, images.nbytes)
    order, seen = [], []

    def write() -> None:
        order.append("image")
        pixels[...] = images.ravel()

    machine.gpu.give(theirs, Work(write))
    engine.run_on_device(source, out={"mask": target}, stream=theirs if how == "argument" else None)
    assert order == []  # it returned before anything ran
    machine.gpu.give(theirs, Work(lambda: seen.append(target.read())))
    machine.gpu.drain(theirs)
    assert np.array_equal(seen[0], nearest_class(images))
    machine.gpu.free_stream(theirs)


def test_a_dlpack_producer_is_told_the_engines_stream(machine: Machine, images: Any) -> None:
    engine = machine.engine()
    source = WithDlpack(machine.gpu, images)
    before = set(machine.gpu.streams)
    result = engine(source)["mask"]
    assert np.array_equal(result, nearest_class(images))
    assert source.asked in before - {0, 1, 2}


def test_the_same_buffers_are_replayed_as_a_graph(machine: Machine, images: Any) -> None:
    engine = machine.engine()
    source, target = OnGpu(machine.gpu, images), OnGpu(machine.gpu, np.zeros((1, 24, 32), np.uint8))
    captured, launched = machine.gpu.captured, machine.gpu.launched
    for _ in range(4):
        engine.run_on_device(source, out={"mask": target}, stream=1)
    machine.gpu.drain(1)
    assert (machine.gpu.captured, machine.gpu.launched) == (captured + 1, launched + 3)
    assert np.array_equal(target.read(), nearest_class(images))
    assert np.array_equal(engine(images)["mask"], nearest_class(images))


def test_arrays_that_take_turns_are_replayed_too(machine: Machine, picture: Draw) -> None:
    """A graph knows one set of addresses, and TensorRT allows no second graph: the others go through the slot's."""
    engine = machine.engine()
    images = [picture(24, 32)[None] for _ in range(2)]
    sources = [OnGpu(machine.gpu, image) for image in images]
    targets = [OnGpu(machine.gpu, np.zeros((1, 24, 32), np.uint8)) for _ in range(3)]
    for at in range(24):
        if at == 4:
            launched, enqueued = machine.gpu.launched, len(calls(machine.module, "execute_async_v3"))
        engine.run_on_device(sources[at % 2], out={"mask": targets[at % 3]}, stream=1)
        machine.gpu.drain(1)
        assert np.array_equal(targets[at % 3].read(), nearest_class(images[at % 2]))
    assert machine.gpu.launched == launched + 20
    assert len(calls(machine.module, "execute_async_v3")) == enqueued


def test_an_address_that_keeps_changing_is_used_in_place_more_and_more_rarely() -> None:
    """Every change of what the graph was captured with costs a capture."""
    borrowing = Borrowing(graphs=True)
    addresses = [256 * (1 + at // 5 % 2) for at in range(1000)]  # five calls with one buffer, five with the other
    answers = [borrowing.in_place(address) for address in addresses]
    assert answers[:5] == [True] * 5
    changes = sum(before != after for before, after in pairwise(answers))
    assert changes <= 10 and not any(answers[-500:])
    assert [borrowing.in_place(256) for _ in range(200)][-1]  # it stays now
    assert not borrowing.in_place(256 + 128)


def test_arrays_that_take_turns_need_no_room_for_copies(machine: Machine, picture: Draw) -> None:
    engine = machine.engine(machine.bundle((8, 16, 64), (8, 16, 64)), contexts=1)
    images = [picture(64, 64)[None] for _ in range(2)]
    sources = [OnGpu(machine.gpu, image) for image in images]
    targets = [OnGpu(machine.gpu, np.zeros((1, 64, 64), np.uint8)) for _ in range(2)]
    machine.gpu.capacity = sum(memory.size for memory in machine.gpu.device.values())
    for at in (0, 1, 0, 1, 0, 1):
        engine.run_on_device(sources[at], out={"mask": targets[at]})
        assert np.array_equal(targets[at].read(), nearest_class(images[at]))


@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
@pytest.mark.parametrize("device", [ADA, ORIN], ids=["desktop", "jetson"])
@pytest.mark.parametrize("contexts", [1, 2])
def test_arrays_that_begin_anywhere_are_used(
    machine: Machine, picture: Draw, package: str, device: Any, contexts: int
) -> None:
    """`batch[1:2]` of frames whose size is no multiple of 256 bytes, the alignment that TensorRT demands."""
    machine.install(package=package, device=device)
    engine = machine.engine(machine.bundle(12, 20), contexts=contexts)
    images = np.stack([picture(12, 20) for _ in range(4)])
    batch, masks = OnGpu(machine.gpu, images), OnGpu(machine.gpu, np.full((4, 12, 20), 99, np.uint8))
    assert batch.part(1, 2).address % 256 and masks.part(2, 3).address % 256
    wanted = masks.read()
    for source, target in ((1, 2), (1, 2), (1, 2), (3, 1), (0, 0), (2, 3)):
        engine.run_on_device(batch.part(source, source + 1), out={"mask": masks.part(target, target + 1)})
        wanted[target] = nearest_class(images[source])
        assert np.array_equal(masks.read(), wanted)
    assert np.array_equal(engine(batch.part(1, 2))["mask"][0], nearest_class(images[1]))
    assert np.array_equal(engine.submit(batch.part(3, 4)).result()["mask"][0], nearest_class(images[3]))
    assert np.array_equal(engine(images[:1])["mask"][0], nearest_class(images[0]))


def test_arrays_that_begin_anywhere_are_copied_in_the_order_of_the_stream(machine: Machine, picture: Draw) -> None:
    engine, theirs = machine.engine(machine.bundle(12, 20)), machine.gpu.new_stream()
    image = picture(12, 20)
    batch = OnGpu(machine.gpu, np.zeros((2, 12, 20, 3), np.uint8), stream=theirs)
    masks = OnGpu(machine.gpu, np.zeros((2, 12, 20), np.uint8), stream=theirs)
    pixels = machine.gpu.bytes_at(batch.part(1, 2).address, image.nbytes)
    seen: list[Any] = []
    machine.gpu.give(theirs, Work(lambda: np.copyto(pixels, image.ravel())))
    engine.run_on_device(batch.part(1, 2), out={"mask": masks.part(1, 2)})
    machine.gpu.give(theirs, Work(lambda: seen.append(masks.read())))
    assert seen == []
    machine.gpu.drain(theirs)
    assert np.array_equal(seen[0][1], nearest_class(image)) and not seen[0][0].any()
    machine.gpu.free_stream(theirs)


def test_a_host_image_waits_for_a_run_that_still_reads_the_shared_buffer(machine: Machine, picture: Draw) -> None:
    """On a Jetson the processor writes where the GPU reads."""
    machine.install(device=ORIN)
    engine = machine.engine(machine.bundle(12, 20), contexts=1)
    images = np.stack([picture(12, 20) for _ in range(2)])
    batch, mask = OnGpu(machine.gpu, images), OnGpu(machine.gpu, np.zeros((1, 12, 20), np.uint8))
    other = picture(12, 20)[None]
    engine.run_on_device(batch.part(1, 2), out={"mask": mask}, stream=1)
    assert np.array_equal(engine(other)["mask"], nearest_class(other))
    machine.gpu.drain(1)
    assert np.array_equal(mask.read()[0], nearest_class(images[1]))


@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_run_may_be_a_part_of_the_callers_own_capture(
    machine: Machine, images: Any, picture: Draw, before: int, caplog: pytest.LogCaptureFixture
) -> None:
    """before: calls with the same arrays. The engine's graph is then another one's, or that of these arrays."""
    engine, theirs = machine.engine(), machine.gpu.new_stream()
    source, target = OnGpu(machine.gpu, images), OnGpu(machine.gpu, np.zeros((1, 24, 32), np.uint8))
    for _ in range(before):
        engine.run_on_device(source, out={"mask": target}, stream=theirs)
    machine.gpu.drain(theirs)
    machine.gpu.begin_capture(theirs, Mode.cudaStreamCaptureModeGlobal)
    engine.run_on_device(source, out={"mask": target}, stream=theirs)
    graph = machine.gpu.end_capture(theirs)
    late = picture(24, 32)[None]
    machine.gpu.bytes_at(source.address, late.nbytes)[...] = late.ravel()
    machine.gpu.launch(Executable(graph.works), theirs)
    machine.gpu.drain(theirs)
    assert np.array_equal(target.read(), nearest_class(late))
    assert "no CUDA graph" not in caplog.text  # one capture inside another would fail, and be the last
    machine.gpu.free_stream(theirs)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"device_id": 1}, UsageError, "the image is on GPU 1, the engine on GPU 0"),
        ({"strided": True}, UsageError, "the image is not C-contiguous"),
        ({"dtype": np.dtype("f8")}, UsageError, r"the image has the DLPack type \(2, 64, 1\)"),
        ({"dtype": np.dtype("f4")}, EngineError, "accepts image uint8"),
        ({"shape": (1, 24, 16, 3)}, EngineError, r"not uint8 \[1, 24, 16, 3\]"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(
    machine: Machine, images: Any, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    engine = machine.engine()
    source = WithDlpack(machine.gpu, images)
    for name, value in change.items():
        setattr(source, name, value)
    with pytest.raises(error, match=said):
        engine.run_on_device(source)
    assert np.array_equal(engine(images)["mask"], nearest_class(images))  # the slot was given back


def test_interfaces_that_cannot_be_used_are_refused(machine: Machine, images: Any) -> None:
    source = OnGpu(machine.gpu, images, strides=(4608, 192, 6, 1))
    with pytest.raises(UsageError, match="not C-contiguous"):
        view(source, stream=0, what="it")
    source.strides, source.dtype = None, np.dtype("c8")
    with pytest.raises(UsageError, match="has the type '<c8'"):
        view(source, stream=0, what="it")
    with pytest.raises(UsageError, match="it is a list, not an array on a GPU"):
        view([], stream=0, what="it")


def test_a_buffer_of_another_shape_or_type_is_refused(machine: Machine, images: Any) -> None:
    engine = machine.engine()
    source, target = OnGpu(machine.gpu, images), OnGpu(machine.gpu, np.zeros((1, 24, 16), np.uint8))
    with pytest.raises(EngineError, match=r"buffer for mask is uint8 \[1, 24, 16\], the output is uint8 \[1, 24, 32\]"):
        engine.run_on_device(source, out={"mask": target})


def test_the_default_stream_is_called_1_in_an_interface() -> None:
    """Version 3 forbids 0, which could mean either default stream."""
    streams = {0: 1, 1: 1, 7: 7, None: None}
    for stream, told in streams.items():
        array = DeviceArray(4096, (1,), "uint8", stream=stream, free=lambda: None)
        assert array.__cuda_array_interface__["stream"] == told


def test_streams_of_every_library_are_understood() -> None:
    for stream, handle in (
        (7, 7),
        (SimpleNamespace(cuda_stream=7), 7),  # PyTorch
        (SimpleNamespace(ptr=7), 7),  # CuPy
        (SimpleNamespace(handle=ctypes.c_void_p(7)), 7),  # Numba
        (SimpleNamespace(handle=ctypes.c_void_p(None)), 0),
        (SimpleNamespace(__cuda_stream__=lambda: (0, 7)), 7),  # cuda.core
    ):
        assert stream_handle(stream) == handle
    with pytest.raises(UsageError, match="a str is not a CUDA stream"):
        stream_handle("7")


def test_what_lies_on_the_host_is_not_on_a_gpu() -> None:
    torch = pytest.importorskip("torch")
    assert not on_device(np.zeros(3)) and not on_device(torch.zeros(3)) and not on_device([1])
    assert on_device(DeviceArray(256, (1,), "uint8", stream=None, free=lambda: None))


def test_a_segmenter_keeps_masks_on_the_gpu(machine: Machine, images: Any) -> None:
    with Segmenter(machine.bundle()) as segmenter:
        source = OnGpu(machine.gpu, images)
        mask = segmenter.on_device(source)
        assert np.array_equal(machine.gpu.bytes_at(mask.address, 768).reshape(24, 32), nearest_class(images)[0])
        target = OnGpu(machine.gpu, np.zeros((1, 24, 32), np.uint8))
        assert segmenter.on_device(source, out=target) is target
        del mask
    with Segmenter(machine.bundle(), "onnxruntime") as segmenter, pytest.raises(UsageError, match="cannot take arrays"):
        segmenter.on_device(images)

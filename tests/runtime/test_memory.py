"""Memory through a CUDA package: its arguments and errors, and what it leaves of the thread's own state."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import fake_cuda
import numpy as np
import pytest
from fake_capture import Mode
from fake_driver import install_driver
from fake_gpu import FakeGpu
from fake_pycuda import pycuda
from machine import ADA, Machine
from tiny_graphs import UInt8Array, nearest_class

from twins_trt.errors import EngineError
from twins_trt.runtime.memory import Memory, cuda_bindings, installed
from twins_trt.runtime.memory.protocol import OutOfMemory
from twins_trt.runtime.memory.pycuda import PyCuda


def test_the_real_package_takes_our_arguments() -> None:
    """Without a driver every call fails, but only after its arguments were converted."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    assert installed("cuda-bindings")
    gpu = cuda_bindings.CudaBindings.__new__(cuda_bindings.CudaBindings)
    gpu._cuda = runtime
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU: tests marked gpu do this for real")
    block = cuda_bindings.HostBlock(None, None, 4096)  # type: ignore[arg-type]
    for call in (
        lambda: gpu.allocate(16),
        lambda: gpu.free(4096),
        lambda: gpu.allocate_host(16, mapped=True),
        lambda: gpu.free_host(block),
        gpu.new_stream,
        lambda: gpu.free_stream(4096),
        lambda: gpu.copy_in(4096, block, 16, 4096),
        lambda: gpu.copy_out(block, 4096, 16, 4096),
        lambda: gpu.copy(4096, 8192, 16, 4096),
        lambda: gpu.synchronize(4096),
        lambda: gpu.wait(4096, 1),
        lambda: gpu.new_event(timing=False),
        lambda: gpu.entered().__enter__(),
        lambda: gpu.capture(4096, lambda: None),
        cuda_bindings.open_memory,
    ):
        with pytest.raises(EngineError, match=r"failed: .* \(cudaError"):
            call()


def test_no_room() -> None:
    gpu = FakeGpu(capacity=1000)
    memory = cuda_bindings.CudaBindings(fake_cuda.cuda_bindings(gpu))
    address = memory.allocate(600)
    with pytest.raises(OutOfMemory, match="cudaMalloc found no room"):
        memory.allocate(600)
    assert gpu.calls[-1] == "cudaGetLastError"  # or the next call would report it again
    memory.free(address)


def test_a_driver_without_a_gpu_is_an_error() -> None:
    module = fake_cuda.cuda_bindings(FakeGpu())
    module.cudaGetDeviceCount = lambda: (0, 0)  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="sees no GPU"):
        cuda_bindings.CudaBindings(module)


def test_a_capture_that_fails_leaves_the_stream_usable() -> None:
    gpu = FakeGpu()
    memory = cuda_bindings.CudaBindings(fake_cuda.cuda_bindings(gpu))
    stream = memory.new_stream()

    def work() -> None:
        raise EngineError("refused")

    with pytest.raises(EngineError, match="refused"):
        memory.capture(stream, work)
    assert gpu.calls[-1] == "cudaGetLastError"  # what TensorRT's own launch left behind
    memory.synchronize(stream)
    memory.free_stream(stream)
    assert gpu.held() == dict.fromkeys(gpu.held(), 0)


MODES = list(Mode)


def memory_of(gpu: FakeGpu, package: str, monkeypatch: pytest.MonkeyPatch) -> Memory:
    """Our memory on a simulated GPU."""
    install_driver(monkeypatch, ADA, gpu=gpu)
    if package == "pycuda":
        return PyCuda(pycuda(gpu))
    return cuda_bindings.CudaBindings(fake_cuda.cuda_bindings(gpu))


@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
@pytest.mark.parametrize("mode", MODES)
def test_the_threads_own_device_and_mode_come_back(package: str, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(devices=3)
    memory = memory_of(gpu, package, monkeypatch)
    gpu.select(2)
    gpu.rules.exchange(mode)
    with memory.entered():
        assert (gpu.current, gpu.rules.mode) == (0, Mode.cudaStreamCaptureModeRelaxed)
        with memory.entered():
            memory.free(memory.allocate(16))
        assert (gpu.current, gpu.rules.mode) == (0, Mode.cudaStreamCaptureModeRelaxed)
    assert (gpu.current, gpu.rules.mode) == (2, mode)
    with pytest.raises(KeyboardInterrupt), memory.entered():
        raise KeyboardInterrupt
    assert (gpu.current, gpu.rules.mode) == (2, mode)


def test_an_error_of_the_gpu_is_not_hidden_by_what_follows() -> None:
    """A broken GPU refuses also to set the thread's state back."""
    gpu = FakeGpu(devices=2)
    memory = cuda_bindings.CudaBindings(fake_cuda.cuda_bindings(gpu))
    gpu.select(1)
    with pytest.raises(KeyboardInterrupt), memory.entered():
        gpu.broken = fake_cuda.Status.cudaErrorIllegalAddress
        raise KeyboardInterrupt


@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
def test_an_engine_works_in_a_thread_whose_device_is_another(
    machine: Machine, picture: Callable[[int, int], UInt8Array], package: str
) -> None:
    machine.install(package=package)
    machine.gpu.devices = 2
    machine.gpu.select(1)
    engine, image = machine.engine(), picture(24, 32)[None]
    for _ in range(3):
        assert np.array_equal(engine(image)["mask"], nearest_class(image))
        assert machine.gpu.current == 1
    engine.close()
    assert machine.gpu.current == 1


@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
def test_tensorrt_frees_an_engine_on_its_own_device(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """Its destructors free GPU memory, which somebody's capture forbids in another mode."""
    machine.install(package=package)
    gpu, seen = machine.gpu, []
    engine = machine.engine()
    for kind in ("ICudaEngine", "IExecutionContext"):
        owner = getattr(machine.module, kind)
        monkeypatch.setattr(owner, "__del__", lambda _: seen.append((gpu.current, gpu.rules.mode)), raising=False)
    gpu.devices = 2
    gpu.select(1)
    engine.close()
    gc.collect()
    assert len(seen) == 3  # two contexts and the engine
    assert set(seen) == {(0, Mode.cudaStreamCaptureModeRelaxed)}


@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
@pytest.mark.parametrize("mode", MODES)
def test_memory_comes_and_goes_inside_somebodys_capture(
    package: str, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another thread, and of this one. CUDA's own answer is an error, and a capture that is lost."""
    gpu = FakeGpu()
    memory = memory_of(gpu, package, monkeypatch)
    stream = gpu.new_stream()
    gpu.begin_capture(stream, mode)
    failed: list[Any] = []

    def work() -> None:
        try:
            with memory.entered():
                memory.free(memory.allocate(16))
                memory.free_host(memory.allocate_host(16, mapped=True))
                own = memory.new_stream()
                memory.synchronize(own)
                memory.free_stream(own)
        except EngineError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    work()
    assert failed == []
    assert gpu.end_capture(stream).works == []
    gpu.free_stream(stream)
    assert gpu.held() == dict.fromkeys(gpu.held(), 0)


@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
def test_an_engine_opens_and_runs_inside_somebodys_capture(
    machine: Machine, picture: Callable[[int, int], UInt8Array], package: str
) -> None:
    machine.install(package=package)
    bundle, image = machine.bundle(), picture(24, 32)[None]
    stream = machine.gpu.new_stream()
    machine.gpu.begin_capture(stream, Mode.cudaStreamCaptureModeGlobal)
    seen: list[Any] = []

    def work() -> None:
        try:
            engine = machine.engine(bundle)
            seen.extend(engine(image)["mask"] for _ in range(4))
            engine.close()
        except EngineError as error:
            seen.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert machine.gpu.end_capture(stream).works == []
    assert len(seen) == 4 and all(np.array_equal(mask, nearest_class(image)) for mask in seen)
    machine.gpu.free_stream(stream)


def test_pycuda_works_with_a_driver_that_has_no_modes_to_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a driver is older than the function, or is not found by its name."""
    gpu = FakeGpu()
    install_driver(monkeypatch, None)
    memory = PyCuda(pycuda(gpu))
    with memory.entered():
        memory.free(memory.allocate(16))
    assert gpu.held() == dict.fromkeys(gpu.held(), 0)

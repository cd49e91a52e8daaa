"""The functions that our modules call exist in the real CUDA packages, with these parameters."""

from __future__ import annotations

import fake_cuda
import pytest
from fake_gpu import FakeGpu

from twins_trt.errors import EngineError
from twins_trt.runtime.memory import cuda_bindings, installed
from twins_trt.runtime.memory.protocol import OutOfMemory


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

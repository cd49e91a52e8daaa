"""The CUDA driver of another machine: with the GPU that a test names, or absent."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from fake_gpu import FakeGpu

from twins_trt.device import Device

if TYPE_CHECKING:
    import pytest  # a benchmark rehearses where there may be none

_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
NOT_INITIALIZED, NO_DEVICE = 3, 100  # CUDA_ERROR_*
# Function of cuda.h -> how many arguments it has there.
FUNCTIONS = {
    "cuInit": 1,
    "cuDriverGetVersion": 1,
    "cuDeviceGet": 2,
    "cuDeviceGetName": 3,
    "cuDeviceGetAttribute": 3,
    "cuDeviceGetPCIBusId": 3,
    "cuThreadExchangeStreamCaptureMode": 1,
    "cuDevicePrimaryCtxRetain": 2,
    "cuDevicePrimaryCtxRelease_v2": 1,
    "cuCtxPushCurrent_v2": 1,
    "cuCtxPopCurrent_v2": 1,
    "cuMemGetInfo_v2": 2,
}
INTEGRATED, MAJOR, MINOR = 18, 75, 76  # CU_DEVICE_ATTRIBUTE_*


class FakeDriver:
    """The functions of libcuda that the package calls. fails_at: the one that returns an error. gpu: whose capture
    modes they exchange. cuda: the newest CUDA that it serves, as in `(12, 6)`."""

    def __init__(
        self,
        device: Device,
        *,
        fails_at: str | None = None,
        gpu: FakeGpu | None = None,
        cuda: tuple[int, int] = (13, 0),
    ) -> None:
        self._device, self._fails_at, self._gpu, self._cuda = device, fails_at, gpu, cuda
        self._started = False

    def __getattr__(self, name: str) -> Any:
        if name not in FUNCTIONS:
            raise AttributeError(f"libcuda.so.1: undefined symbol: {name}")

        def call(*given: Any) -> int:
            assert len(given) == FUNCTIONS[name], f"{name} takes {FUNCTIONS[name]} arguments"
            self._started |= name == "cuInit"
            if not self._started and name not in ("cuDriverGetVersion", "cuThreadExchangeStreamCaptureMode"):
                return NOT_INITIALIZED
            if name == "cuDriverGetVersion":
                given[0]._obj.value = 1000 * self._cuda[0] + 10 * self._cuda[1]
            if name == "cuMemGetInfo_v2":
                capacity = self._gpu.capacity if self._gpu is not None else 8 << 30
                taken = sum(self._gpu.held().values()) if self._gpu is not None else 0
                given[0]._obj.value, given[1]._obj.value = capacity - taken, capacity
            if name == "cuDeviceGetName":
                given[0].value = self._device.name.encode()
            if name == "cuDeviceGetPCIBusId":
                given[0].value = b"0000:65:00.0"
            if name == "cuDeviceGetAttribute":
                digits = self._device.target.removeprefix("sm_")
                attributes = {INTEGRATED: int(self._device.integrated), MAJOR: int(digits[:-1]), MINOR: int(digits[-1])}
                given[0]._obj.value = attributes[given[1]]
            if name == "cuThreadExchangeStreamCaptureMode" and self._gpu is not None:
                given[0]._obj.value = self._gpu.rules.exchange(given[0]._obj.value)
            return NO_DEVICE if name == self._fails_at else 0

        return call


def install_driver(
    monkeypatch: pytest.MonkeyPatch, device: Device | None, *, fails_at: str | None = None, gpu: FakeGpu | None = None
) -> None:
    """From now on this machine has the driver of `device`; with None, no driver."""
    load = ctypes.CDLL

    def load_library(name: Any, *given: Any, **named: Any) -> Any:
        if name not in _LIBRARIES:
            return load(name, *given, **named)
        if device is None:
            raise OSError(f"{name}: cannot open shared object file")
        return FakeDriver(device, fails_at=fails_at, gpu=gpu)

    monkeypatch.setattr(ctypes, "CDLL", load_library)

"""The CUDA driver of another machine: with the GPU that a test names, or absent."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from fake_gpu import FakeGpu

from twins_trt.device import Device

if TYPE_CHECKING:
    import pytest  # a benchmark rehearses where there may be none

_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")


class FakeDriver:
    """The functions of libcuda that the package calls. fails_at: the one that returns an error. gpu: whose capture
    modes they exchange."""

    def __init__(self, device: Device, *, fails_at: str | None = None, gpu: FakeGpu | None = None) -> None:
        self._device, self._fails_at, self._gpu = device, fails_at, gpu

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any) -> int:
            if name == "cuDeviceGetName":
                given[0].value = self._device.name.encode()
            if name == "cuDeviceGetPCIBusId":
                given[0].value = b"0000:65:00.0"
            if name == "cuDeviceGetAttribute":
                digits = self._device.target.removeprefix("sm_")
                attributes = {18: int(self._device.integrated), 75: int(digits[:-1]), 76: int(digits[-1])}
                given[0]._obj.value = attributes[given[1]]
            if name == "cuThreadExchangeStreamCaptureMode" and self._gpu is not None:
                given[0]._obj.value = self._gpu.rules.exchange(given[0]._obj.value)
            return 100 if name == self._fails_at else 0

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

"""The GPU that this process sees first, asked of the driver itself: no CUDA package needed."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

_INTEGRATED, _CAPABILITY_MAJOR, _CAPABILITY_MINOR = 18, 75, 76  # CUdevice_attribute in cuda.h


@dataclass(frozen=True)
class Device:
    """`name` as the driver says it ("Orin"), `target` as we say it ("sm_87").

    integrated: it shares the host's memory, as on a Jetson, so that nothing has to be copied.
    """

    name: str
    target: str
    integrated: bool = False


def current_device() -> Device | None:
    """The first CUDA device that this process sees; None without a driver or a device."""
    driver = _driver()
    if driver is None:
        return None
    device, major, minor, integrated = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(256)
    calls = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetName(name, len(name), device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(integrated), _INTEGRATED, device),
    )
    if any(call() != 0 for call in calls):
        return None
    return Device(name.value.decode(errors="replace"), f"sm_{major.value}{minor.value}", bool(integrated.value))


def pci_bus_id() -> str | None:
    """Where that device is plugged in, as in `0000:65:00.0`: what it is called outside CUDA, which has an order of its
    own and heeds CUDA_VISIBLE_DEVICES. None without a driver or a device."""
    driver = _driver()
    if driver is None:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(32)
    calls = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetPCIBusId(name, len(name), device),
    )
    return None if any(call() != 0 for call in calls) else name.value.decode()


def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None

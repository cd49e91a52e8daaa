"""The first GPU of this process, from the driver itself, without a CUDA package."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from pathlib import Path

_INTEGRATED, _CAPABILITY_MAJOR, _CAPABILITY_MINOR = 18, 75, 76  # CUdevice_attribute in cuda.h


@dataclass(frozen=True)
class Device:
    """A GPU. name: the driver's ("Orin"). target: its compute capability ("sm_87").

    integrated: it shares the host's memory, as on a Jetson, so nothing has to be copied.
    """

    name: str
    target: str
    integrated: bool = False


def current_device() -> Device | None:
    """The first CUDA device of this process; None without a driver or a device."""
    driver = load_driver()
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


def board(root: Path = Path("/")) -> str:
    """The model of the board, such as `NVIDIA Jetson Orin Nano Developer Kit`; empty where no device tree tells it."""
    try:
        return (root / "proc" / "device-tree" / "model").read_bytes().decode(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def kernel_driver(root: Path = Path("/")) -> str:
    """The version of NVIDIA's kernel driver; empty where none is loaded. root: of the file system that holds /proc."""
    module = root / "proc" / "driver" / "nvidia" / "version"
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", module.read_text(errors="replace")) if module.is_file() else None
    return found[1] if found else ""


def cuda_version() -> str:
    """The CUDA that the driver serves, such as `12.6`; empty without a driver."""
    driver, version = load_driver(), ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def pci_bus_id() -> str | None:
    """The PCI address of that device, as in `0000:65:00.0`; None without a driver or a device.

    It names the device outside CUDA, whose own order of devices depends on CUDA_VISIBLE_DEVICES.
    """
    driver = load_driver()
    if driver is None:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(32)
    calls = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetPCIBusId(name, len(name), device),
    )
    return None if any(call() != 0 for call in calls) else name.value.decode()


def free_gpu_mib() -> int | None:
    """MiB that are free on the first GPU; None if the driver does not say."""
    driver = load_driver()
    device, context = ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if driver is None or driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    # Only a context can be asked. The compiler uses the same one.
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) != 0:
        return None
    try:
        if driver.cuCtxPushCurrent_v2(context) != 0:
            return None
        answer = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        return free.value >> 20 if answer == 0 else None
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)


def load_driver() -> ctypes.CDLL | None:
    """The library of the CUDA driver; None where there is none."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None

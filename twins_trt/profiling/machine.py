"""The machine that figures come from: what it is, and its state at one moment.

Nothing here raises: what cannot be read is left out.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from twins_trt.device import kernel_driver, pci_bus_id
from twins_trt.profiling.results import Conditions, Machine

ROOT = Path("/")
STOLEN = "stolen by the hypervisor, ms"
PACKAGES = (
    "twins-trt",
    "numpy",
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "cuda-bindings",
    "pycuda",
)

_VECTORS = ("avx2", "avx512f", "avx512_vnni", "amx_tile", "asimd", "sve")
# The flags of nvmlClocksThrottleReason... that mean less speed than requested.
_REASONS = {
    "SwPowerCap": "power limit",
    "HwSlowdown": "hardware slowdown",
    "SwThermalSlowdown": "too hot",
    "HwThermalSlowdown": "much too hot",
    "HwPowerBrakeSlowdown": "power brake",
}


def describe_machine(root: Path = ROOT) -> Machine:
    """Processor, cores this process may use, memory, system and GPU, without the host's name."""
    return Machine(
        processor=_processor(root),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=_memory_gib(),
        system=f"{platform.system()} {platform.machine()}",
        gpu=_gpu(),
        board=_text(root / "proc/device-tree/model"),
    )


def describe_versions(packages: Sequence[str] = PACKAGES, root: Path = ROOT) -> dict[str, str]:
    """Versions of Python, of the installed packages and of the GPU's driver that a figure depends on."""
    versions = {"python": platform.python_version(), **_driver(root)}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    if "tensorrt" in packages and "tensorrt" not in versions:  # JetPack's system package may lack metadata
        with contextlib.suppress(Exception):  # a broken one may raise anything
            versions["tensorrt"] = str(importlib.import_module("tensorrt").__version__)
    return versions


def look(root: Path = ROOT, *, watch_s: float = 0.0) -> Conditions:
    """The machine's state now.

    root: of the file system that holds /proc and /sys. watch_s: seconds to sleep while watching how busy others keep
    the machine; 0 does not watch.
    """
    busy = _busy(root, watch_s) if watch_s else None
    now = glance(root)
    return replace(
        now,
        load_average=_load_average(),
        busy=busy,
        power_mode=now.power_mode or _nvpmodel(),
        events=dict(_events(root)),
    )


def glance(root: Path = ROOT) -> Conditions:
    """Clocks, temperatures and what holds the clocks back, now. It starts no program, so it fits between two calls.

    The clocks come first, because some fall as soon as the work ends.
    """
    clocks = {**_jetson_clocks(root), **_cpu_clock(root)}
    gpu = _nvml_conditions()
    return Conditions(
        clocks_mhz={**clocks, **gpu.clocks_mhz},
        temperatures_c={**_temperatures(root), **gpu.temperatures_c},
        limits_c={**_limits(root), **gpu.limits_c},
        power_mode=gpu.power_mode,
        throttled=(*_cooling(root), *gpu.throttled),
    )


def _cooling(root: Path) -> tuple[str, ...]:
    """Cooling devices that hold clocks back now, in words."""
    cooling = []
    for device in sorted(root.glob("sys/class/thermal/cooling_device*")):
        name, state = _text(device / "type") or "", _number(device / "cur_state")
        if state is not None and state > 0 and re.search(r"throttle|freq|processor|gpu", name, re.IGNORECASE):
            cooling.append(f"cooling by {name}")  # not by fans and the like, which cost no speed
    return tuple(cooling)


def resident_mib() -> tuple[float, float] | None:
    """Resident memory of this process: (now, peak since `forget_peak`); None where /proc does not say."""
    sizes = dict(re.findall(r"^(VmRSS|VmHWM):\s*(\d+) kB", _text(Path("/proc/self/status")) or "", re.MULTILINE))
    return (int(sizes["VmRSS"]) / 1024, int(sizes["VmHWM"]) / 1024) if len(sizes) == 2 else None


def forget_peak() -> None:
    """Makes the peak of `resident_mib` start from now (Linux, /proc/PID/clear_refs)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _processor(root: Path) -> str:
    """The model, and the vector extensions that matrix products use."""
    lines = (_text(root / "proc/cpuinfo") or "").splitlines()
    if not lines:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(named.get("flags", named.get("Features", "")).split())
    vectors = [flag for flag in _VECTORS if flag in flags]
    return " ".join([named.get("model name", platform.machine()), *([f"({', '.join(vectors)})"] if vectors else [])])


def _memory_gib() -> int | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    except (ValueError, OSError, AttributeError):
        return None


def _gpu() -> str | None:
    from twins_trt.device import current_device

    device = current_device()
    return None if device is None else f"{device.name} ({device.target})"


def _load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _busy(root: Path, seconds: float) -> float | None:
    """The share of all cores' time that was not idle while this process slept; a load average would lag by a minute."""
    first = _processor_times(root)
    time.sleep(seconds)
    spent = [after - before for before, after in zip(first, _processor_times(root), strict=True)]
    if len(spent) < 5 or not sum(spent):
        return None
    return round(1 - (spent[3] + spent[4]) / sum(spent), 3)


def _processor_times(root: Path) -> list[int]:
    """user nice system idle iowait irq softirq steal ..., in ticks, of all cores together; empty without /proc."""
    words = (_text(root / "proc/stat") or "").split("\n", 1)[0].split()
    return [int(word) for word in words[1:9]]


def _cpu_clock(root: Path) -> dict[str, float]:
    """The mean over cores, from cpufreq, else from /proc/cpuinfo (where a virtual machine often shows a constant)."""
    kilohertz = [_number(p) for p in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")]
    clocks = [each / 1e3 for each in kilohertz if each is not None]
    if not clocks:
        clocks = [float(each) for each in re.findall(r"cpu MHz\s*:\s*([\d.]+)", _text(root / "proc/cpuinfo") or "")]
    return {"cpu": float(round(sum(clocks) / len(clocks)))} if clocks else {}


def _jetson_clocks(root: Path) -> dict[str, float]:
    """GPU and memory clocks of a Jetson. The folder's name varies: 17000000.gpu, 17000000.ga10b, 57000000.gpu."""
    clocks: dict[str, float] = {}
    for folder in root.glob("sys/class/devfreq/*"):
        if re.search(r"gpu|gv11b|ga10b|gp10b", folder.name):
            for name, file in (("gpu", "cur_freq"), ("gpu_max", "max_freq")):
                if (hertz := _number(folder / file)) is not None:
                    clocks[name] = round(hertz / 1e6)
    emc = root / "sys/kernel/debug/bpmp/debug/clk/emc"  # for root only
    cap = _number(root / "sys/kernel/nvpmodel_clk_cap/emc") or None  # of the power mode; 0 caps nothing
    if (hertz := _number(emc / "rate")) is not None:
        clocks["memory"] = round(hertz / 1e6)
    if ends := [each for each in (_number(emc / "max_rate"), cap) if each is not None]:
        clocks["memory_max"] = round(min(ends) / 1e6)
    return clocks


def _temperatures(root: Path) -> dict[str, float]:
    degrees = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        name, value = _text(zone / "type"), _number(zone / "temp")
        if name and value is not None and value > -200_000:  # a sensor that is off reads -256 degrees
            degrees[name] = round(value / 1e3, 1)
    return degrees


def _limits(root: Path) -> dict[str, float]:
    """Degrees at which a zone slows something down or stops it: the lowest trip point that is not a fan's.

    Documentation/driver-api/thermal/sysfs-api.rst: `trip_point_N_type` is critical, hot, passive or active.
    """
    limits = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        degrees = []
        for kind in zone.glob("trip_point_*_type"):
            value = _number(kind.with_name(kind.name.replace("_type", "_temp")))
            if _text(kind) in ("passive", "hot", "critical") and value is not None and value > 0:  # else it is off
                degrees.append(value)
        if degrees and (name := _text(zone / "type")):
            limits[name] = round(min(degrees) / 1e3, 1)
    return limits


def _driver(root: Path) -> dict[str, str]:
    """The version of the GPU's driver, and of a Jetson's L4T."""
    from twins_trt.diagnosis.facts import find_jetson

    jetson = find_jetson(root)
    found = {"driver": kernel_driver(root), "l4t": None if jetson is None else jetson.l4t}
    return {name: version for name, version in found.items() if version}


def _events(root: Path) -> Iterator[tuple[str, int]]:
    """Counters that grow only while something slows the machine down."""
    # Over-current events of a Jetson (Jetson Linux Developer Guide, "Electrical Management").
    for path in sorted(root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt")):
        if (count := _number(path)) is not None:
            yield f"over-current {path.name.removesuffix('_event_cnt')}", int(count)
    counts = [_number(p) for p in root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")]
    if any(count is not None for count in counts):
        yield "CPU throttled", int(sum(count or 0 for count in counts))
    if len(times := _processor_times(root)) == 8:
        yield STOLEN, times[7] * 1000 // os.sysconf("SC_CLK_TCK")


def _nvpmodel() -> str | None:
    """The power mode of a Jetson, as in `MAXN`."""
    try:
        done = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"NV Power Mode:\s*(\S+)", done.stdout)
    return found[1] if found else None


def first_gpu(nvml: Any, bus_id: str | None) -> Any:
    """NVML's handle of the GPU that CUDA sees first, which NVML may count as another.

    bus_id: where that GPU is plugged in (`pci_bus_id()`), None if CUDA sees none.
    """
    return nvml.nvmlDeviceGetHandleByIndex(0) if bus_id is None else nvml.nvmlDeviceGetHandleByPciBusId(bus_id)


def _nvml_conditions() -> Conditions:
    """Clocks, temperature, power limit and throttling of the first GPU; empty without NVML."""
    try:
        import pynvml as nvml

        nvml.nvmlInit()
    except Exception:  # not installed, or no driver
        return Conditions()
    try:
        device = first_gpu(nvml, pci_bus_id())
        clocks = {
            "gpu": _ask(nvml.nvmlDeviceGetClockInfo, device, nvml.NVML_CLOCK_SM),
            "gpu_max": _ask(nvml.nvmlDeviceGetMaxClockInfo, device, nvml.NVML_CLOCK_SM),
            "memory": _ask(nvml.nvmlDeviceGetClockInfo, device, nvml.NVML_CLOCK_MEM),
            "memory_max": _ask(nvml.nvmlDeviceGetMaxClockInfo, device, nvml.NVML_CLOCK_MEM),
        }
        heat = _ask(nvml.nvmlDeviceGetTemperature, device, nvml.NVML_TEMPERATURE_GPU)
        slowdown = _ask(nvml.nvmlDeviceGetTemperatureThreshold, device, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
        limit = _ask(nvml.nvmlDeviceGetEnforcedPowerLimit, device)
        bits = _ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, device) or 0
        reasons = {getattr(nvml, f"nvmlClocksThrottleReason{name}"): words for name, words in _REASONS.items()}
        return Conditions(
            clocks_mhz={name: float(value) for name, value in clocks.items() if value is not None},
            temperatures_c={} if heat is None else {"gpu": float(heat)},
            limits_c={} if slowdown is None else {"gpu": float(slowdown)},
            power_mode=None if limit is None else f"limit {limit / 1e3:.0f} W",
            throttled=tuple(words for bit, words in reasons.items() if bits & bit),
        )
    except nvml.NVMLError:
        return Conditions()
    finally:
        nvml.nvmlShutdown()


def _ask(question: Any, *arguments: Any) -> Any:
    """NVML's answer; None where this device does not support the question."""
    import pynvml as nvml

    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode(errors="replace").strip("\0 \n") or None
    except OSError:
        return None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None

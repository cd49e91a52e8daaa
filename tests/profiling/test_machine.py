"""The machine's state from file trees that follow the documentation; what cannot be read is left out."""

from __future__ import annotations

import json
import os
import platform
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import trees

from twins_trt.profiling import machine


def test_this_machine_is_described_without_its_name() -> None:
    found = machine.describe_machine()
    assert found.cores >= 1 and found.processor
    assert (platform.node() or "?") not in repr(found)
    versions = machine.describe_versions()
    assert versions["python"] == platform.python_version() and "numpy" in versions
    assert "tensorrt-of-nowhere" not in machine.describe_versions(["tensorrt-of-nowhere"])


def test_an_empty_machine_says_nothing_and_fails_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = machine.look(tmp_path)
    assert (found.clocks_mhz, found.temperatures_c, found.throttled, found.events) == ({}, {}, (), {})
    assert found.power_mode is None


def jetson(root: Path) -> Path:
    return trees.write(
        root,
        {
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 1510400,
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": 729600,
            "sys/class/devfreq/17000000.gpu/cur_freq": 624750000,
            "sys/class/devfreq/17000000.gpu/max_freq": 918000000,
            "sys/class/devfreq/15340000.vic/cur_freq": 115200000,
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": 46531,
            "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
            "sys/class/thermal/thermal_zone1/temp": -256000,
            "sys/class/thermal/cooling_device0/type": "pwm-fan",
            "sys/class/thermal/cooling_device0/cur_state": 2,
            "sys/class/thermal/cooling_device1/type": "gpu-throttle-alert",
            "sys/class/thermal/cooling_device1/cur_state": 0,
            "sys/class/thermal/cooling_device2/type": "devfreq-17000000.gpu",
            "sys/class/thermal/cooling_device2/cur_state": 0,
            "sys/class/hwmon/hwmon2/oc1_event_cnt": 0,
            "sys/class/hwmon/hwmon2/oc3_event_cnt": 7,
            "proc/stat": "cpu  100 0 50 900 10 0 5 40 0 0\ncpu0 1 2 3",
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd evtstrm\n\nprocessor\t: 1\n",
        },
    )


def test_a_jetsons_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    tool = tmp_path / "bin" / "nvpmodel"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n[ \"$1\" = -q ] && printf 'NV Power Mode: 15W\\n0\\n'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    found = machine.look(jetson(tmp_path / "root"))
    assert found.clocks_mhz == {"cpu": 1120.0, "gpu": 625.0, "gpu_max": 918.0}
    assert found.temperatures_c == {"cpu-thermal": 46.5}
    assert found.power_mode == "15W"
    assert found.throttled == ()
    stolen = 40 * 1000 // os.sysconf("SC_CLK_TCK")
    assert found.events == {"over-current oc1": 0, "over-current oc3": 7, machine.STOLEN: stolen}
    described = machine.describe_machine(tmp_path / "root")
    assert described.board == "NVIDIA Jetson Orin Nano Developer Kit"
    assert described.processor.endswith("(asimd)")


def test_memory_clock_heat_limits_and_driver_of_a_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    root, emc, zone = jetson(tmp_path), "sys/kernel/debug/bpmp/debug/clk/emc", "sys/class/thermal/thermal_zone0"
    assert machine.glance(root).limits_c == {}
    trips = (("active", 40_000), ("critical", 104_500), ("passive", 99_000), ("passive", 0), ("hot", "?"))
    trees.write(
        root,
        {
            f"{zone}/trip_point_{i}_{key}": v
            for i, t in enumerate(trips)
            for key, v in zip(("type", "temp"), t, strict=True)
        },
    )
    assert machine.glance(root).limits_c == {"cpu-thermal": 99.0}
    trees.write(root, {f"{emc}/rate": 2_133_000_000, f"{emc}/max_rate": 3_199_000_000})
    clocks = {"cpu": 1120.0, "gpu": 625.0, "gpu_max": 918.0}
    assert machine.glance(root).clocks_mhz == clocks | {"memory": 2133.0, "memory_max": 3199.0}
    for cap, top in ((0, 3199.0), (2_133_000_000, 2133.0)):
        trees.write(root, {"sys/kernel/nvpmodel_clk_cap/emc": cap})
        assert machine.glance(root).clocks_mhz["memory_max"] == top
    version = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  (buildbrain)"
    trees.write(
        root, {"proc/driver/nvidia/version": version, "etc/nv_tegra_release": "# R36 (release), REVISION: 4.0, GCID: 1"}
    )
    versions = machine.describe_versions([], root)
    assert (versions["driver"], versions["l4t"]) == ("540.4.0", "36.4.0")
    desktop = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  560.35.03  Fri Aug 16 21:39:15 UTC 2024"
    trees.write(root, {"proc/driver/nvidia/version": desktop})
    assert machine.describe_versions([], root)["driver"] == "560.35.03"


def test_what_others_do_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    root = jetson(tmp_path)

    def work(seconds: float) -> None:  # 30 ticks of work beside 60 idle and 10 waiting for a disk
        trees.write(root, {"proc/stat": "cpu  120 0 60 960 20 0 5 40 0 0"})

    monkeypatch.setattr(machine.time, "sleep", work)
    assert machine.look(root, watch_s=0.5).busy == 0.3
    assert machine.look(root).busy is None
    assert machine.look(tmp_path / "none", watch_s=0.5).busy is None


def test_throttling_is_told_from_fans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    root = jetson(tmp_path)
    trees.write(root, {"sys/class/thermal/cooling_device1/cur_state": 1})
    assert machine.glance(root).throttled == machine.look(root).throttled == ("cooling by gpu-throttle-alert",)


def test_a_desktops_gpu_through_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    fake = ModuleType("pynvml")

    def refuse(*_: object) -> None:
        raise real.NVMLError(real.NVML_ERROR_NOT_SUPPORTED)

    reasons = real.nvmlClocksThrottleReasonSwPowerCap | real.nvmlClocksThrottleReasonGpuIdle
    for name, value in {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: "gpu 0",
        "nvmlDeviceGetClockInfo": lambda device, kind: {real.NVML_CLOCK_SM: 1410, real.NVML_CLOCK_MEM: 7001}[kind],
        "nvmlDeviceGetMaxClockInfo": lambda device, kind: {real.NVML_CLOCK_SM: 2100, real.NVML_CLOCK_MEM: 7001}[kind],
        "nvmlDeviceGetTemperature": refuse,
        "nvmlDeviceGetTemperatureThreshold": lambda device, kind: {real.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN: 95}[kind],
        "nvmlDeviceGetEnforcedPowerLimit": lambda device: 130_000,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda device: reasons,
    }.items():
        assert hasattr(real, name)
        setattr(fake, name, value)
    for name in dir(real):
        if name.startswith(("NVML_CLOCK", "NVML_TEMPERATURE", "nvmlClocksThrottleReason", "NVMLError")):
            setattr(fake, name, getattr(real, name))
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    found = machine.look(tmp_path)
    assert found.clocks_mhz == {"gpu": 1410.0, "gpu_max": 2100.0, "memory": 7001.0, "memory_max": 7001.0}
    assert found.limits_c == {"gpu": 95.0}
    assert (found.power_mode, found.throttled, found.temperatures_c) == ("limit 130 W", ("power limit",), {})


MEMORY = """
import json, mmap
from twins_trt.profiling import machine
before, held, after = machine.resident_mib(), None, None
if before is not None:
    machine.forget_peak()
    with mmap.mmap(-1, 64 << 20) as block:  # from the system: the heap may have some to spare
        block.write(b"x" * len(block))
        held = machine.resident_mib()
    after = machine.resident_mib()
print(json.dumps([before, held, after]))
"""


def test_memory_of_a_process_and_its_peak() -> None:
    """In a process of its own: a thread of this one may free memory meanwhile."""
    ran = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    before, held, after = json.loads(ran.stdout)
    if before is None:
        pytest.skip("this system has no /proc/self/status")
    assert 60 < held[0] - before[0] < 80
    assert after[1] >= held[0] - 1
    assert after[0] < held[0] - 50

"""Power from recorded file trees, lines and answers, without a board or a GPU."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import trees

from twins_trt.errors import MissingDependencyError, ProfileError, UsageError
from twins_trt.profiling import machine, power
from twins_trt.profiling.power import (
    NvmlMeter,
    SensorMeter,
    TegrastatsMeter,
    measure_energy,
    measure_idle,
    open_meter,
    parse_tegrastats,
)
from twins_trt.verbs.command_line import on_command_line
from twins_trt.verbs.profile import FLAGS


@pytest.mark.parametrize(
    ("tree", "watts", "rails"),
    [
        (trees.orin_nano, 6.0, "VDD_IN"),
        (trees.orin_agx, 6.0 + 2.4 + 5.0, "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"),
        (trees.xavier_iio, 1.5 + 0.8 + 0.9 + 0.25 + 1.55, "GPU + CPU + SOC + CV + VDDRQ + SYS5V"),
        (trees.nano_iio, 4.2, "POM_5V_IN"),
        (trees.thor, 45.5, "VIN"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_boards_power_is_read_once(tmp_path: Path, tree: Callable[[Path], Path], watts: float, rails: str) -> None:
    meter = SensorMeter(tree(tmp_path))
    assert meter.watts() == pytest.approx(watts)
    assert meter.source == f"INA3221 ({rails})"
    assert meter.millijoules() is None


def test_a_channel_that_is_switched_off_is_left_out(tmp_path: Path) -> None:
    root = trees.orin_agx(tmp_path)
    trees.write(root, {"sys/class/hwmon/hwmon3/in2_enable": 0})
    assert SensorMeter(root).watts() == pytest.approx(11.0)


def test_readings_follow_the_sensor(tmp_path: Path) -> None:
    meter = SensorMeter(trees.orin_nano(tmp_path))
    trees.write(tmp_path, {"sys/class/hwmon/hwmon1/curr1_input": 2400})
    assert meter.watts() == pytest.approx(12.0)


def test_a_machine_without_a_sensor_says_so(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no INA3221"):
        open_meter("ina3221", root=tmp_path)
    with pytest.raises(UsageError, match="there is no power meter 'volts'"):
        open_meter("volts")
    assert open_meter("none") is None


class FakeMeter:
    """A meter that reads 30 W. counts: it also counts energy, at 20 W. fails: reading raises."""

    source = "a test"

    def __init__(self, *, counts: bool = False, fails: bool = False) -> None:
        self.counts, self.fails = counts, fails

    def watts(self) -> float:
        if self.fails:
            raise OSError("the bus is gone")
        return 30.0

    def millijoules(self) -> int | None:
        return int(time.perf_counter() * 20_000) if self.counts else None

    def close(self) -> None:
        pass


def pictures() -> int:
    time.sleep(0.01)
    return 2


def test_energy_is_power_times_time_by_pictures() -> None:
    found = measure_energy(FakeMeter(), pictures, seconds=0.2, idle_watts=10.0)
    assert (found.watts, found.idle_watts, found.source) == (30.0, 10.0, "a test")
    assert 2 <= found.images <= 40 and found.images % 2 == 0
    assert found.joules_per_image == pytest.approx(30 * found.seconds / found.images, rel=0.05)


def test_a_counter_of_energy_is_believed_before_readings() -> None:
    found = measure_energy(FakeMeter(counts=True), pictures, seconds=0.2)
    assert found.watts == pytest.approx(20.0, rel=0.05)  # the counter runs at 20 W, the readings say 30


def test_something_runs_even_without_time() -> None:
    assert measure_energy(FakeMeter(), pictures, seconds=0.0).images == 2
    assert measure_idle(FakeMeter(), seconds=0.0) == 30.0


def test_a_sensor_that_fails_is_a_typed_error() -> None:
    with pytest.raises(ProfileError, match="stopped answering: the bus is gone") as caught:
        measure_energy(FakeMeter(fails=True), pictures, seconds=0.0)
    assert caught.value.fix == 'power="none"'
    with on_command_line(FLAGS), pytest.raises(ProfileError) as caught:
        measure_energy(FakeMeter(fails=True), pictures, seconds=0.0)
    assert caught.value.fix == "--power none"


ORIN_LINE = (
    "01-02-2026 03:04:05 RAM 3162/15523MB (lfb 1x4MB) SWAP 0/7761MB (cached 0MB) CPU [1%@729,off] EMC_FREQ 0%@2133 "
    "GR3D_FREQ 99%@[918] cpu@46.5C tj@48.2C VDD_IN 4523mW/4410mW VDD_CPU_GPU_CV 482mW/480mW VDD_SOC 1406mW/1400mW"
)
XAVIER_LINE = "RAM 2000/15817MB CPU [2%@1190] GR3D_FREQ 0% AO@35C GPU 310/310 CPU 620/600 SOC 930/930 SYS5V 1550/1550"


def test_lines_of_tegrastats() -> None:
    assert parse_tegrastats(ORIN_LINE) == {"VDD_IN": 4.523, "VDD_CPU_GPU_CV": 0.482, "VDD_SOC": 1.406}
    assert parse_tegrastats(XAVIER_LINE) == {"GPU": 0.31, "CPU": 0.62, "SOC": 0.93, "SYS5V": 1.55}
    assert parse_tegrastats("RAM 3162/15523MB CPU [off,off]") == {}


def program(path: Path, *lines: str) -> list[str]:
    path.write_text(f"import time\nfor line in {lines!r}:\n    print(line, flush=True)\n")
    return [sys.executable, str(path)]


def test_tegrastats_is_read_line_by_line_and_ended(tmp_path: Path) -> None:
    later = ORIN_LINE.replace("VDD_IN 4523mW", "VDD_IN 9000mW")
    meter = TegrastatsMeter(program(tmp_path / "tegrastats.py", ORIN_LINE, later, ORIN_LINE))
    assert meter.source == "tegrastats (VDD_IN)"
    assert [meter.watts(), meter.watts()] == [9.0, 4.523]
    with pytest.raises(ProfileError, match="has ended"):
        meter.watts()
    meter.close()
    assert meter._process.returncode is not None


def test_tegrastats_that_is_missing_or_shows_no_power(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="shows no power"):
        TegrastatsMeter(program(tmp_path / "tegrastats.py", "RAM 1/2MB"))
    with pytest.raises(ProfileError, match="there is no tegrastats"):
        TegrastatsMeter(["tegrastats-of-nowhere"])


class FakeNvml:
    """The functions of pynvml that the meter and `machine` call, for a GPU of 250 W that may lack an energy counter."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, driver: bool = True, counter: bool = True) -> None:
        import pynvml

        fake = ModuleType("pynvml")
        fake.NVMLError = pynvml.NVMLError  # type: ignore[attr-defined]
        refuse = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        self.open = 0

        def start() -> None:
            if not driver:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
            self.open += 1

        def stop() -> None:
            self.open -= 1

        def count(device: Any) -> int:
            if not counter:
                raise refuse
            return 5000

        for name, function in {
            "nvmlInit": start,
            "nvmlShutdown": stop,
            "nvmlDeviceGetHandleByIndex": lambda index: "gpu 0",
            "nvmlDeviceGetName": lambda device: "NVIDIA Test",
            "nvmlDeviceGetPowerUsage": lambda device: 250_000,
            "nvmlDeviceGetTotalEnergyConsumption": count,
        }.items():
            assert hasattr(pynvml, name)  # a name that the real one does not have proves nothing
            setattr(fake, name, function)
        monkeypatch.setitem(sys.modules, "pynvml", fake)


def test_a_gpus_power_through_nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    nvml = FakeNvml(monkeypatch)
    meter = open_meter(root=tmp_path)
    assert isinstance(meter, NvmlMeter)
    assert (meter.watts(), meter.millijoules(), meter.source) == (250.0, 5000, "NVML (NVIDIA Test)")
    meter.close()
    assert nvml.open == 0


def test_nvmls_gpu_is_the_one_that_cuda_sees_first() -> None:
    nvml = SimpleNamespace(
        nvmlDeviceGetHandleByIndex=lambda index: index, nvmlDeviceGetHandleByPciBusId=lambda bus_id: bus_id
    )
    for bus_id, handle in (("0000:65:00.0", "0000:65:00.0"), (None, 0)):
        assert machine.first_gpu(nvml, bus_id) == handle


def test_nvml_without_counter_driver_or_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    FakeNvml(monkeypatch, counter=False)
    assert NvmlMeter().millijoules() is None
    monkeypatch.undo()
    FakeNvml(monkeypatch, driver=False)
    with pytest.raises(ProfileError, match="NVML reads no power here"):
        open_meter("nvml")
    monkeypatch.setattr(power.shutil, "which", lambda name: None)
    assert open_meter(root=tmp_path) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingDependencyError, match=r"twins-trt\[power\]"):
        open_meter("nvml")

"""Power and energy: NVML on desktops; on a Jetson the INA3221 sensors through sysfs, else tegrastats.

A meter reads watts. Energy is the mean of many readings times the time they span. Where a GPU counts millijoules
itself, that counter is used instead: it misses nothing between readings.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from twins_trt.device import pci_bus_id
from twins_trt.errors import ProfileError, UsageError, missing
from twins_trt.profiling.machine import first_gpu
from twins_trt.profiling.results import Energy
from twins_trt.spelling import spelled

READ_EVERY_S = 0.05
IDLE_S = 2.0
KINDS = ("auto", "nvml", "ina3221", "tegrastats", "none")

# The rail that feeds all others. Where a board has none of these, its other rails are added up.
_INPUT_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")
# Parts of another rail (Jetson Linux Developer Guide, AGX Orin: VDDQ is fed by VIN_SYS_5V0), unused channels, sums.
_NOT_ADDED = re.compile(r"NC|VDDQ\w*|sum of shunt voltages", re.IGNORECASE)


class Meter(Protocol):
    """Reads power.

    source: what is read, in words. millijoules: a counter of energy, None where the meter has none.
    """

    @property
    def source(self) -> str: ...
    def watts(self) -> float: ...
    def millijoules(self) -> int | None: ...
    def close(self) -> None: ...


def open_meter(kind: str = "auto", *, root: Path = Path("/")) -> Meter | None:
    """The meter of this machine; None for `none`, and where `auto` finds nothing to read.

    kind: one of `KINDS`. root: of the file system that holds /sys. Raises UsageError for another kind, ProfileError or
    MissingDependencyError where a kind other than `auto` cannot read anything here.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no power meter {kind!r}", f"use one of: {', '.join(KINDS)}")
    if kind == "none":
        return None
    openers: dict[str, Callable[[], Meter]] = {
        "ina3221": lambda: SensorMeter(root),
        "tegrastats": TegrastatsMeter,
        "nvml": NvmlMeter,
    }
    if kind != "auto":
        return openers[kind]()
    for opener in openers.values():
        try:
            return opener()
        except (ProfileError, ImportError):
            continue
    return None


def measure_energy(meter: Meter, work: Callable[[], int], *, seconds: float, idle_watts: float | None = None) -> Energy:
    """The energy of `work`, repeated for `seconds`.

    work: returns how many pictures it did. idle_watts: only written down. Raises ProfileError where the meter fails.
    """
    images = 0
    with _Readings(meter) as readings:
        before = meter.millijoules()
        start = time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds or images == 0:
            images += work()
        after = meter.millijoules()
    watts = readings.mean()
    if before is not None and after is not None:
        watts = (after - before) / 1e3 / spent
    return Energy(
        source=meter.source,
        watts=round(watts, 3),
        idle_watts=None if idle_watts is None else round(idle_watts, 3),
        joules_per_image=round(watts * spent / images, 5),
        seconds=round(spent, 2),
        images=images,
    )


def measure_idle(meter: Meter, *, seconds: float = IDLE_S) -> float:
    """Mean watts while this process sleeps. Raises ProfileError where the meter fails."""
    with _Readings(meter) as readings:
        time.sleep(seconds)
    return readings.mean()


class _Readings:
    """Reads watts in a thread for as long as the block runs."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._watts: list[float] = []
        self._error: Exception | None = None
        self._stop = threading.Event()
        here = copy_context()  # so that errors name options as the caller spells them
        self._thread = threading.Thread(target=here.run, args=(self._read,), name="twins-trt power", daemon=True)

    def __enter__(self) -> _Readings:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def mean(self) -> float:
        if self._error is not None:
            raise ProfileError(f"{self._meter.source} stopped answering: {self._error}", spelled("power", "none"))
        return sum(self._watts) / len(self._watts)

    def _read(self) -> None:
        try:
            self._watts.append(self._meter.watts())
            while not self._stop.wait(READ_EVERY_S):
                self._watts.append(self._meter.watts())
        except Exception as error:
            self._error = error


@dataclass(frozen=True)
class Rail:
    """One channel of a sensor: files with `volts` (mV) and `amps` (mA), or a file with `power`, where `unit` is 1 W."""

    name: str
    volts: Path | None = None
    amps: Path | None = None
    power: Path | None = None
    unit: float = 1e6

    def watts(self) -> float:
        if self.power is not None:
            return _read(self.power) / self.unit
        assert self.volts is not None and self.amps is not None  # by construction
        return _read(self.volts) * _read(self.amps) / 1e6


class SensorMeter:
    """The power sensors of a Jetson, through sysfs.

    JetPack 5 and later: the kernel's hwmon drivers (Documentation/hwmon/ina3221.rst: `in[123]_label`, `in[123]_input`
    in mV, `curr[123]_input` in mA; Thor's INA238: `power1_input` in µW). JetPack 4: iio (`rail_name_[012]`,
    `in_power[012]_input` in mW). Raises ProfileError if there is none.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        rails = find_rails(root)
        if not rails:
            raise ProfileError(
                "this machine has no INA3221 power sensor", f"{spelled('power', 'nvml')}, or {spelled('power', 'none')}"
            )
        self.rails = whole_board(rails)
        self.source = f"INA3221 ({' + '.join(rail.name for rail in self.rails)})"

    def watts(self) -> float:
        return sum(rail.watts() for rail in self.rails)

    def millijoules(self) -> int | None:
        return None

    def close(self) -> None:
        """Does nothing: no file stays open."""


def find_rails(root: Path) -> list[Rail]:
    """All channels of the power sensors below `root` that are switched on, by path."""
    rails = []
    for folder in sorted(root.glob("sys/class/hwmon/hwmon*")):
        chip = _word(folder / "name")
        if chip == "ina238" and (folder / "power1_input").is_file():
            rails.append(Rail(_word(folder / "label") or "VIN", power=folder / "power1_input"))
        if chip != "ina3221":
            continue
        for label in sorted(folder.glob("in[123]_label")):
            number = label.name[2]
            volts, amps = folder / f"in{number}_input", folder / f"curr{number}_input"
            if _word(folder / f"in{number}_enable") != "0" and volts.is_file() and amps.is_file():
                rails.append(Rail(_word(label), volts, amps))
    for label in sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_[0-9]")):
        power = label.with_name(f"in_power{label.name[-1]}_input")
        if power.is_file():
            rails.append(Rail(_word(label), power=power, unit=1e3))
    return rails


def whole_board(rails: Sequence[Rail]) -> tuple[Rail, ...]:
    """The rails whose sum is the module's power.

    This is the input rail alone where it is measured, else all rails that are not part of another.
    """
    for name in _INPUT_RAILS:
        if inputs := tuple(rail for rail in rails if rail.name == name):
            return inputs[:1]
    return tuple(rail for rail in rails if not _NOT_ADDED.fullmatch(rail.name))


class TegrastatsMeter:
    """Reads a Jetson's `tegrastats` line by line. Raises ProfileError where it does not run or names no rail."""

    def __init__(self, command: Sequence[str] = ("tegrastats", "--interval", "100")) -> None:
        if shutil.which(command[0]) is None:
            raise ProfileError(f"there is no {command[0]} on this machine", spelled("power", "none"))
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        first = parse_tegrastats(self._line())
        self.rails = tuple(rail.name for rail in whole_board([Rail(name) for name in first]))
        if not self.rails:
            self.close()
            raise ProfileError(f"{command[0]} shows no power", f"run it as root, or {spelled('power', 'none')}")
        self.source = f"tegrastats ({' + '.join(self.rails)})"

    def watts(self) -> float:
        """Watts in the next line: every reading is a new one."""
        readings = parse_tegrastats(self._line())
        return sum(readings[name] for name in self.rails)

    def millijoules(self) -> int | None:
        return None

    def close(self) -> None:
        """Ends the program."""
        self._process.terminate()
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None  # a pipe
        line = self._process.stdout.readline()
        if not line:
            raise ProfileError("tegrastats has ended", f"run it by hand to see why, or {spelled('power', 'none')}")
        return line


def parse_tegrastats(line: str) -> dict[str, float]:
    """Watts by rail, now, from `VDD_IN 4523mW/4510mW` (now/mean) and the older `POM_5V_IN 4523/4510`."""
    rails = re.findall(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?=\s|$)", line)
    return {name: int(milliwatts) / 1e3 for name, milliwatts in rails}


class NvmlMeter:
    """Reads the first GPU's board power through nvidia-ml-py.

    Raises MissingDependencyError without that package, ProfileError without a driver or where the GPU does not say.
    """

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise missing("nvidia-ml-py", extra="power", purpose="reading a GPU's power") from error
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            self._device = first_gpu(pynvml, pci_bus_id())
            self.watts()
            self.source = f"NVML ({pynvml.nvmlDeviceGetName(self._device)})"
        except pynvml.NVMLError as error:
            raise ProfileError(f"NVML reads no power here: {error}", spelled("power", "none")) from error

    def watts(self) -> float:
        return self._nvml.nvmlDeviceGetPowerUsage(self._device) / 1e3

    def millijoules(self) -> int | None:
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device))
        except self._nvml.NVMLError:  # older than Volta
            return None

    def close(self) -> None:
        """Shuts NVML down."""
        self._nvml.nvmlShutdown()


def _read(path: Path) -> float:
    return float(path.read_text())


def _word(path: Path) -> str:
    try:
        return path.read_text().strip("\0 \n")
    except OSError:
        return ""

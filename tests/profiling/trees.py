"""Trees of /sys and /proc as Jetsons have them, written by hand from the documentation, not copied from a board."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write(root: Path, files: Mapping[str, object]) -> Path:
    """Writes each file below `root` with its content and a newline, as in sysfs."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def hwmon(number: int, *channels: tuple[str, int, int], name: str = "ina3221") -> dict[str, object]:
    """An INA3221 as Documentation/hwmon/ina3221.rst describes it. channels: label, mV, mA."""
    folder = f"sys/class/hwmon/hwmon{number}"
    files: dict[str, object] = {f"{folder}/name": name, f"{folder}/in7_label": "sum of shunt voltages"}
    for i, (label, millivolts, milliamps) in enumerate(channels, 1):
        files |= {
            f"{folder}/in{i}_label": label,
            f"{folder}/in{i}_enable": 1,
            f"{folder}/in{i}_input": millivolts,
            f"{folder}/curr{i}_input": milliamps,
            f"{folder}/curr{i}_crit": 32760,
            f"{folder}/in{i + 3}_input": 120,  # the shunt's voltage, µV
        }
    return files


def orin_nano(root: Path) -> Path:
    """JetPack 5 and 6 on Orin NX and Nano: one sensor, the module's input measured."""
    rails = hwmon(1, ("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 300), ("VDD_SOC", 5000, 280))
    return write(root, {"sys/class/hwmon/hwmon0/name": "thermal_fan", **rails})


def orin_agx(root: Path) -> Path:
    """JetPack 5 and 6 on AGX Orin: two sensors, no rail for the whole; VDDQ is fed by VIN_SYS_5V0."""
    first = hwmon(3, ("VDD_GPU_SOC", 12000, 500), ("VDD_CPU_CV", 12000, 200), ("VIN_SYS_5V0", 5000, 1000))
    second = hwmon(4, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 100), ("NC", 0, 0))
    return write(root, {**first, **second})


def xavier_iio(root: Path) -> Path:
    """JetPack 4 on AGX Xavier: an iio device per sensor, power in mW."""
    files: dict[str, object] = {}
    for address, device, rails in (
        ("1-0040", 0, (("GPU", 1500), ("CPU", 800), ("SOC", 900))),
        ("1-0041", 1, (("CV", 0), ("VDDRQ", 250), ("SYS5V", 1550))),
    ):
        folder = f"sys/bus/i2c/drivers/ina3221x/{address}/iio:device{device}"
        for i, (name, milliwatts) in enumerate(rails):
            files |= {f"{folder}/rail_name_{i}": name, f"{folder}/in_power{i}_input": milliwatts}
    return write(root, files)


def nano_iio(root: Path) -> Path:
    """JetPack 4 on Nano: the 5 V input is measured, beside parts of it."""
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    rails = (("POM_5V_IN", 4200), ("POM_5V_GPU", 1100), ("POM_5V_CPU", 1300))
    files: dict[str, object] = {}
    for i, (name, milliwatts) in enumerate(rails):
        files |= {f"{folder}/rail_name_{i}": name, f"{folder}/in_power{i}_input": milliwatts}
    return write(root, files)


def thor(root: Path) -> Path:
    """Thor: an INA238 at the input, in µW, beside an INA3221."""
    rails = hwmon(2, ("VDD_GPU", 12000, 2000), ("VDD_CPU_SOC_MSS", 12000, 500), ("VIN_SYS_5V0", 5000, 900))
    return write(
        root, {"sys/class/hwmon/hwmon0/name": "ina238", "sys/class/hwmon/hwmon0/power1_input": 45_500_000, **rails}
    )

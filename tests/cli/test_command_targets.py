from __future__ import annotations

import pytest
from commands import Twins
from fake_driver import install_driver
from fake_tensorrt import install, install_compilers

from twins_trt.builders.engine.devices import DEVICES
from twins_trt.device import Device


@pytest.fixture(autouse=True)
def desktop(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX, and no GPU."""
    install_compilers(monkeypatch, ("tensorrt_rtx",))
    install_driver(monkeypatch, None)


def test_every_device_is_listed_with_what_it_allows(twins: Twins) -> None:
    listed = twins("targets", "--json").json["targets"]
    assert [each["name"] for each in listed] == [device.name for device in DEVICES]
    by_name = {each["name"]: each for each in listed}
    orin = by_name["jetson-orin"]
    assert (orin["target"], orin["assumed"], orin["compiler"], orin["nearest"]) == ("sm_87", "6.1", None, "sm_86")
    assert orin["abilities"][1] == {
        "jetpack": "6.1",
        "tensorrt": "10.3",
        "opset": 20,
        "typing": "flag",
        "int8": True,
        "fp8": False,
    }
    assert (by_name["rtx-4090"]["compiler"], by_name["rtx-4090"]["nearest"]) == ("tensorrt_rtx", None)
    assert (by_name["h100"]["compiler"], by_name["h100"]["nearest"]) == (None, "sm_89")


def test_the_table_shows_each_tensorrt_of_a_jetson_once(twins: Twins) -> None:
    ran = twins("targets", "jetson-thor", "87")
    assert ran.code == 0, ran.err
    rows = [[cell for cell in line.split("  ") if cell.strip()] for line in ran.out.partition("\n\n")[0].splitlines()]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert [row[0] for row in cells if len(row) == 10] == [
        "name",
        "jetson-orin",
        "jetson-orin-nx",
        "jetson-orin-nano",
        "jetson-thor",
    ]
    assert cells[2] == ["6.1*, 6.2, 6.2.1", "10.3", "20", "strong, by flag", "yes", "no"]
    assert cells[1][3:] == ["6.0", "8.6", "17", "weak", "no", "no", "on the device; sm_86 is audited here"]
    assert "build --jetpack VERSION" in ran.out
    desktop = twins("targets", "l4").out
    assert "compiled here, by TensorRT-RTX" in desktop and "--jetpack" not in desktop


def test_what_is_compiled_here_follows_compiler_and_gpu(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    install_compilers(monkeypatch, ())
    assert {each["compiler"] for each in twins("targets", "--json").json["targets"]} == {None}
    assert "on the device\n" in twins("targets", "h100").out  # and nothing is audited
    install(monkeypatch, "10.3.0")
    assert twins("targets", "jetson-orin", "--json").json["targets"][0]["compiler"] is None  # without its GPU
    install_driver(monkeypatch, Device("Orin", "sm_87"))
    assert twins("targets", "jetson-orin", "--json").json["targets"][0]["compiler"] == "tensorrt"
    assert "compiled here, by TensorRT\n" in twins("targets", "jetson-orin-nano").out


@pytest.mark.parametrize(
    ("name", "said"),
    [("jetson-orn", "did you mean jetson-orin"), ("98", "no device on record is of sm_98"), ("sm", "not a GPU target")],
)
def test_a_name_that_no_device_has(twins: Twins, name: str, said: str) -> None:
    ran = twins("targets", name)
    assert ran.code == 2 and said in ran.err and "\n  fix: " in ran.err

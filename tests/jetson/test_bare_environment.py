"""The environment of requirements/jetson.txt is bare, and the simulated device is in it."""

from __future__ import annotations

import re

import pytest
from environment import ABSENT, JETPACKS, REQUIREMENTS, find_python, oldest
from simulation import BarePython, MakeJetson, SimulatedJetson

from twins_trt.builders.engine.devices import find_device

PYTHONS = sorted({jetpack.python for jetpack in JETPACKS.values()})


@pytest.fixture(params=JETPACKS)
def device(request: pytest.FixtureRequest, jetson: MakeJetson) -> SimulatedJetson:
    return jetson(request.param)


@pytest.mark.parametrize("package", ABSENT)
def test_what_a_jetson_lacks_cannot_be_imported(jetson: MakeJetson, package: str) -> None:
    for version in ("8.6.1", "11.4.0.106"):
        done = jetson(version).run("python", "-c", f"import {package}")
        assert (done.code, f"No module named '{package}'" in done.err) == (1, True), done.err


@pytest.mark.parametrize("version", PYTHONS)
def test_it_is_the_python_of_its_jetpack(bare_python: BarePython, version: str) -> None:
    if find_python(version) is None:
        pytest.skip(f"no Python {version} on this machine: the tests' own stands for it")
    assert bare_python(version).resolve().name == f"python{version}"


def test_jetpack_6_has_the_oldest_packages_that_are_allowed(jetson: MakeJetson) -> None:
    if find_python("3.10") is None:
        pytest.skip("no Python 3.10 on this machine: newer ones have no wheels of these versions")
    pinned = dict(line.removesuffix(".*").split("==") for line in oldest(REQUIREMENTS.read_text()))
    assert set(pinned) == {"numpy", "pillow"}
    done = jetson("8.6.1").run("python", "-c", "import numpy, PIL; print(numpy.__version__, PIL.__version__)")
    for found, wanted in zip(done.out.split(), pinned.values(), strict=True):
        assert found.startswith(f"{wanted}."), done.out


def test_the_device_is_the_simulated_one(device: SimulatedJetson) -> None:
    code = (
        "import tensorrt, cuda.bindings.runtime as cuda, twins_trt.device as d;"
        "print(tensorrt.__version__, d.current_device(), *cuda.cudaGetDeviceCount())"
    )
    done = device.run("python", "-c", code)
    assert done.code == 0, done.err
    assert done.out.startswith(f"{device.tensorrt} Device(name=")
    assert f"target='{JETPACKS[device.tensorrt].target}', integrated=True)" in done.out
    assert done.out.split()[-1] == "1"


def test_the_package_is_installed_and_not_the_checkout(device: SimulatedJetson) -> None:
    done = device.run("python", "-c", "import twins_trt.builders, sys; print(twins_trt.builders.__file__)")
    assert done.out.startswith(str(device.python.parent.parent / "lib")), done.out + done.err


def test_doctor_finds_tensorrt_and_the_gpu(device: SimulatedJetson) -> None:
    done = device.twins("doctor", "--json")
    facts = done.json["facts"]
    packages = {each["module"]: each for each in facts["packages"]}
    assert {packages[name]["state"] for name in ("tensorrt", "numpy", "PIL", "cuda.bindings.driver")} == {"ok"}
    assert {packages[name]["state"] for name in ABSENT if name in packages} == {"missing"}
    assert packages["tensorrt"]["version"] == device.tensorrt
    assert facts["gpu"]["target"] == device.jetpack.target
    assert facts["driver"]["cuda"] == device.jetpack.cuda
    assert done.json["findings"] == []


def test_the_jetpacks_are_those_on_record_and_in_the_documentation() -> None:
    text = (REQUIREMENTS.parents[1] / "docs" / "install.md").read_text()
    rows = [[cell.strip() for cell in row.split("|")] for row in re.findall(r"^\| [67].*\|$", text, re.MULTILINE)]
    documented = {row[5]: (row[2], row[3]) for row in rows}
    for version, jetpack in JETPACKS.items():
        release = ".".join(version.split(".")[:2])
        assert find_device(jetpack.name).jetpack(jetpack.release).tensorrt == release
        gpus, python = documented[release]
        assert f"{jetpack.gpu}, {jetpack.target}" in gpus
        assert python in (jetpack.python, "")  # not on record for the newest, which are taken to be as 7.1

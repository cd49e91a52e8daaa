"""Each cause of a broken install is found in facts made up for it, and each fact in a file tree made up for it."""

from __future__ import annotations

import ctypes
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from twins_trt.cli import COMMANDS
from twins_trt.device import Device
from twins_trt.diagnosis import Facts, commands, diagnose, facts, lacking
from twins_trt.diagnosis.facts import Driver, Jetson, Place, Python, System, find_jetson, find_system
from twins_trt.diagnosis.needs import ENGINES, NEEDS
from twins_trt.diagnosis.packages import PACKAGES, Package, PackageState, check_packages, providing
from twins_trt.runtime.engines import KINDS

PACKAGE = {package.module: package for package in PACKAGES}
ADA = Device("NVIDIA RTX 4090", "sm_89")
ORIN = Device("Orin", "sm_87", integrated=True)
RTX = PackageState(PACKAGE["tensorrt_rtx"], "ok", "1.7.1.116", targets=("sm_86", "sm_89"))
TRT = PackageState(PACKAGE["tensorrt"], "ok", "10.13.3", "/venv/lib/python3.12/site-packages/tensorrt/__init__.py")
JETPACK_TRT = replace(TRT, version="10.3.0", location="/usr/lib/python3.10/dist-packages/tensorrt/__init__.py")
BINDING = PackageState(PACKAGE["cuda.bindings.driver"], "ok", "13.5.0")
VENV = Python("3.12.3", "/venv/bin/python", "Linux x86_64", isolated_venv=True, cpus=8)
BOARD = Jetson("NVIDIA Jetson Orin NX", "36.4.3", "6")

DESKTOP = Facts((RTX, TRT, BINDING), replace(VENV, isolated_venv=False), Driver("13.0"), ADA, None, System(), ())
JETSON = Facts(
    (JETPACK_TRT, replace(BINDING, version="12.6.2")), VENV, Driver("12.6"), ORIN, BOARD, System(nvinfer="10.3.0"), ()
)


def with_package(base: Facts, state: PackageState) -> Facts:
    others = [other for other in base.packages if other.package != state.package]
    return replace(base, packages=(*others, state))


NO_TRT = PackageState(PACKAGE["tensorrt"], "missing")
NO_LIBRARY = replace(TRT, state="broken", error="ImportError: libnvinfer.so.10: cannot open shared object file")
SYSTEM_TRT = System(system_tensorrt=("/usr/lib/python3.10/dist-packages/tensorrt",))

CASES: dict[str, tuple[Facts, str, str]] = {
    "jetpack-old": (replace(JETSON, jetson=replace(BOARD, jetpack="5")), "JetPack 5 is too old", "flash JetPack 6"),
    "driver-missing": (
        replace(DESKTOP, driver=Driver(None), gpu=None, system=System(gpu_on_bus=True), packages=()),
        "an NVIDIA GPU, but no driver",
        "sudo ubuntu-drivers install",
    ),
    "driver-half": (
        replace(DESKTOP, driver=Driver(None), gpu=None, system=System(kernel_driver="580.95.05"), packages=()),
        "the kernel has NVIDIA's driver 580.95.05",
        "sudo apt install libnvidia-compute-580",
    ),
    "driver-not-in-container": (
        replace(DESKTOP, driver=Driver(None), gpu=None, system=System(in_container=True, gpu_on_bus=True), packages=()),
        "not in this container",
        "docker run --gpus all",
    ),
    "driver-mismatch": (replace(DESKTOP, driver=Driver("13.0", 803), gpu=None), "different versions", "sudo reboot"),
    "driver-compat": (
        replace(DESKTOP, driver=Driver("13.0", 804), gpu=None),
        "compatibility library",
        "LD_LIBRARY_PATH",
    ),
    "driver-broken": (replace(DESKTOP, driver=Driver("13.0", 999), gpu=None), "cuInit returns 999", "sudo reboot"),
    "gpu-missing": (replace(DESKTOP, driver=Driver("13.0", 100), gpu=None), "no GPU that it serves", "nvidia-smi"),
    "gpu-hidden": (
        replace(DESKTOP, driver=Driver("13.0", 100), gpu=None, system=System(visible_devices="7")),
        "CUDA_VISIBLE_DEVICES=7 hides",
        "unset CUDA_VISIBLE_DEVICES",
    ),
    "device-permission": (
        replace(JETSON, driver=Driver("12.6", 100), gpu=None, system=System(blocked=("/dev/nvhost-gpu", "/dev/nvmap"))),
        "may not use /dev/nvhost-gpu, /dev/nvmap",
        'sudo usermod -aG video,render "$USER"',
    ),
    "driver-old": (
        replace(DESKTOP, driver=Driver("11.4"), packages=(TRT,)),
        "the driver serves CUDA 11.4",
        "update the driver to 525 or later",
    ),
    "binding-cuda": (
        with_package(JETSON, BINDING),
        "cuda-bindings 13.5.0 is for CUDA 13, the driver serves 12.6",
        'pip install "cuda-bindings>=12,<13"',
    ),
    "rtx-cuda": (
        replace(DESKTOP, driver=Driver("12.8"), packages=(RTX,)),
        "tensorrt-rtx-cu13 is for CUDA 13, the driver serves 12.8",
        "update the driver to 580 or later",
    ),
    "venv-isolated": (
        replace(with_package(JETSON, NO_TRT), system=SYSTEM_TRT),
        "hidden from this virtual environment",
        "/usr/bin/python3 -m venv --system-site-packages",
    ),
    "tensorrt-from-pip": (with_package(JETSON, TRT), "installed by pip", "xargs pip uninstall -y"),
    "tensorrt-missing": (with_package(JETSON, NO_TRT), "come with JetPack", "sudo apt install python3-libnvinfer"),
    "tensorrt-library": (
        replace(with_package(DESKTOP, NO_LIBRARY), system=System(nvinfer="8.6.2")),
        "want the library of TensorRT 10; the system's is 8.6.2",
        "pip install --force-reinstall tensorrt",
    ),
    "rtx-on-jetson": (with_package(JETSON, RTX), "not for Jetson", 'flavour="tensorrt"'),
    "rtx-without-driver": (
        replace(DESKTOP, driver=Driver(None), gpu=None),
        "builds engines here but cannot run them",
        "bundles run on the CPU",
    ),
    "rtx-target": (
        replace(DESKTOP, gpu=Device("H100", "sm_90")),
        r"does not build for this GPU (sm_90), only for sm_86, sm_89",
        'flavour="tensorrt"',
    ),
    "read-only": (
        replace(DESKTOP, places=(Place("weights", "/cache", 10**12, False),)),
        "/cache cannot be written (weights)",
        "export TWINS_TRT_CACHE=FOLDER",
    ),
    "disk-low": (
        replace(DESKTOP, places=(Place("temporary files", "/tmp", 10**9, True),)),
        "only 1.0 GB free in /tmp",
        "export TMPDIR=FOLDER",
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_cause_is_found_alone_and_with_its_mend(kind: str) -> None:
    broken, cause, mend = CASES[kind]
    (finding,) = diagnose(broken)
    assert finding.kind == kind
    assert cause in finding.cause and mend in finding.mend


def test_nothing_is_wrong_with_what_works() -> None:
    assert diagnose(DESKTOP) == diagnose(JETSON) == ()
    assert diagnose(replace(DESKTOP, driver=Driver(None), gpu=None, packages=(TRT, BINDING))) == ()  # no GPU at all
    assert diagnose(Facts()) == ()  # nothing could be told


def test_every_cause_has_a_case() -> None:
    source = Path(diagnose.__code__.co_filename).read_text()
    assert set(re.findall(r'Finding\(\s*"([\w-]+)"', source)) == set(CASES)


@pytest.mark.parametrize(
    ("base", "wanted", "mend"),
    [
        (
            replace(JETSON, driver=Driver(None), gpu=None),
            "driver-missing",
            "sudo apt install --reinstall nvidia-l4t-cuda",
        ),
        (
            replace(JETSON, driver=Driver(None), gpu=None, system=System(in_container=True)),
            "driver-not-in-container",
            "docker run --runtime nvidia",
        ),
        (
            replace(JETSON, system=System(blocked=("/dev/nvmap",), in_container=True)),
            "device-permission",
            "docker run --group-add video",
        ),
        (
            with_package(JETSON, replace(NO_LIBRARY, location=JETPACK_TRT.location)),
            "tensorrt-library",
            "sudo apt install",
        ),
    ],
)
def test_the_mend_is_that_of_the_machine(base: Facts, wanted: str, mend: str) -> None:
    assert {finding.kind: finding.mend for finding in diagnose(base)}[wanted].startswith(mend)


def test_what_commands_need() -> None:
    assert set(NEEDS) <= set(COMMANDS)
    assert set(KINDS) <= set(ENGINES)  # whoever adds an engine says what it takes
    everything = {package.module for package in PACKAGES}
    assert all(lacking(command, everything) == [] for command in NEEDS)
    assert lacking("build", everything - {"tensorrt_rtx"}) == ["tensorrt-rtx-cu13 or tensorrt + a GPU"]
    assert lacking("build", everything - {"tensorrt_rtx"} | {"gpu"}) == []
    assert lacking("compile", {"numpy", "tensorrt", "gpu"}) == lacking("compile", {"numpy", "tensorrt_rtx"}) == []
    assert lacking("compile", {"numpy", "tensorrt"}) == ["tensorrt + a GPU or tensorrt-rtx-cu13"]
    assert lacking("convert", {"numpy"}) == ["torch"]
    here = tuple(PackageState(package, "ok") for package in PACKAGES if package.module != "torch")
    assert commands(Facts(here))["train"] == ["torch"]
    assert commands(Facts(here))["gate"] == []  # a pack holds what torch would have to compute


def jetson(root: Path) -> Path:
    (root / "etc").mkdir()
    (root / "etc" / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
    (root / "proc" / "device-tree").mkdir(parents=True)
    (root / "proc" / "device-tree" / "model").write_bytes(b"NVIDIA Jetson Orin NX\0")
    return root


def test_a_jetson_is_recognized(tmp_path: Path) -> None:
    assert find_jetson(tmp_path) is None
    assert find_jetson(jetson(tmp_path)) == BOARD


def test_a_file_system_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert find_system(tmp_path) == System(visible_devices="0")
    files = {
        ".dockerenv": "",
        "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
        "sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n",
        "sys/bus/pci/devices/0000:01:00.1/vendor": "0x10de\n",  # its sound device
        "sys/bus/pci/devices/0000:01:00.1/class": "0x040300\n",
        "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 2025\n",
        "usr/lib/aarch64-linux-gnu/libnvinfer.so.8.6.2": "",
        "usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0": "",
        "usr/lib/aarch64-linux-gnu/libnvinfer.so.10": "",
        "usr/lib/python3.10/dist-packages/tensorrt/__init__.py": "",
        "dev/nvhost-gpu": "",
        "dev/nvmap": "",
        "dev/null": "",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    blocked = tmp_path / "dev" / "nvmap"
    monkeypatch.setattr(facts.os, "access", lambda path, mode: path != blocked)  # root may use everything
    assert find_system(tmp_path) == System(
        in_container=True,
        gpu_on_bus=True,
        kernel_driver="580.95.05",
        blocked=(str(blocked),),
        nvinfer="10.3.0",
        system_tensorrt=(str(tmp_path / "usr/lib/python3.10/dist-packages/tensorrt"),),
        visible_devices="0",
    )
    (tmp_path / "sys/bus/pci/devices/0000:01:00.0/vendor").write_text("0x8086\n")
    assert not find_system(tmp_path).gpu_on_bus


@pytest.mark.parametrize(("version", "asks", "cuda"), [(13000, 0, "13.0"), (12060, 0, "12.6"), (12060, 3, None)])
def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch, version: int, asks: int, cuda: str | None) -> None:
    def get_version(pointer: Any) -> int:
        pointer._obj.value = version
        return asks

    library = SimpleNamespace(cuDriverGetVersion=get_version, cuInit=lambda flags: 803)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert facts.find_driver() == (Driver(None) if cuda is None else Driver(cuda, 803))


def test_without_a_driver_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert facts.find_driver() == Driver(None)


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, content: str) -> PackageState:
    """The state of a package that is one file with this content."""
    (folder / f"{name}.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    (state,) = check_packages([Package(name, name, None, "nothing")])
    return state


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("raise OSError('libnvinfer.so.10: cannot open')", "OSError: libnvinfer.so.10: cannot open"),
        ("import os; os._exit(7)", "its process ended with 7"),
    ],
)
def test_a_package_that_does_not_load_is_broken_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, error: str
) -> None:
    state = stand_in(monkeypatch, tmp_path, "sad_package", content)
    assert (state.state, state.error, state.location) == ("broken", error, str(tmp_path / "sad_package.py"))


def test_the_compilers_targets_are_read_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (
        "import enum\n__version__ = '9.9'\nComputeCapability = enum.Enum('ComputeCapability', 'SM86 SM120 CURRENT')"
    )
    state = stand_in(monkeypatch, tmp_path, "fake_rtx", content)
    assert (state.state, state.version, state.targets) == ("ok", "9.9", ("sm_86", "sm_120"))


def test_a_package_is_known_by_what_is_imported() -> None:
    assert providing("cuda.bindings.runtime") is PACKAGE["cuda.bindings.driver"]
    assert providing("numpy.linalg") is PACKAGE["numpy"]
    assert providing("json") is None

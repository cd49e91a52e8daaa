"""The facts about this machine, gathered in one value.

Gathering never raises: a fact that cannot be found out is None, and `unknown` says why.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twins_trt.device import Device, cuda_version, current_device, kernel_driver, load_driver
from twins_trt.diagnosis.packages import PackageState, check_packages, one_line

_L4T_TO_JETPACK = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}
_NVIDIA = "0x10de"  # PCI vendor
_DISPLAY = "0x03"  # PCI base class of GPUs
_GPU_FILES = ("nvidia[0-9]*", "nvidiactl", "nvidia-uvm", "nvmap", "nvhost-gpu", "nvhost-ctrl*", "nvgpu/igpu0/*")


@dataclass(frozen=True)
class Python:
    """The interpreter. isolated_venv: it is a virtual environment that does not see the system's packages."""

    version: str
    executable: str
    platform: str
    isolated_venv: bool
    cpus: int | None


@dataclass(frozen=True)
class Driver:
    """libcuda. cuda: the newest CUDA it supports (`13.0`), None if it does not load. status: the result of cuInit."""

    cuda: str | None
    status: int = 0


@dataclass(frozen=True)
class Jetson:
    """The board, its L4T release (`36.4.3`) and the JetPack that this belongs to (`6`), each None if unknown."""

    model: str | None
    l4t: str | None
    jetpack: str | None


@dataclass(frozen=True)
class System:
    """What the file system and the environment say.

    gpu_on_bus: an NVIDIA GPU is plugged in. kernel_driver: version of NVIDIA's kernel module. blocked: device files of
    the GPU that this user may not use. nvinfer: version of the system's TensorRT library. system_tensorrt: folders of
    the system's Python bindings. visible_devices: CUDA_VISIBLE_DEVICES.
    """

    in_container: bool = False
    gpu_on_bus: bool = False
    kernel_driver: str | None = None
    blocked: tuple[str, ...] = ()
    nvinfer: str | None = None
    system_tensorrt: tuple[str, ...] = ()
    visible_devices: str | None = None


@dataclass(frozen=True)
class Place:
    """A folder that commands write to. use: what for. free: bytes."""

    use: str
    path: str
    free: int
    writable: bool


@dataclass(frozen=True)
class Facts:
    """All facts. unknown: for a field that could not be found out, the reason."""

    packages: tuple[PackageState, ...] = ()
    python: Python | None = None
    driver: Driver | None = None
    gpu: Device | None = None
    jetson: Jetson | None = None
    system: System | None = None
    places: tuple[Place, ...] | None = None
    memory_mib: int | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)

    def package(self, module: str) -> PackageState | None:
        """The package that is imported as `module`, or None if it was not checked."""
        return next((state for state in self.packages if state.package.module == module), None)

    def loads(self, module: str) -> bool:
        """Whether `module` is installed and can be imported."""
        state = self.package(module)
        return state is not None and state.state == "ok"


def gather(*, root: Path = Path("/")) -> Facts:
    """Runs all `CHECKS`. root: of the file system that holds /etc, /proc, /sys, /dev and /usr."""
    known: dict[str, Any] = {}
    unknown: dict[str, str] = {}
    for name, check in CHECKS.items():
        try:
            known[name] = check(root)
        except Exception as error:
            unknown[name] = one_line(error)
    return Facts(**known, unknown=unknown)


def find_python() -> Python:
    """This interpreter."""
    venv = sys.prefix != sys.base_prefix
    config = Path(sys.prefix) / "pyvenv.cfg"
    shares = config.is_file() and bool(
        re.search(r"include-system-site-packages\s*=\s*true", config.read_text(errors="replace"), re.IGNORECASE)
    )
    return Python(
        platform.python_version(),
        sys.executable,
        f"{platform.system()} {platform.machine()}",
        venv and not shares,
        os.cpu_count(),
    )


def find_driver() -> Driver:
    """Asks libcuda."""
    library, cuda = load_driver(), cuda_version()
    return Driver(cuda, int(library.cuInit(0))) if library is not None and cuda else Driver(None)


def find_jetson(root: Path) -> Jetson | None:
    """The board; None on other machines."""
    release = root / "etc" / "nv_tegra_release"
    model = root / "proc" / "device-tree" / "model"
    board = model.read_bytes().decode(errors="replace").strip("\0 \n") if model.is_file() else None
    if not release.is_file():
        return Jetson(board, None, None) if board and "Jetson" in board else None
    found = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", release.read_text(errors="replace"))
    if not found:
        return Jetson(board, None, None)
    return Jetson(board, f"{found[1]}.{found[2]}", _L4T_TO_JETPACK.get(int(found[1])))


def find_system(root: Path) -> System:
    """Container, PCI bus, kernel module, device files, TensorRT's library and bindings."""
    devices = sorted({path for pattern in _GPU_FILES for path in (root / "dev").glob(pattern)})
    libraries = [path.name.partition(".so.")[2] for path in (root / "usr" / "lib").glob("*/libnvinfer.so.*.*")]
    return System(
        in_container=(root / ".dockerenv").exists() or (root / "run" / ".containerenv").exists(),
        gpu_on_bus=any(_is_nvidia_gpu(path) for path in (root / "sys" / "bus" / "pci" / "devices").glob("*")),
        kernel_driver=kernel_driver(root) or None,
        blocked=tuple(str(path) for path in devices if not os.access(path, os.R_OK | os.W_OK)),
        nvinfer=max(libraries, default=None, key=version_key),
        system_tensorrt=tuple(sorted(map(str, (root / "usr" / "lib").glob("python3*/dist-packages/tensorrt")))),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def find_places() -> tuple[Place, ...]:
    """The folders that commands write to, with the space that is left."""
    from twins_trt.models.fetch import default_cache_dir

    places = []
    for use, path in (
        ("working folder", Path.cwd()),
        ("temporary files", Path(tempfile.gettempdir())),
        ("weights", default_cache_dir()),
    ):
        nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        places.append(Place(use, str(path), shutil.disk_usage(nearest).free, os.access(nearest, os.W_OK)))
    return tuple(places)


def find_memory() -> int | None:
    """The memory of the host in MiB; None where the system does not say."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20 if hasattr(os, "sysconf") else None


def version_key(version: str) -> tuple[int, ...]:
    """A key that sorts versions by their numbers: `10.3.0` before `10.13.3`."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _is_nvidia_gpu(device: Path) -> bool:
    try:
        vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == _NVIDIA and kind.startswith(_DISPLAY)


CHECKS: dict[str, Callable[[Path], Any]] = {
    "packages": lambda root: check_packages(),
    "python": lambda root: find_python(),
    "driver": lambda root: find_driver(),
    "gpu": lambda root: current_device(),
    "jetson": find_jetson,
    "system": find_system,
    "places": lambda root: find_places(),
    "memory_mib": lambda root: find_memory(),
}
"""How each field of `Facts` is found out."""

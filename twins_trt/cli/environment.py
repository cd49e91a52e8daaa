"""What this machine offers: Python, packages, compilers, GPU, Jetson, disk. Looking never fails: what cannot be told is
said to be unknown, with the reason."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LOW_DISK = 2_000_000_000  # bytes: a bundle of the largest model with two engines, twice (written, then renamed)
_IMPORT_S = 120.0  # torch on a Jetson's first import takes tens of seconds
_L4T_TO_JETPACK = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7"}


@dataclass(frozen=True)
class Package:
    """A package that something here needs. extra: of this package's extras, the one that brings it."""

    module: str
    distribution: str
    extra: str | None
    disables: str

    @property
    def install(self) -> str:
        if self.module == "tensorrt" and platform.machine() == "aarch64":  # pip's would shadow JetPack's
            return "sudo apt install python3-libnvinfer"
        return f"pip install {self.distribution}" if self.extra is None else f'pip install "twins-trt[{self.extra}]"'


PACKAGES = (
    Package("numpy", "numpy", None, "everything"),
    Package("PIL", "pillow", None, "reading and writing pictures"),
    Package("onnxruntime", "onnxruntime", "cpu", "predict and eval of bundles on the CPU"),
    Package("torch", "torch", "build", "export, build, convert, eval of models, inspect of checkpoints"),
    Package("onnx", "onnx", "build", "export, build"),
    Package("onnx_graphsurgeon", "onnx-graphsurgeon", "build", "export, build"),
    Package("cv2", "opencv-python-headless", "build", "eval of models with a test scale (ade20k)"),
    Package("tensorrt_rtx", "tensorrt-rtx-cu13", "rtx", "build of engines without a GPU"),
    Package("tensorrt", "tensorrt", "tensorrt", "build of engines for the GPU of this machine"),
    Package("safetensors", "safetensors", None, "checkpoints in .safetensors files"),
)

# Of every group one package is needed.
NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "predict": (("numpy",), ("PIL",), ("onnxruntime",)),
    "eval": (("numpy",), ("PIL",), ("onnxruntime", "torch")),
    "convert": (("numpy",), ("torch",)),
    "export": (("numpy",), ("torch",), ("onnx",), ("onnx_graphsurgeon",)),
    "calibrate": (("numpy",), ("PIL",), ("onnx",), ("onnxruntime",)),
    "build": (("numpy",), ("torch",), ("onnx",), ("onnx_graphsurgeon",), ("tensorrt_rtx", "tensorrt")),
    "gate": (("numpy",), ("PIL",), ("torch",), ("onnxruntime",)),
}


def look(*, root: Path = Path("/")) -> dict[str, Any]:
    """Everything at once, as plain values. root: of the file system, for what is read from /etc, /proc and /usr."""
    packages = check_packages()
    gpu = _safely(find_gpu)
    jetson = _safely(lambda: find_jetson(root))
    environment = {
        "python": _safely(_python),
        "packages": packages,
        "gpu": gpu,
        "jetson": jetson,
        "disk": _safely(_disk),
        "memory_mib": _safely(_memory),
    }
    states = {package["module"]: package["state"] for package in packages}
    has_gpu = isinstance(gpu, dict) and gpu.get("name") is not None
    environment["commands"] = {command: lacking(command, states, has_gpu=has_gpu) for command in NEEDS}
    environment["advice"] = _safely(lambda: advise(environment, root))
    return environment


def lacking(command: str, states: Mapping[str, str], *, has_gpu: bool) -> list[str]:
    """What `command` needs and does not find, in words; empty where it is ready."""
    usable = {module for module, state in states.items() if state == "ok"}
    names = {package.module: package.distribution for package in PACKAGES}
    absent = [" or ".join(names[m] for m in group) for group in NEEDS[command] if not usable.intersection(group)]
    if command == "build" and not absent and "tensorrt_rtx" not in usable and not has_gpu:
        absent.append("a GPU for tensorrt, or tensorrt-rtx-cu13")
    return absent


def check_packages() -> list[dict[str, Any]]:
    """Of every package: state (`ok`, `missing`, `broken`), version, and what its absence disables.

    Installed ones are imported in processes of their own: a broken shared library may end its process.
    """
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(_check_package, PACKAGES))


def find_gpu() -> dict[str, Any]:
    """The CUDA driver's version and the first GPU; None for what is not there."""
    from twins_trt.builders.engine import current_device

    device = current_device()
    return {
        "driver": _driver_version(),
        "name": None if device is None else device.name,
        "target": None if device is None else device.target,
    }


def find_jetson(root: Path = Path("/")) -> dict[str, Any] | None:
    """Model, L4T release and JetPack of a Jetson; None elsewhere."""
    release = root / "etc" / "nv_tegra_release"
    model = root / "proc" / "device-tree" / "model"
    board = model.read_bytes().decode(errors="replace").strip("\0 \n") if model.is_file() else None
    if not release.is_file():
        return {"model": board, "l4t": None, "jetpack": None} if board and "Jetson" in board else None
    found = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", release.read_text(errors="replace"))
    return {
        "model": board,
        "l4t": f"{found[1]}.{found[2]}" if found else None,
        "jetpack": _L4T_TO_JETPACK.get(int(found[1])) if found else None,
    }


def advise(environment: Mapping[str, Any], root: Path) -> list[str]:
    """What is likely to go wrong here, each with its mend."""
    advice = []
    states = {package["module"]: package["state"] for package in environment["packages"]}
    python = environment["python"]
    system = sorted((root / "usr" / "lib").glob("python3*/dist-packages/tensorrt"))
    if states.get("tensorrt") != "ok" and system and python.get("isolated_venv"):
        advice.append(
            "the system's tensorrt is hidden from this virtual environment: make it anew with "
            "python3 -m venv --system-site-packages"
        )
    elif environment["jetson"] and states.get("tensorrt") == "missing":
        advice.append("TensorRT comes with JetPack, never from pip: sudo apt install python3-libnvinfer")
    for place in environment["disk"] if isinstance(environment["disk"], list) else []:
        if place["free"] < LOW_DISK:
            advice.append(f"only {place['free'] / 1e9:.1f} GB free in {place['path']} ({place['use']})")
    gpu = environment["gpu"]
    if gpu.get("driver") and not gpu.get("name"):
        advice.append("a CUDA driver is there but no GPU that it serves: see nvidia-smi, CUDA_VISIBLE_DEVICES")
    targets = next((p.get("targets") for p in environment["packages"] if p["module"] == "tensorrt_rtx"), None)
    if targets and gpu.get("target") and gpu["target"] not in targets:
        advice.append(f"TensorRT-RTX does not build for this GPU ({gpu['target']}), only for {', '.join(targets)}")
    return advice


def _check_package(package: Package) -> dict[str, Any]:
    found: dict[str, Any] = {
        "module": package.module,
        "distribution": package.distribution,
        "state": "missing",
        "version": None,
        "disables": package.disables,
        "install": package.install,
    }
    try:
        if find_spec(package.module) is None:
            return found
        found["version"] = _installed_version(package.distribution)
        return found | _try_import(package.module)
    except Exception as error:  # a finder of someone else's may raise anything
        return found | {"state": "broken", "error": _one_line(error)}


def _try_import(module: str) -> dict[str, Any]:
    if not sys.executable:
        return {"state": "ok"}  # embedded: no second interpreter to try it in
    script = (
        f"import {module} as m\nprint(getattr(m, '__version__', ''))\n"
        "print(*getattr(getattr(m, 'ComputeCapability', None), '__members__', ()))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, errors="replace", timeout=_IMPORT_S
        )
    except subprocess.TimeoutExpired:
        return {"state": "broken", "error": f"importing it takes more than {_IMPORT_S:.0f} s"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return {"state": "broken", "error": lines[-1] if lines else f"its process ended with {done.returncode}"}
    version, _, rest = done.stdout.strip().partition("\n")
    result: dict[str, Any] = {"state": "ok"} | ({"version": version} if version else {})
    if targets := [f"sm_{found[1]}" for name in rest.split() if (found := re.fullmatch(r"SM(\d+)", name))]:
        result["targets"] = targets
    return result


def _installed_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None  # a system package, or one under another name


def _driver_version() -> str | None:
    """The newest CUDA that the driver serves, as in `13.0`."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _python() -> dict[str, Any]:
    venv = sys.prefix != sys.base_prefix
    settings = Path(sys.prefix) / "pyvenv.cfg"
    shares = settings.is_file() and bool(
        re.search(r"include-system-site-packages\s*=\s*true", settings.read_text(errors="replace"), re.IGNORECASE)
    )
    return {
        "version": platform.python_version(),
        "executable": sys.executable,
        "platform": f"{platform.system()} {platform.machine()}",
        "isolated_venv": venv and not shares,
        "cpus": os.cpu_count(),
    }


def _disk() -> list[dict[str, Any]]:
    from twins_trt.models.fetch import default_cache_dir

    places = (
        ("working folder", Path.cwd()),
        ("temporary files", Path(tempfile.gettempdir())),
        ("weights", default_cache_dir()),
    )
    found = []
    for use, path in places:
        there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        found.append({"use": use, "path": str(path), "free": shutil.disk_usage(there).free})
    return found


def _memory() -> int | None:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20 if hasattr(os, "sysconf") else None


def _safely(check: Callable[[], Any]) -> Any:
    try:
        return check()
    except Exception as error:
        return {"unknown": _one_line(error)}


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())

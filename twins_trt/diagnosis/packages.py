"""The packages that commands need: which extra brings each, and whether it is installed and loads."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from typing import Literal

_IMPORT_S = 120.0  # torch on a Jetson's first import takes tens of seconds

State = Literal["ok", "missing", "broken"]


@dataclass(frozen=True)
class Package:
    """A package that some commands need.

    module: what is imported. distribution: its name on PyPI. extra: the extra of twins-trt that installs it, None if no
    extra does. disables: what does not work without it.
    """

    module: str
    distribution: str
    extra: str | None
    disables: str

    @property
    def install(self) -> str:
        """The command that installs it."""
        if self.module == "tensorrt" and platform.machine() == "aarch64":  # pip's would shadow JetPack's
            return "sudo apt install python3-libnvinfer"
        return f"pip install {self.distribution}" if self.extra is None else f'pip install "twins-trt[{self.extra}]"'


PACKAGES = (
    Package("numpy", "numpy", None, "everything"),
    Package("PIL", "pillow", None, "reading and writing pictures"),
    Package("onnxruntime", "onnxruntime", "cpu", "predict and eval of bundles on the CPU"),
    Package("openvino", "openvino", "openvino", "the engine openvino: bundles on the CPU"),
    Package("torch", "torch", "build", "export, build, convert, eval of models, inspect of checkpoints"),
    Package("onnx", "onnx", "build", "export, build"),
    Package("onnx_graphsurgeon", "onnx-graphsurgeon", "build", "export, build"),
    Package("cv2", "opencv-python-headless", "build", "eval of models with a test scale (ade20k)"),
    Package("tensorrt_rtx", "tensorrt-rtx-cu13", "rtx", "build of engines without a GPU"),
    Package("tensorrt", "tensorrt", "tensorrt", "engines of TensorRT for the GPU of this machine"),
    Package("cuda.bindings.driver", "cuda-bindings", "cuda", "engines on a GPU"),
    Package("pycuda", "pycuda", "pycuda", "engines on a GPU, where cuda-bindings is missing"),
    Package("triton", "triton", "triton", "attention kernels of PyTorch models on a GPU"),
    Package("safetensors", "safetensors", None, "checkpoints in .safetensors files"),
)


@dataclass(frozen=True)
class PackageState:
    """Whether a package is installed and loads.

    location: the file it is imported from. error: why it does not load. targets: GPUs that a compiler builds for
    (`sm_86`), empty for other packages.
    """

    package: Package
    state: State
    version: str | None = None
    location: str | None = None
    error: str | None = None
    targets: tuple[str, ...] = ()


def providing(module: str) -> Package | None:
    """The one of `PACKAGES` that `module` belongs to, or None."""
    top = module.partition(".")[0]
    return next((package for package in PACKAGES if package.module.partition(".")[0] == top), None)


def check_packages(
    packages: Sequence[Package] = PACKAGES, *, load: Callable[[Package], PackageState] | None = None
) -> tuple[PackageState, ...]:
    """The state of each package. load: tries to import one that is installed, by default `import_in_process`."""
    load = load or import_in_process

    def check(package: Package) -> PackageState:
        try:
            spec = find_spec(package.module)
        except ModuleNotFoundError:  # find_spec("a.b") imports a
            spec = None
        except Exception as error:  # the finders of other packages may raise anything
            return PackageState(package, "broken", error=one_line(error))
        if spec is None:
            return PackageState(package, "missing")
        state = load(package)
        return replace(state, version=state.version or _installed_version(package.distribution), location=spec.origin)

    with ThreadPoolExecutor(4) as pool:
        return tuple(pool.map(check, packages))


def import_in_process(package: Package) -> PackageState:
    """Imports a package in a process of its own, which a broken shared library may end."""
    if not sys.executable:
        return PackageState(package, "ok")  # Python is embedded: there is no interpreter to run
    script = (
        f"import importlib\nm = importlib.import_module({package.module!r})\nprint(getattr(m, '__version__', ''))\n"
        "print(*getattr(getattr(m, 'ComputeCapability', None), '__members__', ()))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, errors="replace", timeout=_IMPORT_S
        )
    except subprocess.TimeoutExpired:
        return PackageState(package, "broken", error=f"importing it takes more than {_IMPORT_S:.0f} s")
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return PackageState(
            package, "broken", error=lines[-1] if lines else f"its process ended with {done.returncode}"
        )
    version, _, capabilities = done.stdout.strip().partition("\n")
    targets = tuple(f"sm_{found[1]}" for name in capabilities.split() if (found := re.fullmatch(r"SM(\d+)", name)))
    return PackageState(package, "ok", version=version or None, targets=targets)


def _installed_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None  # a system package, or one under another name


def one_line(error: BaseException) -> str:
    """An error with its class in one line, as in `OSError: no such file`."""
    return " ".join(f"{type(error).__name__}: {error}".split())

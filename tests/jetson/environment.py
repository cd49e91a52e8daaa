"""An environment as a Jetson has it: `requirements/jetson.txt` and this package, installed as docs/install.md says."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements" / "jetson.txt"
SOURCES = ("twins_trt", "kernels", "builders", "calib", "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
ABSENT = ("torch", "onnx", "onnxruntime", "onnx_graphsurgeon", "openvino", "cv2", "scipy", "triton", "tensorrt_rtx")


@dataclass(frozen=True)
class SimulatedJetPack:
    """A JetPack's release, its Python and its CUDA (docs/install.md), and the device it is simulated on."""

    release: str
    python: str
    cuda: str
    gpu: str
    name: str
    target: str


JETPACKS = {
    "8.6.1": SimulatedJetPack("6.0", "3.10", "12.2", "Orin", "jetson-orin", "sm_87"),
    "10.3.0": SimulatedJetPack("6.1", "3.10", "12.6", "Orin", "jetson-orin", "sm_87"),
    "10.13.3.9": SimulatedJetPack("7.0", "3.12", "13.0", "Thor", "jetson-thor", "sm_110"),
    "10.16.1.11": SimulatedJetPack("7.2", "3.12", "13.0", "Thor", "jetson-thor", "sm_110"),
    "11.4.0.106": SimulatedJetPack("7.2.2", "3.12", "13.0", "Thor", "jetson-thor", "sm_110"),
}
"""By the version of TensorRT."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps the other processes of a test run out, by this file."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def find_python(version: str) -> str | None:
    """An interpreter of this version: on PATH, or beside the one that runs the tests, as pyenv and uv keep them."""
    beside = sorted(Path(sys.base_prefix).parent.glob(f"*{version}*/bin/python{version}"))
    for candidate in (shutil.which(f"python{version}"), *beside):
        code = "import ensurepip, sys, venv; print(*sys.version_info[:2], sep='.')"
        if candidate is not None:
            done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
            if done.stdout.strip() == version:  # pyenv's stand-ins for versions that are not chosen fail
                return str(candidate)
    return None


def oldest(requirements: str) -> list[str]:
    """`numpy==1.23.*` for the line `numpy>=1.23`: the oldest versions that the file allows."""
    return [f"{name}=={version}.*" for name, version in re.findall(r"^(\w+)>=([\d.]+)$", requirements, re.MULTILINE)]


def make_environment(folder: Path, python: str, *, pinned: bool) -> Path:
    """Makes the environment, unless it is there already, and returns its interpreter.

    pinned: with the oldest versions that `requirements/jetson.txt` allows, where the index has them for this Python.
    """
    made = folder / "bin" / "python"
    with locked(folder.with_suffix(".lock")):
        if not (folder / "complete").is_file():
            subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
            install = [str(made), "-m", "pip", "install", "--quiet"]
            wanted = ["-r", str(REQUIREMENTS)]
            first = [*install, "--only-binary", ":all:", *wanted, *(oldest(REQUIREMENTS.read_text()) if pinned else ())]
            if subprocess.run(first, capture_output=True, check=False).returncode != 0:
                subprocess.run([*install, *wanted], check=True)
            source = folder / "source"  # a build leaves files behind in the folder that it is given
            source.mkdir()
            for name in SOURCES:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, source / name)
            subprocess.run([*install, "--no-deps", str(source)], check=True)
            (folder / "complete").touch()
    return made


def clean_environment() -> dict[str, str]:
    """This process's, without the variables that let Python find other packages."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}

"""Device memory through the CUDA package that is installed. Each package has a small module behind one protocol."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

from twins_trt.errors import MissingDependencyError, UsageError
from twins_trt.runtime.memory.protocol import HostBlock, Memory, OutOfMemory

__all__ = ["PACKAGES", "HostBlock", "Memory", "OutOfMemory", "installed", "open_memory"]

# Package -> (its module, our module for it), in the order in which `auto` prefers them: pycuda has no CUDA graphs.
PACKAGES = {
    "cuda-bindings": ("cuda.bindings.runtime", "twins_trt.runtime.memory.cuda_bindings"),
    "pycuda": ("pycuda.driver", "twins_trt.runtime.memory.pycuda"),
}


def installed(package: str) -> bool:
    """Whether one of `PACKAGES` is installed. Loads only its parent packages."""
    try:
        return find_spec(PACKAGES[package][0]) is not None
    except (ImportError, ValueError):  # its parent is absent, or blocked
        return False


def open_memory(package: str = "auto") -> Memory:
    """The memory of the first GPU. package: one of `PACKAGES`, or `auto` for the first that is installed.

    Raises UsageError for another name, MissingDependencyError if it is not installed, EngineError without a GPU.
    """
    if package not in ("auto", *PACKAGES):
        raise UsageError(f"there is no device memory {package!r}", f"use auto, {', '.join(PACKAGES)}")
    names = tuple(PACKAGES) if package == "auto" else (package,)
    for name in names:
        if installed(name):
            memory: Memory = importlib.import_module(PACKAGES[name][1]).open_memory()
            return memory
    raise MissingDependencyError(
        f"running on a GPU needs {' or '.join(names)}, which is not installed",
        f'pip install "twins-trt[{"pycuda" if package == "pycuda" else "cuda"}]"',
    )

"""Makes an interpreter that has this folder on PYTHONPATH one of a simulated Jetson.

`import tensorrt` and `import cuda.bindings.runtime` find the simulated packages, and libcuda is the simulated GPU's.
Nothing is imported before it is asked for. The environment says what is simulated:

SIMULATED_TENSORRT: its version. SIMULATED_GPU: `Orin` or `Thor`. SIMULATED_CUDA: what its driver serves.
SIMULATED_SERVER: the interpreter that computes.
SIMULATED_UNFUSED: how many attentions the compiler leaves unfused. SIMULATED_MS: milliseconds that one picture takes on
the GPU, as JSON of `fp16` and `int8`. SIMULATED_FAULT: a graph with INT8 weights computes other masks there.
SIMULATED_MODULES: a folder that gets a file of the modules that were imported, written at the end of the process.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.abc
import importlib.machinery
import json
import os
import sys
from types import ModuleType
from typing import Any

TESTS = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SIMULATED = ("tensorrt", "cuda.bindings.runtime")
LIBCUDA = "libcuda.so.1"


def simulated() -> Any:
    """The module with the simulated machine. What it imports is found beside it, and nothing else is."""
    if "simulated_jetson" not in sys.modules:
        sys.path.append(TESTS)
        try:
            import simulated_jetson
        finally:
            sys.path.remove(TESTS)
        return simulated_jetson
    return sys.modules["simulated_jetson"]


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the simulated packages."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, origin="simulated") if name in SIMULATED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        machine = simulated().machine()
        return machine.tensorrt if spec.name == "tensorrt" else machine.cuda  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing: the module is complete."""


def load_library(name: Any, *given: Any, **named: Any) -> Any:
    return simulated().machine().driver() if name == LIBCUDA else real_library(name, *given, **named)


def write_modules(folder: str) -> None:
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    with open(os.path.join(folder, f"{os.getpid()}.json"), "w") as file:
        json.dump({"argv": sys.argv, "modules": files}, file)


if "SIMULATED_TENSORRT" in os.environ:
    sys.meta_path.insert(0, Finder())
    real_library = ctypes.CDLL
    ctypes.CDLL = load_library  # type: ignore[assignment, misc]
    if "SIMULATED_MODULES" in os.environ:
        atexit.register(write_modules, os.environ["SIMULATED_MODULES"])

"""Engines for bundles, and modules that stand in for those of the program that a hand-off runs in."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from twins_trt.runtime import EngineFile

ORIN = EngineFile("engines/orin.engine", "tensorrt", "10.3.0", ("sm_87",))
ADA = EngineFile("engines/ada.engine", "tensorrt", "10.13.3", ("sm_89",))
RTX = EngineFile("engines/rtx.engine", "tensorrt_rtx", "1.7.1", ("sm_86", "sm_120"))

BATCHES = (1, 4, 16)


def module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(members)
    return made


def load_shipped(file: Path, *modules: ModuleType) -> ModuleType:
    """A file of a hand-off, imported with `modules` in place of its program's."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {each.__name__: each for each in modules}):
        spec.loader.exec_module(loaded)
    return loaded

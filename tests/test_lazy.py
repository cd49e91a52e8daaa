from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

from twins_trt.lazy import lazy_names

PACKAGES = [
    "twins_trt",
    "twins_trt.builders.export",
    "twins_trt.diagnosis",
    "twins_trt.models",
    "twins_trt.runtime",
    "twins_trt.training",
]


def test_names_are_found_where_they_are_at_home_and_shown_before(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("some_package")
    package.here = 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_package", package)
    package.__getattr__, package.__dir__ = lazy_names("some_package", {"json": ["dumps", "loads"]})  # type: ignore[method-assign]
    assert package.dumps is importlib.import_module("json").dumps
    assert {"dumps", "here", "loads"} <= set(dir(package))
    with pytest.raises(AttributeError, match="module 'some_package' has no attribute 'other'"):
        _ = package.other


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_of_a_lazy_package_loads(name: str) -> None:
    package = importlib.import_module(name)
    assert [public for public in package.__all__ if not hasattr(package, public)] == []
    assert set(package.__all__) <= set(dir(package))


def test_importing_the_packages_loads_nothing_heavy() -> None:
    code = f"import sys, {', '.join(PACKAGES)}; print({{'torch', 'onnx', 'onnxruntime', 'cv2'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"

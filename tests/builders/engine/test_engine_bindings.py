"""The real bindings of every TensorRT version, imported against stand-in libraries.

Needs the wheels, which are no dependency: TWINS_TRT_BINDINGS names a folder with some of them, for example from
`pip download --no-deps -d wheels tensorrt-bindings==8.6.1 tensorrt-cu12-bindings==10.3.0 tensorrt-cu13-bindings==11.4.0.106`.
Without it the recorded names stand in (test_engine_versions.py).
"""  # noqa: E501

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import fake_tensorrt
import pytest
import tensorrt_bindings
from engine_graphs import attention

TESTS = Path(fake_tensorrt.__file__).parent
FOLDER = os.environ.get("TWINS_TRT_BINDINGS")
WHEELS = sorted(Path(FOLDER).glob("*.whl")) if FOLDER else []

pytestmark = [
    pytest.mark.skipif(not WHEELS, reason="no TensorRT bindings wheels: set TWINS_TRT_BINDINGS to a folder with them"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to compile stand-in libraries with"),
]

COMPILER = """
import json, sys, tensorrt_bindings
from dataclasses import fields
from twins_trt.builders.engine import open_compiler
sys.modules["tensorrt"] = tensorrt_bindings
compiler = open_compiler("tensorrt")
print(json.dumps({each.name: getattr(compiler, each.name) for each in fields(compiler) if each.name != "module"}))
"""
START = """
import sys, tensorrt_bindings
sys.path.insert(0, {tests!r})
import pytest
from fake_driver import install_driver
from twins_trt.builders.engine import EngineOptions, build_engine
from twins_trt.device import Device
from twins_trt.errors import MissingDependencyError
sys.modules["tensorrt"] = tensorrt_bindings
install_driver(pytest.MonkeyPatch(), Device("Orin", "sm_87"))
try:
    build_engine({graph!r}, EngineOptions(flavour="tensorrt"))
except MissingDependencyError as error:
    print(error.cause)
"""


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tensorrt_bindings.compile_stubs(tmp_path_factory.mktemp("stubs"))


@pytest.mark.parametrize("wheel", WHEELS, ids=lambda wheel: wheel.name.split("-cp")[0])
def test_recorded_names_are_those_of_the_wheel(wheel: Path, stubs: Path) -> None:
    found = tensorrt_bindings.describe_wheel(wheel, stubs)
    version = found.pop("version")
    if version not in fake_tensorrt.versions():
        pytest.skip(f"the names of {version} are not recorded")
    assert found == fake_tensorrt.describe(version)


@pytest.mark.parametrize("wheel", WHEELS, ids=lambda wheel: wheel.name.split("-cp")[0])
def test_compilers_and_a_library_that_does_not_start(wheel: Path, stubs: Path, tmp_path: Path) -> None:
    compiler = json.loads(tensorrt_bindings.run_with_wheel(wheel, stubs, COMPILER))
    assert compiler["typing"] == {"8": "none", "10": "flag", "11": "always"}[compiler["version"].split(".")[0]]
    assert compiler["targets"] == [] and compiler["timing_cache"] is True
    graph = attention(tmp_path / "graph.onnx")
    said = tensorrt_bindings.run_with_wheel(wheel, stubs, START.format(graph=str(graph), tests=str(TESTS)))
    assert said.startswith(
        f"TensorRT {compiler['version']} does not start: pybind11::init(): factory function returned"
    )

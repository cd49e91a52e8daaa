"""Simulated Jetsons: environments without torch, onnx and ONNX Runtime, made once a run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from desktop import PACKAGE, SIZE, Subject, shrunk
from environment import JETPACKS, SimulatedJetPack, find_python, make_environment
from simulation import BarePython, MakeJetson, SimulatedJetson

from twins_trt.demo.scenes import write_scenes


@pytest.fixture(scope="session")
def of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run share."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "jetson"
    shared.mkdir(exist_ok=True)
    return shared


@pytest.fixture(scope="session")
def bare_python(of_the_run: Path) -> BarePython:
    """`bare_python("3.10")`: the interpreter of a bare environment.

    It is of that version where this machine has it, else of the tests' own.
    """

    def python(version: str) -> Path:
        found = find_python(version) or sys.executable
        return make_environment(of_the_run / f"python{version}", found, pinned=version == "3.10")

    return python


@pytest.fixture
def jetson(bare_python: BarePython, tmp_path: Path) -> MakeJetson:
    """`jetson("10.3.0")`: a Jetson with that TensorRT. jetpack: if not the one of `JETPACKS`. folder: its disk, by
    default an empty one."""

    def make(version: str, *, jetpack: SimulatedJetPack | None = None, folder: Path | None = None) -> SimulatedJetson:
        jetpack = jetpack or JETPACKS[version]
        disk = folder or tmp_path / f"jetson-{len(list(tmp_path.iterdir()))}"
        return SimulatedJetson(bare_python(jetpack.python), disk, tensorrt=version, jetpack=jetpack)

    return make


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The demo's checkpoint, with drawn scenes, judged by the limits that hold for everyone."""
    folder = tmp_path_factory.mktemp("scenes")
    data = write_scenes(folder, "val", range(410_000, 410_032), size=(128, 192))
    write_scenes(folder, "train", range(310_000, 310_008), size=(128, 192))
    photos = shrunk(folder / "val" / "images", folder / "photos")
    return Subject("demo", PACKAGE / "demo" / "weights.pth", data, photos, SIZE)

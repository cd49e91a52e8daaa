"""Labelled images, and machines with a simulated TensorRT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from fake_cuda import install_machine
from fake_engines import Faults, runtime_module, serialize
from fake_gpu import FakeGpu
from onnx import numpy_helper
from packs import MakeJetsonBundle, write_images
from tiny_graphs import MakeBundle

from twins_trt.device import Device
from twins_trt.runtime import Bundle, EngineFile, write_bundle

ORIN = Device("Orin", "sm_87", integrated=True)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Thirty images of 24 × 32 pixels."""
    return write_images(tmp_path_factory.mktemp("labelled"), size=(24, 32))


@pytest.fixture
def jetson(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """jetson(version, faults=None) makes this machine a Jetson with that TensorRT."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")

    def install(version: str = "10.3.0", *, faults: Faults | None = None) -> None:
        gpu = FakeGpu(integrated=True)
        install_machine(monkeypatch, gpu, runtime_module(version, gpu, faults), ORIN)

    return install


@pytest.fixture
def jetson_bundle(make_bundle: MakeBundle) -> MakeJetsonBundle:
    """jetson_bundle(version, bias=0.0, **fields): a bundle with an engine for the Jetson.

    bias: is added in the engine, and not in the graph, to the score of the first class, as a compiler's fault might.
    """

    def make(version: str = "10.3.0", *, bias: float = 0.0, height: Any = 24, width: Any = 32, **fields: Any) -> Bundle:
        bundle = make_bundle(height, width, **fields)
        image = bundle.interface.image
        profile = None if image.min is None else (image.min, image.opt, image.max)
        graph = onnx.load_from_string(bundle.graph.read_bytes())
        (stored,) = (each for each in graph.graph.initializer if each.name == "bias")
        values = numpy_helper.to_array(stored).copy()
        values[0] += bias
        stored.CopyFrom(numpy_helper.from_array(values, stored.name))
        serialized = serialize(graph.SerializeToString(), version=version, profile=profile)
        file = EngineFile("engines/tensorrt.engine", "tensorrt", version, ("sm_87",))
        files: dict[str, bytes | Path] = {"graph.onnx": bundle.graph.read_bytes(), file.file: serialized}
        manifest = replace(bundle.manifest, engines=(file,), files=())
        return write_bundle(bundle.path, manifest, files, overwrite=True)

    return make

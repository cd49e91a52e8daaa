"""A build on a machine with a GPU judges the engines that it ships. TensorRT and the GPU are simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime")

from fake_cuda import install_machine
from fake_engines import runtime_module, serialize
from fake_gpu import FakeGpu
from fake_tensorrt import calls
from int8_builds import FP16, int8, sabotaged

from twins_trt.builders.bundle.run import build_bundle
from twins_trt.device import Device
from twins_trt.errors import GateError
from twins_trt.verbs.build import BuildRequest

ADA = Device("NVIDIA RTX 4000 Ada", "sm_89")
ATTENTIONS = 8
LAYER = {"LayerType": "kgen", "Inputs": [], "Outputs": [], "TacticName": "", "Metadata": ""}
ENGINE = "engines/tensorrt-sm_89.engine"


class Builds:
    """The simulated compiler's builds: each serialized engine holds the graph that it was built from."""

    def __init__(self, module: Any) -> None:
        self.engines: list[bytes] = []
        self._module = module
        module.script.during = self._build
        module.script.phases = (("Building engine", None, 1),)
        module.script.layers = [{**LAYER, "Name": f"_gemm_mha_v2_{number}"} for number in range(ATTENTIONS)]
        # TensorRT's default, on which the builder relies when it reads the layers of its own engine.
        module.Runtime.engine_host_code_allowed = False

    def _build(self) -> None:
        (*_, (graph,)) = calls(self._module, "parse_from_file")
        engine = serialize(Path(graph).read_bytes(), version=self._module.__version__)
        self._module.script.serialized = engine
        self.engines.append(engine)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    """A machine with TensorRT, cuda-bindings and a GPU."""
    gpu = FakeGpu()
    module = runtime_module("10.13.3.9", gpu)
    install_machine(monkeypatch, gpu, module, ADA)
    return Builds(module)


def request(data: Path, out: Path, **fields: Any) -> BuildRequest:
    """An INT8 build for the GPU of this machine, calibrated and judged on eight images."""
    return int8(data, out, targets=None, flavour=("tensorrt",), **fields)


def test_the_engine_that_was_judged_is_the_one_that_ships(builds: Builds, data: Path, tmp_path: Path) -> None:
    report = build_bundle(request(data, tmp_path / "x.bundle", **FP16))
    assert report.gate is not None and report.gate.passed
    assert (report.gate.engine, report.gate.simulated) == ("tensorrt", False)
    assert report.gate.measured_on == "NVIDIA RTX 4000 Ada (sm_89)"
    assert len(builds.engines) == 1  # what was judged is not compiled again
    assert report.bundle.file(ENGINE).read_bytes() == builds.engines[0]
    assert report.bundle.read_json("gate.json")["simulated"] is False


def test_a_failing_engine_ships_nothing(builds: Builds, data: Path, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="8 images are too few"):
        build_bundle(request(data, tmp_path / "x.bundle", **FP16, min_images=9))
    assert len(builds.engines) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_fallback_judges_an_engine_of_every_plan_and_ships_the_last(
    builds: Builds, data: Path, tmp_path: Path
) -> None:
    """One range is 100 times too small; the plan without its block passes."""
    healthy = build_bundle(request(data, tmp_path / "healthy.bundle")).bundle
    drop = healthy.read_json("gate.json")["drop"]["high"]
    fields = sabotaged(healthy, tmp_path / "plan.json") | {"max_drop": drop + 1.0}
    builds.engines.clear()
    report = build_bundle(request(data, tmp_path / "x.bundle", **fields))
    assert report.fallback is not None and report.plan is not None and report.gate is not None
    assert report.plan.blocks["stages.1.blocks.0.ffn"] == "fp16"
    assert (report.gate.engine, report.gate.simulated) == ("tensorrt", False)
    assert len(builds.engines) == len(report.fallback.outcome.evaluations) == 2
    assert builds.engines[0] != builds.engines[1] == report.bundle.file(ENGINE).read_bytes()
    assert report.bundle.graph.read_bytes() in builds.engines[1]
    assert report.gate.graph_sha256 == report.bundle.manifest.graph_sha256

"""The simulated compiler makes engines that the simulated runtime runs, and lists credible layers of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from engine_graphs import BLOCK, attention
from fake_arithmetic import OnnxSession
from fake_builder import building_module
from fake_cuda import install_machine
from fake_gpu import FakeGpu
from fake_tensorrt import versions
from onnx import TensorProto
from tiny_graphs import tensors, tiny_graph

from twins_trt.bindings import process_logger
from twins_trt.builders.engine import EngineOptions, build_engine
from twins_trt.builders.engine.audit import audit_layers
from twins_trt.device import Device

ORIN = Device("Orin", "sm_87", integrated=True)
VERSIONS = [version for version in versions() if not version.startswith("rtx-")]


@pytest.fixture(params=VERSIONS)
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """TensorRT of each version, on an Orin."""
    gpu = FakeGpu(integrated=True)
    made = building_module(request.param, gpu)
    install_machine(monkeypatch, gpu, made, ORIN)
    return made


def build(graph: Path, **options: Any) -> Any:
    return build_engine(graph, EngineOptions(flavour="tensorrt", **options))


def test_an_engine_computes_what_its_graph_does(module: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    """The bytes of an engine hold the graph, and the runtime of that version takes them."""
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(tiny_graph(*tensors(24, 32, 1, ("mask",), "uint8")))
    built = build(graph)
    assert module.built == [built.serialized]
    runtime = module.Runtime(process_logger(module))
    engine = runtime.deserialize_cuda_engine(built.serialized)
    image = rng.integers(0, 256, (1, 24, 32, 3), np.uint8)
    (mask,) = engine._session.run(["mask"], {"image": image})
    (expected,) = OnnxSession(graph.read_bytes()).run(["mask"], {"image": image})
    assert np.array_equal(mask, expected) and len(np.unique(mask)) > 2


def test_the_inspector_speaks_its_versions_dialect(module: Any, tmp_path: Path) -> None:
    """TensorRT 11 has other keys than the versions before."""
    built = build(attention(tmp_path / "graph.onnx"))
    engine = module.Runtime(process_logger(module)).deserialize_cuda_engine(built.serialized)
    text = json.loads(engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON))
    tensor = text["Layers"][0]["Inputs"][0]
    if module.__version__.startswith("11."):
        assert "I/O Tensors" in text and tensor["Datatype"] == "Half"
    else:
        assert "Bindings" in text and tensor["Format/Datatype"] == "Half"
    assert built.layers[0].inputs[0].dtype == "float16"


@pytest.mark.parametrize(("unfused", "fused"), [(0, 1), (1, 0)])
def test_attentions_are_fused_unless_the_machine_is_told_not_to(
    module: Any, tmp_path: Path, unfused: int, fused: int
) -> None:
    module.unfused = unfused
    audit = audit_layers(build(attention(tmp_path / "graph.onnx")).layers, expected_attentions=1)
    if fused and module.__version__.startswith("8."):  # hides what it fuses in one layer
        assert (audit.attentions, audit.unfused_attentions, len(audit.opaque)) == (0, (), 1)
    else:
        assert (audit.attentions, audit.unfused_attentions, audit.opaque) == (fused, (BLOCK,) * unfused, ())


def test_a_float32_graph_has_no_fused_attention(module: Any, tmp_path: Path) -> None:
    import onnx

    path = attention(tmp_path / "graph.onnx", dtype=TensorProto.FLOAT)
    model = onnx.load(path)
    entry = model.metadata_props.add()
    entry.key, entry.value = "twins_trt.precision", "fp32"
    onnx.save(model, path)
    assert audit_layers(build(path).layers, expected_attentions=1).unfused_attentions == (BLOCK,)


def test_a_profile_is_in_the_engine(module: Any, tmp_path: Path) -> None:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(tiny_graph(*tensors(24, 32, (1, 2, 4), ("mask",), "uint8")))
    shapes = tuple((batch, 24, 32, 3) for batch in (1, 2, 4))
    built = build(graph, profile={"image": shapes})
    engine = module.Runtime(process_logger(module)).deserialize_cuda_engine(built.serialized)
    assert engine.get_tensor_profile_shape("image", 0) == list(shapes)

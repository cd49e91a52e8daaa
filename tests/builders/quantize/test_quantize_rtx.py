"""TensorRT-RTX compiles Q/DQ graphs with INT8 where the plan says so and every attention fused."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import onnx_graphsurgeon as gs
import pytest

from benchmarks.int8_kernels import LEVELS, build_int8
from benchmarks.results import read_results
from twins_trt.builders.engine import EngineOptions, build_engine
from twins_trt.builders.engine.audit import audit_layers, check_fused
from twins_trt.builders.engine.layers import Layer
from twins_trt.builders.export import ExportOptions
from twins_trt.builders.export.export import build_graph
from twins_trt.builders.plan.precision_plan import uniform_plan
from twins_trt.builders.quantize import Quantization, check_int8, quantize
from twins_trt.models import build_model, get_spec, list_models
from twins_trt.models.seeded import seed_weights

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed (pip install tensorrt-rtx-cu13)")


TARGETS = ("sm_86", "sm_89", "sm_120")


def built(name: str, level: str, path: Path) -> tuple[tuple[Layer, ...], Quantization, int]:
    model = build_model(name, 19)
    seed_weights(model)
    options = ExportOptions(224, 224, opset=20)
    graph, info = build_graph(model, options)
    done = quantize(graph, uniform_plan(graph, level), dict.fromkeys(graph.tensors(), 4.0), islands=info.islands)
    proto = gs.export_onnx(graph)
    proto.ir_version = 9
    path.write_bytes(proto.SerializeToString())
    return build_engine(path, EngineOptions(targets=TARGETS)).layers, done, info.attentions


@pytest.mark.parametrize("level", ["int8-linear", "int8-attention"])
@pytest.mark.parametrize("name", ["twins_svt-s_fpn", "twins_pcpvt-s_fpn"])
def test_all_that_is_planned_is_int8_and_fused(name: str, level: str, tmp_path: Path) -> None:
    layers, done, attentions = built(name, level, tmp_path / "graph.onnx")
    assert len(done.nodes) >= 80 and len(done.attentions) == (attentions if level == "int8-attention" else 0)
    assert check_int8(layers, done) == ()
    check_fused(audit_layers(layers, expected_attentions=attentions))
    if level == "int8-linear":
        # The check sees what is not INT8: plans that name more than the graph holds are not met.
        more = replace(done, nodes=(*done.nodes, "neck/conv.0"), attentions=("stages.0.blocks.1.attn",))
        assert check_int8(layers, more) == ("neck/conv.0", "stages.0.blocks.1.attn")


@pytest.mark.slow
def test_the_head_of_upernet_is_int8_too() -> None:
    row = build_int8("twins_svt-s_upernet", "int8-linear+conv", size=(224, 224))
    assert row["not_int8"] == [] and row["attentions"] == 18 and row["planned"] > 90


def test_the_record_of_all_models_has_no_gap() -> None:
    """The recorded results of `python -m benchmarks.int8_kernels`; the tests above build some of the same graphs."""
    rows = read_results("int8_kernels")["rows"]
    assert {(row["model"], row["level"]) for row in rows} == set(product(list_models(), LEVELS))
    for row in rows:
        assert row["not_int8"] == [] and row["unfused_attentions"] == []
        assert row["attentions"] == row["expected_attentions"] == sum(get_spec(row["model"]).depths)

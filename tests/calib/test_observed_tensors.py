"""Which activations are observed, and the parts of a graph that compute them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from calib_graphs import OBSERVED, photo, write_graph
from onnx import helper, numpy_helper

from twins_trt.calib import observed_tensors
from twins_trt.calib.tensors import graph_inputs, read_graph, split_by_size, with_outputs, with_shapes
from twins_trt.errors import DataError, UsageError


def edited(graph: Path, path: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(str(graph))
    edit(model)
    onnx.save(model, str(path))
    return path


def test_inputs_of_linears_and_the_five_points_of_an_attention(graph: Path) -> None:
    # The scores are no point: softmax follows in the same kernel. `mask` is an output, not an input.
    assert observed_tensors(graph) == OBSERVED


def test_a_product_without_a_softmax_is_no_attention(graph: Path, tmp_path: Path) -> None:
    def no_softmax(model: onnx.ModelProto) -> None:
        (node,) = (node for node in model.graph.node if node.op_type == "Softmax")
        node.op_type = "Sigmoid"
        del node.attribute[:]
        # Its result feeds no Linear any more either.
        (proj,) = (node for node in model.graph.node if node.input[0] == "attn/context")
        proj.op_type = "Add"

    found = observed_tensors(edited(graph, tmp_path / "x.onnx", no_softmax))
    assert found == tuple(name for name in OBSERVED if name != "attn/context")


@pytest.mark.parametrize("target", ["gpu", "cpu"])
def test_every_linear_of_an_exported_model(target: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnx_graphsurgeon")
    from twins_trt.builders.export import ExportOptions, export_graph
    from twins_trt.models import build_model
    from twins_trt.models.seeded import seed_weights

    model = build_model("twins_svt-s_fpn", 4)
    seed_weights(model)
    path = tmp_path / "model.onnx"
    info = export_graph(model, path, ExportOptions(height=64, width=96, target=target), to_quantize=True)
    proto = onnx.load(str(path))
    weights = {weight.name for weight in proto.graph.initializer}
    found = observed_tensors(path)
    assert len(set(found)) == len(found) and not set(found) & weights
    products = [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert {name for node in products for name in node.input[:2]} - weights <= set(found)
    contexts = [node.output[0] for node in products if not weights & set(node.input[:2]) and "softmax" in node.input[0]]
    assert len(contexts) == info.attentions == 18
    assert set(contexts) <= set(found)


def test_parts_hold_what_they_need_and_no_more(graph: Path) -> None:
    import onnxruntime

    model = read_graph(graph)
    part = with_outputs(model, ["input/pixels", "attn/norm"])
    assert [node.op_type for node in part.graph.node] == ["Cast", "Transpose", "Div", "Conv", "Reshape", "Transpose"]
    assert {weight.name for weight in part.graph.initializer} == {"scale", "patch.weight", "tokens"}
    image = photo(0)[None]
    shapes = onnxruntime.InferenceSession(with_shapes(model, OBSERVED).SerializeToString()).run(None, {"image": image})
    values = onnxruntime.InferenceSession(with_outputs(model, OBSERVED).SerializeToString()).run(None, {"image": image})
    assert [tuple(shape) for shape in shapes] == [value.shape for value in values]


def test_inputs(tmp_path: Path) -> None:
    model = read_graph(write_graph(tmp_path / "x.onnx", batch="N", size=("H", 48)))
    assert graph_inputs(model) == [("image", "uint8", ("N", "H", 48, 3))]


def test_groups_follow_each_other_and_fit() -> None:
    sizes = {"a": 4, "b": 5, "c": 1, "d": 30, "e": 2, "f": 8}
    assert split_by_size(sizes, 10) == [["a", "b", "c"], ["d"], ["e", "f"]]
    assert split_by_size(sizes, 1000) == [list(sizes)]


def test_what_cannot_be_calibrated(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(DataError, match="not a readable ONNX file"):
        observed_tensors(tmp_path / "text.onnx")

    def quantize(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("QuantizeLinear", ["mask", "factor"], ["q"]))

    def halve(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float16), "h"))

    def only_cast(model: onnx.ModelProto) -> None:
        del model.graph.node[1:]
        model.graph.output[0].name = "input/float"

    with pytest.raises(UsageError, match="already quantized"):
        observed_tensors(edited(graph, tmp_path / "q.onnx", quantize))
    with pytest.raises(UsageError, match="is FP16"):
        observed_tensors(edited(graph, tmp_path / "h.onnx", halve))
    with pytest.raises(DataError, match="no Conv, Gemm or MatMul"):
        observed_tensors(edited(graph, tmp_path / "c.onnx", only_cast))

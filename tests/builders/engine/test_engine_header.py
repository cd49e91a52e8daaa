"""The header that is read from an ONNX file agrees with onnx, and damage is detected."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from engine_graphs import attention, linear, save
from onnx import TensorProto, helper, numpy_helper

from twins_trt.builders.engine import TensorInfo, read_header
from twins_trt.errors import BuildError


def test_header_agrees_with_onnx(tmp_path: Path) -> None:
    path = attention(tmp_path / "graph.onnx", batch="n", opset=19)
    header, model = read_header(path), onnx.load(path)
    assert header.opset == 19
    assert header.operators == dict(Counter(node.op_type for node in model.graph.node))
    assert header.inputs == tuple(TensorInfo(name, "float16", ("n", 2, 64, 32)) for name in "qkv")
    assert header.outputs == (TensorInfo("out", "float16", ("n", 2, 64, 32)),)
    assert all(tensor.dynamic for tensor in header.inputs)
    assert header.metadata == {"twins_trt.attentions": "1"}
    assert header.weight_dtypes == {"float16"} and header.external == ()


def test_weights_listed_among_the_inputs_are_no_inputs(tmp_path: Path) -> None:
    path = linear(tmp_path / "graph.onnx")
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT16, [32, 16]))
    onnx.save(model, path)
    header = read_header(path)
    assert [tensor.name for tensor in header.inputs] == ["image"]
    assert header.inputs[0] == TensorInfo("image", "float16", (1, 64, 32)) and not header.inputs[0].dynamic


def test_operators_of_other_domains_keep_their_domain(tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, None, "w", 3])
    out = helper.make_tensor_value_info("out", TensorProto.UINT8, None)
    node = helper.make_node("Attention", ["image"], ["out"], domain="com.microsoft")
    header = read_header(save(tmp_path / "graph.onnx", [node], [image], [out]))
    assert header.operators == {"com.microsoft::Attention": 1}
    assert header.inputs == (TensorInfo("image", "uint8", (1, None, "w", 3)),)


def test_weights_beside_the_graph_have_to_be_there(tmp_path: Path) -> None:
    path = linear(tmp_path / "graph.onnx")
    model = onnx.load(path)
    large = numpy_helper.from_array(np.ones((32, 16), np.float16), "weight")
    model.graph.initializer[0].CopyFrom(large)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert read_header(path).external == ("weights.bin",)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(BuildError, match=r"keeps its weights in weights\.bin, which is not beside it"):
        read_header(path)


def test_every_truncation_is_seen(tmp_path: Path) -> None:
    whole = linear(tmp_path / "whole.onnx").read_bytes()
    cut = tmp_path / "cut.onnx"
    complete = read_header(tmp_path / "whole.onnx")
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        try:
            header = read_header(cut)
        except BuildError as error:
            assert error.fix is not None
        else:
            # A cut between two fields of the model leaves a valid graph that only lacks what came after it.
            assert header.operators == complete.operators and header.outputs == complete.outputs


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_graph(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(np.random.default_rng(seed).bytes(500))
    with pytest.raises(BuildError):
        read_header(path)


def test_a_graph_without_outputs_is_refused(tmp_path: Path) -> None:
    path = linear(tmp_path / "graph.onnx")
    model = onnx.load(path)
    del model.graph.output[:]
    onnx.save(model, path)
    with pytest.raises(BuildError, match="holds no ONNX graph with outputs"):
        read_header(path)
    with pytest.raises(BuildError, match="there is no graph at"):
        read_header(tmp_path)

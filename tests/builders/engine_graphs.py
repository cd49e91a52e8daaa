"""Small ONNX graphs for the tests of engine builds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BLOCK = "stages.0.blocks.1.attn"


def save(path: Path, nodes: list, inputs: list, outputs: list, weights: tuple = (), *, opset: int = 17) -> Path:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)
    entry = model.metadata_props.add()
    entry.key, entry.value = "twins_trt.attentions", "1"
    onnx.save(model, path)
    return path


def attention(
    path: Path,
    *,
    batch: int | str = 1,
    heads: int = 2,
    dtype: int = TensorProto.FLOAT16,
    opset: int = 17,
    extra: tuple = (),
) -> Path:
    """q·kᵀ, softmax, ·v on [batch, heads, 64, 32]."""
    shape = [batch, heads, 64, 32]
    inputs = [helper.make_tensor_value_info(name, dtype, shape) for name in "qkv"]
    scale = numpy_helper.from_array(np.array(0.125, helper.tensor_dtype_to_np_dtype(dtype)), "scale")
    nodes = [
        helper.make_node("Mul", ["q", "scale"], ["scaled"], name=f"{BLOCK}/scale"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2], name=f"{BLOCK}/transpose"),
        helper.make_node("MatMul", ["scaled", "kt"], ["scores"], name=f"{BLOCK}/scores"),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1, name=f"{BLOCK}/softmax"),
        helper.make_node("MatMul", ["weights", "v"], ["out"], name=f"{BLOCK}/values"),
    ]
    output = helper.make_tensor_value_info("out", dtype, shape)
    return save(path, [*nodes, *extra], inputs, [output], (scale,), opset=opset)


def linear(path: Path, *, dtype: int = TensorProto.FLOAT16) -> Path:
    """One matrix product with a weight, image [1, 64, 32]."""
    image = helper.make_tensor_value_info("image", dtype, [1, 64, 32])
    out = helper.make_tensor_value_info("out", dtype, [1, 64, 16])
    weight = numpy_helper.from_array(np.ones((32, 16), helper.tensor_dtype_to_np_dtype(dtype)), "weight")
    node = helper.make_node("MatMul", ["image", "weight"], ["out"], name="head/classifier")
    return save(path, [node], [image], [out], (weight,))


def single(path: Path, operator: str, *, heads: int = 2, opset: int = 17, name: str = "block/node") -> Path:
    """One node of three FP16 inputs."""
    shape = [1, heads, 64, 32]
    inputs = [helper.make_tensor_value_info(letter, TensorProto.FLOAT16, shape) for letter in "qkv"]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT16, shape)
    return save(path, [helper.make_node(operator, ["q", "k", "v"], ["out"], name=name)], inputs, [output], opset=opset)

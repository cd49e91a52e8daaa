"""The places of a graph that can run in INT8: every product with a weight, and every attention.

Which kind a place is follows the model, not the node that it is written as: `linear` are the Linear layers of attention
and FFN (some are written as 1×1 convolutions), `conv` every convolution (some are written as matrix products).
Products with a matrix that is no weight (pooling, interpolation) are no sites: they would lose bits for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import onnx_graphsurgeon as gs

from twins_trt.builders.export.shape_inference import tensor_shapes
from twins_trt.calib.tensors import LAYOUT

Tensor: TypeAlias = Any  # gs.Variable or gs.Constant; graphsurgeon carries no types

KINDS = ("linear", "conv", "attention")
LONGEST_INT8_ATTENTION = 512  # keys; the compiler has no fused INT8 attention beyond

_WEIGHT_INPUT = {"MatMul": 1, "Gemm": 1, "Conv": 1}


@dataclass(frozen=True)
class Site:
    """One place that can run in INT8.

    node: the graph node (for an attention `BLOCK/attention`, which is no node but four). kind: one of `KINDS`.
    flops: multiplications and additions at the graph's size, a dynamic batch counted as 1; 0 where the size is dynamic
    (the graph of a fixed size has the same nodes, so its FLOPs can stand in).
    source: the tensor that is quantized for it: its input, before any layout operation. axis: of the weight, along
    which scales differ. keys: an attention's number of keys, 0 for other sites or where it is not known.
    """

    node: str
    kind: str
    flops: float
    source: str
    axis: int = 0
    keys: int = 0

    @property
    def positional(self) -> bool:
        """Whether the site is a positional convolution: depthwise, the residual around it in its centre tap."""
        return self.node.endswith(".pos/proj")

    @property
    def classifier(self) -> bool:
        """Whether the site computes the logits."""
        return self.node == "head/classifier"


def block_of(node: str) -> str:
    """`stages.2.blocks.4.ffn` of `stages.2.blocks.4.ffn/fc1`."""
    return node.split("/", 1)[0]


def find_sites(graph: gs.Graph) -> tuple[Site, ...]:
    """All sites of an FP32 graph as `build_graph` makes it, in the graph's order.

    Raises `ExportError` where shapes cannot be inferred.
    """
    return tuple(_sites(graph))


def _sites(graph: gs.Graph) -> Iterator[Site]:
    shapes = tensor_shapes(graph)
    for node in graph.nodes:
        if is_product(node):
            weight = weight_of(node)
            depth = prod(weight.shape) // weight.shape[output_axis(node)]
            if node.op == "MatMul" and weight.values.ndim == 3:
                depth = weight.shape[1]
            flops = 2.0 * _volume(shapes[node.outputs[0].name]) * depth
            kind = "linear" if _is_linear(node) else "conv"
            yield Site(node.name, kind, flops, source_of(node.inputs[0]).name, output_axis(node))
        elif node.op == "Softmax":
            block = block_of(node.name)
            scores, probabilities = node.inputs[0], node.outputs[0]
            keys = max(shapes[scores.name][-1], 0)
            context = probabilities.outputs[0].outputs[0]
            head_dim = shapes[context.name][-1]
            flops = 4.0 * _volume(shapes[scores.name]) * max(head_dim, 0)
            yield Site(f"{block}/attention", "attention", flops, context.name, keys=keys)


def is_product(node: gs.Node) -> bool:
    """Whether `node` multiplies an activation with a weight. A constant on the left is UPerNet's pooling or
    interpolation, not a weight. What corrects the FPN's borders (`export.composed`) has next to no FLOPs, and should
    take out just what is there."""
    if "/border." in node.name:
        return False
    constant = [isinstance(tensor, gs.Constant) for tensor in node.inputs[:2]]
    return node.op in _WEIGHT_INPUT and constant == [False, True]


def weight_of(node: gs.Node) -> gs.Constant:
    return node.inputs[_WEIGHT_INPUT[node.op]]


def output_axis(node: gs.Node) -> int:
    """The axis of a product's weight that runs over its outputs: [out, in/group, k, k] or [.., in, out]."""
    if node.op == "Conv":
        return 0
    if node.op == "Gemm" and node.attrs.get("transB"):
        return 0
    return weight_of(node).values.ndim - 1


def input_axis(node: gs.Node) -> int:
    """The axis of a product's weight that runs over its inputs."""
    return 1 if node.op == "Conv" or output_axis(node) == 0 else output_axis(node) - 1


def source_of(tensor: Tensor) -> Tensor:
    """The tensor that `tensor` is a mere rearrangement of: same values, so the same range."""
    while tensor.inputs and tensor.inputs[0].op in LAYOUT:
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _is_linear(node: gs.Node) -> bool:
    block = block_of(node.name)
    if not block.endswith((".attn", ".ffn")):
        return False
    return node.op != "Conv" or prod(weight_of(node).shape[2:]) == 1


def _volume(shape: tuple[int, ...]) -> int:
    """The number of values; 0 where it is not known."""
    return 0 if -1 in shape else prod(shape)

"""The places of a graph that can run in INT8: every product with a weight, and every attention.

The kind of a site follows the model, not the graph: `linear` is a Linear layer of attention or FFN (some are written as
1×1 convolutions), `conv` is a convolution (some are written as matrix products). Products with a matrix that is no
weight (pooling, interpolation) are no sites: INT8 would cost them precision and gain no time.
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

    node: its graph node; for an attention, which is several nodes, `BLOCK/attention`. kind: one of `KINDS`.
    flops: multiplications and additions at the graph's size, with a dynamic batch counted as 1; 0 for a dynamic size
    (a graph of fixed size has the same nodes, and their FLOPs).
    source: the tensor that is quantized for it: its input before any layout operation. axis: of its weight, along which
    each output has a scale of its own. keys: of an attention; 0 for other sites and for an unknown number.
    """

    node: str
    kind: str
    flops: float
    source: str
    axis: int = 0
    keys: int = 0

    @property
    def positional(self) -> bool:
        """Whether the site is a positional convolution: depthwise, with the residual around it in its centre tap."""
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

    Raises `ExportError` if shapes cannot be inferred.
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
    """Whether `node` multiplies an activation with a weight and can run in INT8.

    A constant on the left is UPerNet's pooling or interpolation, not a weight. The products that correct the FPN's
    borders (`export.composed`) are left out: they have few FLOPs, and must subtract exactly what was added.
    """
    if "/border." in node.name:
        return False
    constant = [isinstance(tensor, gs.Constant) for tensor in node.inputs[:2]]
    return node.op in _WEIGHT_INPUT and constant == [False, True]


def weight_of(node: gs.Node) -> gs.Constant:
    """The weight of a product."""
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
    """The tensor before the layout operations that `tensor` comes from: it has the same values, so the same range."""
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

"""QuantizeLinear and DequantizeLinear nodes in an FP32 graph, and the INT8 weights.

The place of a pair hardly matters to TensorRT-RTX: at a tensor's source or at each reader, before or behind transposes
and reshapes, with one DequantizeLinear for all readers or one for each, it compiles to the same kernels (counted on
SVT-S). Here a tensor is quantized once, at its source; layout operations move INT8; and every reader has a
DequantizeLinear of its own right before it. So all readers share one range, and ONNX Runtime can fuse every product: it
does so only with a DequantizeLinear right before the product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from twins_trt.builders.plan.sites import Tensor, output_axis, weight_of
from twins_trt.calib.tensors import LAYOUT
from twins_trt.errors import UsageError

QMAX = 127  # symmetric: -128 is not used, so that a value and its negative round alike
UNSIGNED_MAX, UNSIGNED_ZERO = 255, 128
SMALLEST_SCALE = 2.0**-14  # float16's smallest normal number: below, a scale loses its own digits


class Inserter:
    """Inserts nodes into a graph; `finish` adds them to it.

    ranges: the largest magnitude of each tensor that is quantized, by name.
    float_precision: of what does not run in INT8. `fp16`, for TensorRT: activations are int8, and scales are rounded to
    float16, in which they are stored. `fp32`, for ONNX Runtime: activations are uint8, because on x86 it multiplies
    uint8 with int8 and does not fuse a product of two int8. Their zero point is 128; for what a Relu writes it is 0,
    which gains a bit and lets ONNX Runtime drop the Relu.
    """

    def __init__(self, graph: gs.Graph, ranges: Mapping[str, float], *, float_precision: str) -> None:
        self.graph = graph
        self._scales_in_float16 = float_precision == "fp16"
        self._unsigned = float_precision == "fp32"
        self._ranges = ranges
        kinds = {"zero.int8": np.int8(0), "zero.uint8": np.uint8(UNSIGNED_ZERO), "zero.positive": np.uint8(0)}
        self._zeros = {name: gs.Constant(name, np.array(value)) for name, value in kinds.items()}
        self._quantized: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # by source: values, scale, zero point
        self._moved: dict[tuple[str, str], Tensor] = {}  # by the layout operation and the tensor that it moves
        self._inserted: list[gs.Node] = []
        self._taken = {node.name for node in graph.nodes} | set(graph.tensors())

    def product(self, node: gs.Node) -> None:
        """Makes a product read INT8 activations and INT8 weights, with one scale for each of its outputs."""
        values, scale, axis = self.weight(node)
        node.inputs[1] = self._dequantize(
            gs.Constant(self.unique(f"{node.name}.weight.int8"), values),
            gs.Constant(self.unique(f"{node.name}.weight.scale"), scale),
            None,
            f"{node.name}.weight",
            axis=axis,
        )
        self.read(node, 0)

    def weight(self, node: gs.Node) -> tuple[NDArray[np.int8], NDArray[np.float32], int]:
        """A product's weight in INT8, the scale of each output, float32 [outputs], and the weight's output axis."""
        weight, axis = weight_of(node), output_axis(node)
        scale = self.scales(np.abs(weight.values).max(axis=tuple(i for i in range(weight.values.ndim) if i != axis)))
        return quantized_weight(weight.values, scale, axis), scale, axis

    def read(self, node: gs.Node, index: int) -> None:
        """Makes `node` read its activation number `index` through INT8."""
        node.inputs[index] = self.rounded(node, index)

    def rounded(self, node: gs.Node, index: int) -> Tensor:
        """The activation number `index` of `node`, rounded through INT8 and back to float."""
        moves = []
        tensor = node.inputs[index]
        while tensor.inputs and tensor.inputs[0].op in LAYOUT:
            moves.append(tensor.inputs[0])
            tensor = tensor.inputs[0].inputs[0]
        values, scale, zero = self._quantize(tensor)
        for move in reversed(moves):
            values = self._move(move, values)
        return self._dequantize(values, scale, zero, f"{node.name}.in{index}")

    def write(self, tensor: Tensor) -> None:
        """Makes every reader of `tensor` read it through INT8."""
        readers = [(node, i) for node in tensor.outputs for i, each in enumerate(node.inputs) if each is tensor]
        values, scale, zero = self._quantize(tensor)
        back = self._dequantize(values, scale, zero, tensor.name)
        for node, i in readers:
            if node.op != "QuantizeLinear":
                node.inputs[i] = back

    def node(
        self, op: str, name: str, inputs: Sequence[Tensor], dtype: np.dtype, attrs: Mapping[str, object]
    ) -> Tensor:
        """Adds a node and returns its output."""
        out = gs.Variable(self.unique(name), dtype=np.dtype(dtype))
        self._inserted.append(gs.Node(op, name=out.name, attrs=dict(attrs), inputs=list(inputs), outputs=[out]))
        return out

    def unique(self, name: str) -> str:
        """`name`, with a number behind it if the graph has that name already."""
        candidate, count = name, 0
        while candidate in self._taken:
            count += 1
            candidate = f"{name}.{count}"
        self._taken.add(candidate)
        return candidate

    def scales(self, amax: NDArray | float, levels: int = QMAX) -> NDArray[np.float32]:
        """The quantization step of each range, float32; rounded to float16 if scales are stored in it.

        amax: largest magnitudes. levels: the quantized value of the largest magnitude.
        """
        scale = np.maximum(np.asarray(amax, np.float64) / levels, SMALLEST_SCALE)
        return np.asarray(scale.astype(np.float16) if self._scales_in_float16 else scale).astype(np.float32)

    def finish(self) -> None:
        """Adds the inserted nodes to the graph, drops unused ones, and sorts it."""
        self.graph.nodes.extend(self._inserted)
        self._inserted = []
        self.graph.cleanup().toposort()

    def _quantize(self, tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if tensor.name not in self._quantized:
            positive = self._unsigned and tensor.inputs[0].op == "Relu"
            amax = 1.0 if _is_softmax(tensor) else self._ranges[tensor.name]
            step = self.scales(amax, UNSIGNED_MAX if positive else QMAX)
            scale = gs.Constant(self.unique(f"{tensor.name}.scale"), step)
            zero = self._zeros["zero.positive" if positive else "zero.uint8" if self._unsigned else "zero.int8"]
            values = self.node("QuantizeLinear", f"{tensor.name}.quantize", [tensor, scale, zero], zero.dtype, {})
            self._quantized[tensor.name] = (values, scale, zero)
        return self._quantized[tensor.name]

    def _dequantize(
        self, values: Tensor, scale: Tensor, zero: Tensor | None, name: str, *, axis: int | None = None
    ) -> Tensor:
        inputs = [values, scale] if zero is None else [values, scale, zero]
        attrs = {} if axis is None else {"axis": axis}
        return self.node("DequantizeLinear", f"{name}.dequantize", inputs, np.dtype(np.float32), attrs)

    def _move(self, move: gs.Node, values: Tensor) -> Tensor:
        key = (move.name, values.name)
        if key not in self._moved:
            inputs = [values, *move.inputs[1:]]
            self._moved[key] = self.node(move.op, f"{move.name}.int8", inputs, values.dtype, move.attrs)
        return self._moved[key]


def quantized_weight(values: NDArray, scale: NDArray, axis: int) -> NDArray[np.int8]:
    """Weights as int8, rounded to nearest (ties to even), never -128. scale: [outputs], along `axis` of the weights."""
    return np.clip(np.rint(values / _along(scale, axis, values.ndim)), -QMAX, QMAX).astype(np.int8)


def dequantized_weight(values: NDArray[np.int8], scale: NDArray, axis: int) -> NDArray[np.float64]:
    """The values that INT8 weights stand for."""
    return values.astype(np.float64) * _along(scale, axis, values.ndim)


def _along(scale: NDArray, axis: int, rank: int) -> NDArray:
    shape = [1] * rank
    shape[axis] = -1
    return scale.reshape(shape)


def checked_ranges(ranges: Mapping[str, float], needed: Sequence[str]) -> dict[str, float]:
    """The ranges of the tensors in `needed`. Raises `UsageError` for one that is missing, not finite or negative."""
    lacking = [name for name in needed if name not in ranges]
    if lacking:
        raise UsageError(
            f"{len(lacking)} of {len(needed)} ranges are missing, among them {lacking[0]}",
            "calibrate again: the ranges are of another graph or plan",
        )
    for name in needed:
        if not math.isfinite(ranges[name]) or ranges[name] < 0:
            raise UsageError(f"the range of {name} is {ranges[name]}", "calibrate again")
    return {name: float(ranges[name]) for name in needed}


def _is_softmax(tensor: Tensor) -> bool:
    return bool(tensor.inputs) and tensor.inputs[0].op == "Softmax"

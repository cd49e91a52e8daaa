"""Bias correction: the bias of a product includes the mean shift that rounding gives its output.

A product is linear, so the mean of its output over positions and images is the product of its input's mean. If `x` and
`W` are rounded to `x'` and `W'`, the mean of `W·x` shifts by exactly `W·mean(x) - W'·mean(x')`, whatever x is. At the
border each tap of a convolution reads other positions, so the mean of its input is taken for each tap. Every product
gets the input that it has in the FP32 graph, so that no shift is corrected twice (Nagel et al. 2019, arXiv 1906.04721,
section 4.2; here the means are measured, there they are assumed).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from twins_trt.builders.export.export import graph_proto
from twins_trt.builders.plan.sites import Site, Tensor, input_axis, output_axis, weight_of
from twins_trt.builders.quantize.insert import Inserter, dequantized_weight
from twins_trt.calib.images import Fitter
from twins_trt.calib.tensors import graph_inputs
from twins_trt.runtime.engines import RuntimeOptions
from twins_trt.runtime.engines.onnxruntime import OnnxRuntimeEngine

Floats = npt.NDArray[np.float64]

_FLOAT = np.dtype(np.float32)
_END = np.iinfo(np.int64).max


def mean_shifts(
    graph: gs.Graph,
    sites: Iterable[Site],
    ranges: Mapping[str, float],
    images: Iterable[npt.NDArray[np.uint8]],
    *,
    float_precision: str,
    threads: int | None = None,
) -> dict[str, Floats]:
    """What to add to the bias of each product, float64 [outputs], by node.

    graph: FP32, of fixed size, with SmoothQuant's scales folded in; this call changes it. sites: what runs in INT8.
    Products without a bias get no shift (a shift of k changes no softmax). ranges: the largest magnitudes, by tensor.
    images: uint8 [H, W, 3], RGB, of any size. float_precision: decides how values are rounded, see `Inserter`.
    """
    inserter = Inserter(graph, ranges, float_precision=float_precision)
    nodes = {node.name: node for node in graph.nodes}
    products = [nodes[site.node] for site in sites if site.kind != "attention" and bias_of(nodes[site.node])]
    graph.outputs = []
    weights = {}
    for node in products:
        weights[node.name] = (weight_of(node).values, dequantized_weight(*inserter.weight(node)))
        for tensor, kind in ((node.inputs[0], "exact"), (inserter.rounded(node, 0), "rounded")):
            mean = (_taps if node.op == "Conv" else _rows)(inserter, node, tensor)
            mean.name = f"{kind} {node.name}"
            graph.outputs.append(mean)
    inserter.finish()
    totals: dict[str, Floats] = {}
    count = 0
    proto = graph_proto(graph)
    fit = Fitter(graph_inputs(proto), {})
    engine = OnnxRuntimeEngine(proto.SerializeToString(), options=RuntimeOptions(threads=threads))
    for image in images:
        count += 1
        for name, value in engine(fit(image)[None]).items():
            totals[name] = totals.get(name, np.zeros(1)) + value.astype(np.float64)
    engine.close()
    shifts = {}
    for node in products:
        exact, rounded = (
            _through(node, weight, totals[f"{kind} {node.name}"] / count)
            for weight, kind in zip(weights[node.name], ("exact", "rounded"), strict=True)
        )
        shifts[node.name] = exact - rounded
    return shifts


def add_shifts(graph: gs.Graph, shifts: Mapping[str, Floats]) -> None:
    """Adds shifts to the biases of `graph`, in place."""
    for node in graph.nodes:
        if node.name in shifts and (place := bias_of(node)):
            reader, index = place
            old = reader.inputs[index]
            values = old.values + shifts[node.name].reshape(old.values.shape)
            reader.inputs[index] = gs.Constant(f"{node.name}.bias.corrected", values.astype(old.values.dtype))


def bias_of(node: gs.Node) -> tuple[gs.Node, int] | None:
    """The node that adds a product's bias, and the index of the bias among its inputs; None without a bias."""
    if node.op in ("Conv", "Gemm"):
        return (node, 2) if len(node.inputs) > 2 else None
    if weight_of(node).values.ndim != 2:
        return None  # UPerNet's taps have one matrix each, and are summed before the bias is added
    outputs = weight_of(node).values.shape[output_axis(node)]
    readers = node.outputs[0].outputs
    if len(readers) == 1 and readers[0].op == "Add":
        for index, tensor in enumerate(readers[0].inputs):
            if isinstance(tensor, gs.Constant) and tensor.values.size == tensor.values.shape[-1] == outputs:
                return readers[0], index
    return None


def _rows(inserter: Inserter, node: gs.Node, tensor: Tensor) -> Tensor:
    """[..., C] -> [C], the mean over everything but the last axis."""
    channels = weight_of(node).values.shape[input_axis(node)]
    flat = inserter.node("Reshape", "mean.rows", [tensor, _ints(inserter, [-1, channels])], _FLOAT, {})
    return _mean(inserter, flat, [0])


def _taps(inserter: Inserter, node: gs.Node, tensor: Tensor) -> Tensor:
    """[N, C, H, W] -> [taps, C]: the mean of what each tap of a kernel reads over the output's positions."""
    pads = list(node.attrs.get("pads", [0, 0, 0, 0]))
    if any(pads):
        amounts = _ints(inserter, [0, 0, *pads[:2], 0, 0, *pads[2:]])
        tensor = inserter.node("Pad", "mean.padded", [tensor, amounts], _FLOAT, {"mode": "constant"})
    height, width = weight_of(node).values.shape[2:]
    axes, steps = _ints(inserter, [2, 3]), _ints(inserter, list(node.attrs.get("strides", [1, 1])))
    means = []
    for y in range(height):
        for x in range(width):
            # From the end, so that the map's size need not be known: the last tap reads up to the edge.
            ends = [_END if tap == side - 1 else tap - side + 1 for tap, side in ((y, height), (x, width))]
            inputs = [tensor, _ints(inserter, [y, x]), _ints(inserter, ends), axes, steps]
            means.append(_mean(inserter, inserter.node("Slice", "mean.tap", inputs, _FLOAT, {}), [0, 2, 3]))
    rows = [inserter.node("Unsqueeze", "mean.row", [mean, _ints(inserter, [0])], _FLOAT, {}) for mean in means]
    return inserter.node("Concat", "mean.taps", rows, _FLOAT, {"axis": 0})


def _mean(inserter: Inserter, tensor: Tensor, axes: list[int]) -> Tensor:
    if inserter.graph.opset >= 18:
        return inserter.node("ReduceMean", "mean", [tensor, _ints(inserter, axes)], _FLOAT, {"keepdims": 0})
    return inserter.node("ReduceMean", "mean", [tensor], _FLOAT, {"keepdims": 0, "axes": axes})


def _ints(inserter: Inserter, values: list[int]) -> gs.Constant:
    return gs.Constant(inserter.unique("mean.ints"), np.array(values, np.int64))


def _through(node: gs.Node, weight: npt.NDArray[Any], mean: Floats) -> Floats:
    """The product's output for a mean input: float64 [outputs]."""
    if node.op != "Conv":
        return np.tensordot(mean, weight, axes=(0, input_axis(node)))
    outputs, inputs, *kernel = weight.shape
    groups = mean.shape[1] // inputs
    taps = mean.T.reshape(groups, inputs, *kernel)
    return np.einsum("goiyx,giyx->go", weight.reshape(groups, outputs // groups, inputs, *kernel), taps).reshape(-1)

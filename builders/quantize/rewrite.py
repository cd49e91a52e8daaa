"""Rewrites an FP32 graph into the graph that is built: INT8 where the plan says so, every other type written down too.

How TensorRT-RTX 1.7 compiles INT8 (read from its layer lists; SM86, SM89 and SM120 alike), and why an engine that is
smaller than the FP16 one has more kernels:
- An INT8 matrix product writes float16, and no operation behind it is fused into it. One more kernel applies the scales
  of its outputs, bias, GELU or residual and the next LayerNorm, and writes INT8 for the next product. fc1 and fc2 share
  such a kernel with the operations between them. q and kv, which only attention reads, have one each.
- The scale of each output is applied only in that kernel. Between the two kernels, float16 holds values as large as the
  output divided by its weights' scale.
- An INT8 convolution writes float32, twice the bytes of FP16, and again needs a kernel for scales and bias. So 1×1
  convolutions become matrix products.
- FP16 attention writes INT8 for the projection: at no cost in GSA; with a copy that joins the heads in LSA.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from twins_trt.builders.export.precision import to_fp16
from twins_trt.builders.plan.levels import FIRST_OPSET
from twins_trt.builders.plan.precision_plan import PrecisionPlan
from twins_trt.builders.plan.sites import Site, block_of, source_of
from twins_trt.builders.quantize.bias import add_shifts
from twins_trt.builders.quantize.insert import Inserter, checked_ranges
from twins_trt.builders.quantize.smooth import smooth_norms
from twins_trt.errors import UsageError
from twins_trt.spelling import spelled

FLOAT_PRECISIONS = {"gpu": "fp16", "cpu": "fp32"}
"""The precision of what does not run in INT8, by the target of the graph. ONNX Runtime has no FP16 kernels on x86."""


@dataclass(frozen=True)
class Quantization:
    """What of a graph runs in INT8.

    nodes: products that read INT8 activations and weights. attentions: blocks whose attention runs in INT8.
    smoothed: outputs of LayerNorms that carry SmoothQuant's scales.
    """

    nodes: tuple[str, ...]
    attentions: tuple[str, ...]
    smoothed: tuple[str, ...]


def quantize(
    graph: gs.Graph,
    plan: PrecisionPlan,
    ranges: Mapping[str, float],
    *,
    float_precision: str = "fp16",
    islands: Mapping[str, str] | None = None,
    channel_ranges: Mapping[str, NDArray] | None = None,
    shifts: Mapping[str, NDArray] | None = None,
    in_float32: bool = False,
) -> Quantization:
    """Rewrites `graph`, an FP32 graph as `build_graph` makes it, in place.

    Weights and activations are INT8, symmetric: a weight with one scale for each output, an activation with one scale.
    Residual sums and LayerNorms are not quantized.

    ranges: the largest magnitude of each tensor in `observed_tensors(graph, plan)`, by the FP32 graph's names.
    float_precision: of what does not run in INT8 (`FLOAT_PRECISIONS`): `fp16` for TensorRT, `fp32` for ONNX Runtime.
    With `fp32`, outputs of convolutions are quantized too: ONNX Runtime has no convolution from INT8 to float.
    islands: nodes that stay float32 in an FP16 graph, as the export names them (`GraphInfo.islands`).
    channel_ranges: for a plan with `smooth`, the largest magnitude of each channel, float [C], of each tensor in
    `smoothed_tensors(graph, sites)`.
    shifts: for a plan with `bias_correction`, what is added to the bias of each product (`mean_shifts`).
    in_float32: leaves float32 where the graph would be FP16. On a CPU this shows the effect of INT8 alone.

    Raises `UsageError` for a plan that does not fit the graph, for missing ranges, and for FP16 with an opset below
    `FIRST_OPSET`.
    """
    if float_precision not in FLOAT_PRECISIONS.values():
        choice = ", ".join(FLOAT_PRECISIONS.values())
        raise UsageError(f"the precision beside INT8 cannot be {float_precision!r}", f"use one of {choice}")
    if float_precision == "fp16" and graph.opset < FIRST_OPSET:
        raise UsageError(
            f"INT8 beside FP16 needs opset {FIRST_OPSET} or later, the graph has {graph.opset}",
            f"export with {spelled('opset', 20)}",
        )
    sites = quantized_sites(graph, plan, float_precision=float_precision)
    checked = checked_ranges(ranges, _observed(graph, sites, float_precision))
    smoothed: dict[str, float] = {}
    if plan.smooth is not None:
        smoothed = smooth_norms(graph, sites, checked, channel_ranges or {}, strength=plan.smooth)
        checked.update(smoothed)
    if plan.bias_correction:
        quantized = {site.node for site in sites}
        add_shifts(graph, {node: shift for node, shift in (shifts or {}).items() if node in quantized})
    inserter = Inserter(graph, checked, float_precision=float_precision)
    nodes = {node.name: node for node in graph.nodes}
    products = [site for site in sites if site.kind != "attention"]
    attentions = [block_of(site.node) for site in sites if site.kind == "attention"]
    for site in products:
        node = nodes[site.node]
        if site.positional:
            _free_residual(inserter, node)
        if _is_pointwise(node):
            node = _as_matmul(inserter, node)
        inserter.product(node)
    for block in attentions:
        _quantize_attention(inserter, nodes, block)
    if float_precision == "fp32":
        for site in products:
            _keep_apart(inserter, nodes[site.node])
            if nodes[site.node].op == "Conv":
                inserter.write(_written(nodes[site.node]))
    inserter.finish()
    if float_precision == "fp16" and not in_float32:
        to_fp16(graph, islands or {})
    return Quantization(tuple(site.node for site in products), tuple(attentions), tuple(smoothed))


def observed_tensors(graph: gs.Graph, plan: PrecisionPlan, *, float_precision: str = "fp16") -> tuple[str, ...]:
    """The tensors of the FP32 `graph` whose ranges `quantize` needs, in the graph's order."""
    sites = quantized_sites(graph, plan, float_precision=float_precision)
    return _observed(graph, sites, float_precision)


def quantized_sites(graph: gs.Graph, plan: PrecisionPlan, *, float_precision: str) -> tuple[Site, ...]:
    """The sites that `quantize` puts into INT8: the plan's, but with `fp32` no positional convolution.

    With `fp32` the output of a convolution is quantized, and that of a positional one is the residual stream.
    """
    return tuple(site for site in plan.int8_sites(graph) if float_precision == "fp16" or not site.positional)


def _observed(graph: gs.Graph, sites: Iterable[Site], float_precision: str) -> tuple[str, ...]:
    nodes = {node.name: node for node in graph.nodes}
    names: list[str] = []
    for site in sites:
        names.append(site.source)
        if site.kind == "attention":
            names += [source_of(tensor).name for tensor in attention_operands(nodes, block_of(site.node))]
        elif float_precision == "fp32" and nodes[site.node].op == "Conv" and not _is_pointwise(nodes[site.node]):
            names.append(_written(nodes[site.node]).name)
    return tuple(dict.fromkeys(names))


def attention_operands(nodes: Mapping[str, gs.Node], block: str) -> list[gs.Variable]:
    """The tensors q, k and v of an attention."""
    scores, context = nodes[f"{block}/scores"], nodes[f"{block}/context"]
    return [scores.inputs[0], scores.inputs[1], context.inputs[1]]


def _quantize_attention(inserter: Inserter, nodes: Mapping[str, gs.Node], block: str) -> None:
    """Puts Q/DQ at q, k, v, the softmax and the attention's output. Without any one the compiler does not fuse it."""
    scores, context, proj = (nodes[f"{block}/{name}"] for name in ("scores", "context", "proj"))
    for node, index in ((scores, 0), (scores, 1), (context, 0), (context, 1)):
        inserter.read(node, index)
    if proj.inputs[0].inputs[0].op != "DequantizeLinear":  # the plan has the projection in FP16
        inserter.read(proj, 0)


def _free_residual(inserter: Inserter, node: gs.Node) -> None:
    """Takes the residual out of a positional convolution's centre tap, so that the residual stream is not quantized."""
    source, kernel, out = node.inputs[0], node.inputs[1].values.copy(), node.outputs[0]
    kernel[:, :, 1, 1] -= 1.0
    node.inputs[1] = gs.Constant(inserter.unique(f"{node.name}.free_weight"), kernel)
    inner = gs.Variable(inserter.unique(f"{node.name}.free"), dtype=out.dtype)
    node.outputs = [inner]
    total = inserter.node("Add", f"{block_of(node.name)}/residual", [source, inner], out.dtype, {})
    _replace(out, total)


def _is_pointwise(node: gs.Node) -> bool:
    return node.op == "Conv" and node.inputs[1].shape[2:] == (1, 1) and node.attrs["strides"] == [1, 1]


def _as_matmul(inserter: Inserter, node: gs.Node) -> gs.Node:
    """Turns a 1×1 convolution into a matrix product over channels-last maps, with the bias added behind it.

    In INT8, TensorRT's convolutions write float32 and its matrix products float16; ONNX Runtime has no convolution from
    INT8 to float. In FP16 the convolution is the better form (see `export.backbone`), so the export writes that one.
    """
    out = node.outputs[0]
    rows = inserter.node("Transpose", f"{node.name}.rows", [node.inputs[0]], out.dtype, {"perm": [0, 2, 3, 1]})
    weight = np.ascontiguousarray(node.inputs[1].values[:, :, 0, 0].T)
    bias = node.inputs[2].values if len(node.inputs) > 2 else None
    node.op, node.attrs = "MatMul", {}
    node.inputs = [rows, gs.Constant(inserter.unique(f"{node.name}.weight_t"), weight)]
    inner = gs.Variable(inserter.unique(f"{node.name}.product"), dtype=out.dtype)
    node.outputs = [inner]
    if bias is not None:
        constant = gs.Constant(inserter.unique(f"{node.name}.bias_row"), bias)
        inner = inserter.node("Add", f"{node.name}.add", [inner, constant], out.dtype, {})
    _replace(out, inserter.node("Transpose", f"{node.name}.map", [inner], out.dtype, {"perm": [0, 3, 1, 2]}))
    return node


def _keep_apart(inserter: Inserter, node: gs.Node) -> None:
    """Writes the bias of a matrix product behind it, as [1, 1, C].

    ONNX Runtime turns a product and a bias of one dimension into a float Gemm before it looks for INT8, and its INT8
    Gemm takes no float bias.
    """
    if node.op == "Gemm":
        out, bias = node.outputs[0], node.inputs.pop(2)
        node.op, node.attrs = "MatMul", {}
        node.outputs = [gs.Variable(inserter.unique(f"{node.name}.product"), dtype=out.dtype)]
        operands = [node.outputs[0], _as_row(inserter, bias)]
        _replace(out, inserter.node("Add", f"{node.name}.add", operands, out.dtype, {}))
    elif node.op == "MatMul":
        for reader in node.outputs[0].outputs:
            for i, tensor in enumerate(reader.inputs):
                if reader.op == "Add" and isinstance(tensor, gs.Constant) and tensor.values.ndim == 1:
                    reader.inputs[i] = _as_row(inserter, tensor)


def _as_row(inserter: Inserter, bias: gs.Constant) -> gs.Constant:
    return gs.Constant(inserter.unique(f"{bias.name}.row"), bias.values[None, None])


def _written(conv: gs.Node) -> gs.Variable:
    """The output of a convolution, or of the Relu behind it."""
    out = conv.outputs[0]
    return out.outputs[0].outputs[0] if len(out.outputs) == 1 and out.outputs[0].op == "Relu" else out


def _replace(old: gs.Variable, new: gs.Variable) -> None:
    """Makes every reader of `old` read `new`, and gives `new` the name of `old`, by which ranges and plans know it."""
    for node in list(old.outputs):
        for i, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[i] = new
    old.name, new.name = f"{old.name}.replaced", old.name

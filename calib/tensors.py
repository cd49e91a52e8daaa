"""Chooses the activations of a graph that are observed, and makes graphs that have them as outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twins_trt.errors import DataError, UsageError, missing
from twins_trt.files import sha256_of

if TYPE_CHECKING:
    import onnx

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Operators that rearrange values and change none. Quantization is inserted before them, where the values are computed.
LAYOUT = frozenset({"Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Identity"})
# Operators between a softmax and the product with v. They move values and change none.
_MOVES = ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")


def graph_sha256(graph: str | Path) -> str:
    """sha256 of the graph's file. Raises DataError where it cannot be read."""
    try:
        return sha256_of(graph)
    except OSError as error:
        raise DataError(f"{graph} cannot be read: {error.strerror}", "export it: twins-trt export") from error


def read_graph(graph: str | Path) -> onnx.ModelProto:
    """Reads an FP32 graph. Raises DataError if the file is no ONNX graph, UsageError if it is FP16 or quantized."""
    try:
        import onnx
    except ImportError as error:
        raise missing("onnx", extra="build", purpose="calibration") from error
    try:
        model = onnx.load(str(graph))
    except Exception as error:  # onnx raises protobuf's own, and OSError
        raise DataError(f"{graph} is not a readable ONNX file ({error})", "export it: twins-trt export") from error
    kinds = {node.op_type for node in model.graph.node}
    quantized = kinds & {"QuantizeLinear", "DequantizeLinear"}
    half = any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in model.graph.initializer)
    if quantized or half:
        raise UsageError(
            f"{graph} is {'already quantized' if quantized else 'FP16'}; ranges are collected on the FP32 graph",
            "export it again: twins-trt export MODEL --precision fp32",
        )
    return model


def observed_tensors(graph: str | Path | onnx.ModelProto) -> tuple[str, ...]:
    """Names of the activations that a quantized graph needs ranges for, in the order the graph computes them.

    These are
    - the input of every Conv, Gemm and MatMul with a constant weight,
    - both inputs of every MatMul of two activations (q and k; softmax and v),
    - the output of a MatMul that follows a softmax (the attention's output),
    - the output of every Conv, behind its Relu if it has one: in a quantized graph for ONNX Runtime it is INT8 too,
    - where one of these only rearranges another tensor, that tensor.
    Raises DataError if there is none, and the errors of `read_graph`.
    """
    model = read_graph(graph) if isinstance(graph, (str, Path)) else graph
    nodes = model.graph.node
    producers = {output: node for node in nodes for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constants = _constants(model)
    observed: dict[str, None] = {}  # an ordered set
    for node in nodes:
        if node.op_type not in LINEAR:
            continue
        active = [name for name in node.input[:2] if name not in constants]
        observed.update(dict.fromkeys(active))
        if node.op_type == "MatMul" and len(active) == 2 and any(_from_softmax(name, producers) for name in active):
            observed[node.output[0]] = None
        if node.op_type == "Conv":
            behind = readers.get(node.output[0], [])
            relu = len(behind) == 1 and behind[0].op_type == "Relu"
            observed[behind[0].output[0] if relu else node.output[0]] = None
    observed.update(dict.fromkeys(_source(name, producers) for name in tuple(observed)))
    if not observed:
        raise DataError("the graph has no Conv, Gemm or MatMul to calibrate", "check that it is the right graph")
    order = {name: index for index, name in enumerate(_computed(model))}
    return tuple(sorted(observed, key=order.__getitem__))


def channelled_tensors(graph: onnx.ModelProto) -> frozenset[str]:
    """The observed tensors that also need a range for each channel, on the last axis: outputs of LayerNorms.

    SmoothQuant folds a scale for each channel into the LayerNorm.
    """
    written = {node.output[0] for node in graph.graph.node if node.op_type == "LayerNormalization"}
    return frozenset(written.intersection(observed_tensors(graph)))


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The part of a graph that computes the tensors `names`, with these as its only outputs."""
    import onnx

    producers = {output: node for node in model.graph.node for output in node.output}
    needed, pending = set(), list(names)
    while pending:
        name = pending.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in producers:
            pending += producers[name].input
    part = onnx.ModelProto()
    part.ir_version = model.ir_version
    part.opset_import.extend(model.opset_import)
    part.graph.name = model.graph.name
    part.graph.node.extend(node for node in model.graph.node if needed & set(node.output))
    part.graph.initializer.extend(weight for weight in model.graph.initializer if weight.name in needed)
    part.graph.input.extend(model.graph.input)
    inputs = {value.name: value for value in model.graph.input}
    for name in names:
        # Without a type or shape: ONNX Runtime infers both.
        part.graph.output.append(inputs[name] if name in inputs else onnx.ValueInfoProto(name=name))
    return part


def graph_inputs(model: onnx.ModelProto) -> list[tuple[str, str, tuple[int | str, ...]]]:
    """(name, element type such as `uint8`, shape) of each input. In a shape, a dynamic extent is its name."""
    from onnx.helper import tensor_dtype_to_np_dtype

    weights = {weight.name for weight in model.graph.initializer}
    return [
        (
            value.name,
            str(tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            tuple(dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim),
        )
        for value in model.graph.input
        if value.name not in weights
    ]


def with_shapes(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The part of a graph that computes the tensors `names`, with the shapes of these as its only outputs, in order."""
    import onnx

    part = with_outputs(model, names)
    del part.graph.output[:]
    for index, name in enumerate(names):
        part.graph.node.append(onnx.helper.make_node("Shape", [name], [f"shape of {index}"]))
        part.graph.output.append(onnx.ValueInfoProto(name=f"shape of {index}"))
    return part


def split_by_size(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Tensors in consecutive groups of at most `limit` bytes. A tensor that is larger has a group of its own.

    sizes: bytes by tensor.
    """
    groups: list[list[str]] = []
    filled = 0
    for name, size in sizes.items():
        if not groups or filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _constants(model: onnx.ModelProto) -> set[str]:
    """Tensors that depend on no input: initializers, Constant nodes, and what is computed from them alone."""
    constants = {weight.name for weight in model.graph.initializer} | {""}
    for node in model.graph.node:  # an ONNX file lists nodes in topological order
        if all(name in constants for name in node.input):
            constants.update(node.output)
    return constants


def _source(name: str, producers: Mapping[str, onnx.NodeProto]) -> str:
    """The tensor that `name` is a rearrangement of, or `name` itself."""
    while name in producers and producers[name].op_type in LAYOUT:
        name = producers[name].input[0]
    return name


def _computed(model: onnx.ModelProto) -> list[str]:
    """All tensors in the order in which the graph computes them."""
    return [value.name for value in model.graph.input] + [name for node in model.graph.node for name in node.output]


def _from_softmax(name: str, producers: Mapping[str, Any]) -> bool:
    """Whether `name` is a softmax's output, perhaps rearranged."""
    while name in producers and producers[name].op_type in _MOVES:
        name = producers[name].input[0]
    return name in producers and producers[name].op_type == "Softmax"

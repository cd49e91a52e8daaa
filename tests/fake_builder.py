"""TensorRT of any version that also builds: an engine of the simulated runtime, from the graph that its parser read.

    module = building_module("10.3.0", gpu)
    install_machine(monkeypatch, gpu, module, ORIN)

Phases, messages and failures of a build follow `module.script` as in `fake_tensorrt`. The inspector lists the layers
that the compiler is known to make of the graph's nodes: an attention is one kernel if its graph is FP16, and a few
kernels if it is float32. `module.unfused`: so many attentions of an FP16 graph are not fused either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fake_arithmetic import OnnxSession, Session
from fake_engines import DTYPES, Faults, runtime_module, serialize
from fake_gpu import FakeGpu
from fake_tensorrt import build_by_script, made, parse_from_file

# What the compiler makes kernels of. Everything else joins the kernel before it.
_KERNELS = {
    "Conv": "correlation",
    "Gemm": "gemm",
    "MatMul": "gemm",
    "LayerNormalization": "kgen",
    "Resize": "kgen",
    "ReduceMax": "kgen",
    "ArgMax": "kgen",
    "Pad": "kgen",
    "AveragePool": "pooling",
}
_PRODUCTS = ("Conv", "Gemm", "MatMul")
_VIEWS = ("Reshape", "Transpose", "Pad", "Cast", "Split", "Slice")
_WORDS = {"UINT8": "UInt8", "INT8": "Int8", "HALF": "Half", "FLOAT": "Float", "INT64": "Int64"}


class _Node(NamedTuple):
    name: str
    operator: str
    inputs: list[str]
    outputs: list[str]


def building_module(
    version: str,
    gpu: FakeGpu,
    faults: Faults | None = None,
    *,
    open_session: Callable[[bytes], Session] = OnnxSession,
    unfused: int = 0,
) -> Any:
    """The module of a version, which builds and runs engines. Arguments are those of `runtime_module`."""
    module = runtime_module(version, gpu, faults, open_session=open_session, behaviours=_BEHAVIOURS)
    module.unfused, module.built = unfused, []
    module.Runtime.engine_host_code_allowed = False  # TensorRT's default
    return module


def _parse(self: Any, path: str) -> bool:
    done = parse_from_file(self, path)
    self._network._graph = Path(path).read_bytes()
    return done


def _add_profile(self: Any, profile: Any) -> int:
    self._profile = profile._shapes
    return 0


def _set_shape(self: Any, name: str, *shapes: Any) -> None:
    self._shapes = [tuple(shape) for shape in shapes]


def _build(self: Any, network: Any, config: Any) -> Any:
    module = self._module
    if module.script.serialized is not None:
        profile = getattr(config, "_profile", None)
        module.script.serialized = serialize(network._graph, version=module.__version__, profile=profile)
    memory = build_by_script(self, network, config)
    if memory is not None:
        module.built.append(bytes(memory))
    return memory


def _new_inspector(self: Any) -> Any:
    inspector = made(self._module, "EngineInspector")
    inspector._engine = self
    return inspector


def _inspect(self: Any, _: Any) -> str:
    module, engine = self._module, self._engine
    major = int(module.__version__.split(".")[0])
    new = major >= 11
    tensors = [_tensor(node.name, DTYPES[node.type], node.shape, new=new) for node in engine._nodes.values()]
    layers = _layers(list(_nodes(engine._graph)), fused=_fuses(engine._graph), unfused=module.unfused)
    if major < 10:
        layers = _foreign(layers)
    for layer in layers:
        layer["Inputs"] = [_tensor(name, "INT8", (), new=new) for name in layer["Inputs"]]
    layers[0]["Inputs"], layers[-1]["Outputs"] = tensors[:1] + layers[0]["Inputs"], tensors[1:]
    return json.dumps({"Layers": layers, "I/O Tensors" if new else "Bindings": [tensor["Name"] for tensor in tensors]})


def _tensor(name: str, dtype: str, shape: Sequence[Any], *, new: bool) -> dict[str, Any]:
    word = _WORDS[dtype]
    described = {"Datatype": word, "Format": "Row major linear"} if new else {"Format/Datatype": word}
    return {"Name": name, "Dimensions": [e if isinstance(e, int) else -1 for e in shape], **described}


def _fuses(graph: bytes) -> bool:
    """No compiler fuses the attentions of a float32 graph (docs/engines.md)."""
    return dict(metadata(graph)).get("twins_trt.precision") != "fp32"


def _layers(nodes: list[_Node], *, fused: bool, unfused: int) -> list[dict[str, Any]]:
    """The layers as the inspector lists them, in the order of the graph. Inputs: the names of INT8 tensors alone."""
    makers = {output: node for node in nodes for output in node.outputs}
    attentions = _attentions(nodes)
    apart = attentions[len(attentions) - unfused :] if fused else attentions
    starts = {start: stop for start, stop in attentions if (start, stop) not in apart}
    layers: list[dict[str, Any]] = []
    at = 0
    while at < len(nodes):
        stop = starts.get(at, at)
        kind = "gemm" if at in starts else _kind(nodes[at])
        names = [f"[ONNX Layer: {node.name}]" for node in nodes[at : stop + 1]]
        if kind is None and layers:
            layers[-1]["Metadata"] += "".join(f"\x1e{name}" for name in names)
        else:
            name = "_gemm_mha_v2" if at in starts else f"__myl_{nodes[at].operator[:4].title()}"
            layers.append(
                {
                    "Name": f"{name}_myl{len(layers)}",
                    "LayerType": kind or "kgen",
                    "Inputs": [name for node in nodes[at : stop + 1] for name in _int8_inputs(node, makers)],
                    "Outputs": [],
                    "TacticName": "_gemm_mha_v2_0x1f" if at in starts else "",
                    "Metadata": "\x1e".join(names),
                }
            )
        at = stop + 1
    return layers


def _foreign(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The layers as TensorRT 8 lists them: one for all from the first fused attention to the last (TensorRT#4157)."""
    fused = [index for index, layer in enumerate(layers) if layer["TacticName"]]
    if not fused:
        return layers
    inside = layers[fused[0] : fused[-1] + 1]
    nodes = "\x1e".join(layer["Metadata"] for layer in inside)
    names = [name.removeprefix("[ONNX Layer: ").removesuffix("]") for name in nodes.split("\x1e")]
    one = inside[0] | {
        "Name": f"{{ForeignNode[{names[0]}...{names[-1]}]}}",
        "LayerType": "Myelin",
        "Inputs": [name for layer in inside for name in layer["Inputs"]],
        "TacticName": "",
        "Metadata": nodes,
    }
    return [*layers[: fused[0]], one, *layers[fused[-1] + 1 :]]


def _int8_inputs(node: _Node, makers: Mapping[str, _Node]) -> list[str]:
    """Names of what a product reads in INT8: what was dequantized on the way to it."""
    found = []
    for name in node.inputs if node.operator in _PRODUCTS else ():
        maker = makers.get(name)
        while maker is not None and maker.operator in _VIEWS:
            maker = makers.get(maker.inputs[0])
        found += [name] if maker is not None and maker.operator == "DequantizeLinear" else []
    return found


def _kind(node: _Node) -> str | None:
    return "kgen" if node.operator == "Softmax" else _KERNELS.get(node.operator)


def _attentions(nodes: list[_Node]) -> list[tuple[int, int]]:
    """The first and last node of every attention: scores, softmax, and the product with the values."""
    products = [index for index, node in enumerate(nodes) if node.operator == "MatMul"]
    found = []
    for index, node in enumerate(nodes):
        before, after = [p for p in products if p < index], [p for p in products if p > index]
        if node.operator == "Softmax" and before and after:
            found.append((before[-1], after[0]))
    return found


def _nodes(graph: bytes) -> Iterator[_Node]:
    """Every node of an ONNX file (onnx.proto: ModelProto.graph = 7, GraphProto.node = 1; NodeProto.input = 1, output =
    2, name = 3, op_type = 4)."""
    for field, body in _fields(graph):
        if field == 7:
            for part, node in _fields(body):
                if part == 1:
                    texts: dict[int, list[str]] = {1: [], 2: [], 3: [""], 4: [""]}
                    for number, text in _fields(node):
                        if number in texts:
                            texts[number].append(text.decode())
                    yield _Node(texts[3][-1], texts[4][-1], texts[1], texts[2])


def metadata(graph: bytes) -> Iterator[tuple[str, str]]:
    """Keys and values of an ONNX file's metadata (ModelProto.metadata_props = 14)."""
    for field, body in _fields(graph):
        if field == 14:
            pair = dict(_fields(body))
            yield pair[1].decode(), pair.get(2, b"").decode()


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and content of every field of a protobuf message."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = number()
        if key & 7 == 0:
            yield key >> 3, number()
            continue
        length = {1: 8, 5: 4}.get(key & 7) or number()
        yield key >> 3, message[at : at + length]
        at += length


_BEHAVIOURS: dict[tuple[str, str], Any] = {
    ("OnnxParser", "parse_from_file"): _parse,
    ("IOptimizationProfile", "set_shape"): _set_shape,
    ("IBuilderConfig", "add_optimization_profile"): _add_profile,
    ("Builder", "build_serialized_network"): _build,
    ("ICudaEngine", "create_engine_inspector"): _new_inspector,
    ("EngineInspector", "get_engine_information"): _inspect,
}

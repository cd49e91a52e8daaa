"""The final layer list of an engine, as the compiler reports it, in one form for every flavour.

There are two sources: the list that a build of TensorRT-RTX prints into its verbose log, without a GPU, and the JSON of
`EngineInspector`, which needs a CUDA device. Both need `ProfilingVerbosity.DETAILED` at build time. A printed line is
first split into what the inspector says of a layer, so that one parser reads both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from twins_trt.errors import BuildError

# The compiler's word for a data type, lower-cased and without blanks -> our name, which is numpy's if numpy has one.
_DTYPES = {
    "float": "float32",
    "fp32": "float32",
    "half": "float16",
    "fp16": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "double": "float64",
    "int64": "int64",
    "int32": "int32",
    "int8": "int8",
    "uint8": "uint8",
    "bool": "bool",
    "fp8": "float8",
    "fp8e4m3": "float8",
    "int4": "int4",
    "fp4": "float4",
    "fp4e2m1": "float4",
    "e8m0": "float8_e8m0",
}
_BITS = {
    "float64": 64,
    "int64": 64,
    "float32": 32,
    "int32": 32,
    "float16": 16,
    "bfloat16": 16,
    "int8": 8,
    "uint8": 8,
    "bool": 8,
    "float8": 8,
    "float8_e8m0": 8,
    "int4": 4,
    "float4": 4,
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a kernel: `shape` with -1 for a dynamic extent, `dtype` a numpy name, `format` as printed.

    The same memory may appear under several names and shapes, because the compiler makes views.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    format: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the values; a dynamic dimension counts as one, an unknown data type as one byte a value."""
        return (prod(extent if extent >= 0 else 1 for extent in self.shape) * _BITS.get(self.dtype, 8) + 7) // 8

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype, "format": self.format}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tensor:
        return cls(data["name"], tuple(data["shape"]), data["dtype"], data.get("format", ""))


@dataclass(frozen=True)
class Layer:
    """One launch of the finished engine.

    `type`: the compiler's kind (`gemm`, `kgen`, `correlation`, `runtime_fusion`, ...), lower-cased. `constants`:
    weights and folded tensors that it reads. `nodes`: the ONNX nodes that it computes, if the compiler kept their
    names.
    """

    name: str
    type: str
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    constants: tuple[Tensor, ...] = ()
    tactic: str = ""
    nodes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "type": self.type,
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
            "constants": [tensor.to_json() for tensor in self.constants],
            "tactic": self.tactic,
            "nodes": list(self.nodes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layer:
        inputs, outputs, constants = (
            tuple(Tensor.from_json(tensor) for tensor in data.get(key, ()))
            for key in ("inputs", "outputs", "constants")
        )
        nodes = tuple(data.get("nodes", ()))
        return cls(data["name"], data["type"], inputs, outputs, constants, data.get("tactic", ""), nodes)


_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\[ONNX Layer: |[\x1e\x1f\s]|$)")
# The data type in "Format/Datatype" up to 10.x, which is a word ("Half") or a text ("Row major linear FP16 format").
_WORDS = re.compile(
    r"\b(bfloat16|bf16|float16|half|fp16|fp8|fp4|float|fp32|double|int64|int32|uint8|int8|int4|bool)\b", re.IGNORECASE
)


def _layer(entry: Mapping[str, Any]) -> Layer:
    """A layer as `EngineInspector` describes it."""
    inputs, outputs, constants = (
        tuple(_tensor(tensor) for tensor in entry.get(key, ())) for key in ("Inputs", "Outputs", "Constants")
    )
    return Layer(
        name=str(entry.get("Name", "")),
        type=str(entry.get("LayerType", "")).lower(),
        inputs=inputs,
        outputs=outputs,
        constants=constants,
        tactic=str(entry.get("TacticName", "")),
        nodes=tuple(_NODE.findall(entry.get("Metadata") or "")),
    )


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    """A tensor as `EngineInspector` describes it."""
    combined = str(entry.get("Format/Datatype", ""))
    text = str(entry.get("Datatype", entry.get("DataType", "")))
    if not text:
        found = _WORDS.search(combined)
        text = found[1] if found else combined
    shape = tuple(_extent(str(extent)) for extent in entry.get("Dimensions", ()))
    return Tensor(str(entry.get("Name", "")), shape, _dtype(text), str(entry.get("Format", combined)))


def _extent(text: str) -> int:
    text = text.strip()
    return int(text) if text.lstrip("-").isdigit() else -1


def _dtype(text: str) -> str:
    word = re.sub(r"[\s_\-]", "", text).lower()
    return _DTYPES.get(word, word)


def parse_inspector(text: str) -> tuple[Layer, ...]:
    """The layers in `EngineInspector.get_engine_information(JSON)` of any version.

    TensorRT 11 lists inputs and outputs under "I/O Tensors" and has "Datatype" and "Format" for a tensor. Older
    versions list them under "Bindings" and have one "Format/Datatype". Raises BuildError if the text has no details.
    """
    try:
        data = json.loads(text)
        entries = data["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise BuildError("the engine inspector's answer holds no layer list") from error
    if not ("Bindings" in data or "I/O Tensors" in data):
        raise BuildError("the engine inspector's answer names no inputs and outputs")
    # Engines built with less than DETAILED list bare names.
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise BuildError("the engine keeps layer names only", "build it with detailed profiling verbosity")
    return tuple(map(_layer, entries))


_PRINTED_TENSOR = re.compile(
    r"Name: (?P<Name>.*?), Dimensions: \[(?P<Dimensions>[^\]]*)\],.*?Datatype: (?P<Datatype>[^,]+?)"
    r"(?:, Format: (?P<Format>.*))?$"
)
_KEYS = ("Name", "LayerType", "Inputs", "Constants", "Outputs", "TacticName", "StreamId", "Metadata")


def parse_build_log(log: str) -> tuple[Layer, ...]:
    """The layers that a build with DETAILED profiling verbosity printed into its verbose log.

    `log`: the message that starts with "Layers:", or a whole log with that message (the last one counts).
    Raises BuildError if there is no such list, or if a line of it is not a layer with its tensors.
    """
    start = log.rfind("Layers:\nName: ")
    if start < 0:
        raise BuildError(
            "the build printed no layer list", "build with detailed profiling verbosity and a logger that keeps VERBOSE"
        )
    body = log[start + len("Layers:\n") :]
    body = body.split("\nI/O Tensors:", 1)[0]
    return tuple(_layer(_printed_layer(line)) for line in body.splitlines() if line.strip())


def _printed_layer(line: str) -> dict[str, Any]:
    """One printed layer, with the keys and values that `EngineInspector` has for it. Raises BuildError."""
    fields: dict[str, Any] | None = _split(line)
    if fields is None:
        raise BuildError(f"a line of the layer list does not read as a layer: {line[:120]!r}")
    return fields | {key: _printed_tensors(fields[key]) for key in ("Inputs", "Outputs", "Constants") if key in fields}


def _split(line: str) -> dict[str, Any] | None:
    """The fields of one printed layer. Brackets nest inside its lists, so a list ends where the next key starts."""
    starts: list[tuple[str, int, int]] = []
    at = 0
    for key in _KEYS:
        marker = f"{key}: " if key == "Name" else f", {key}: "
        found = line.find(marker, at)
        if found < 0:
            continue
        at = found + len(marker)
        starts.append((key, found, at))
    if len(starts) < 4 or starts[0][1] != 0:
        return None
    ends = [start[1] for start in starts[1:]] + [len(line)]
    return {key: line[begin:end].strip() for (key, _, begin), end in zip(starts, ends, strict=True)}


def _printed_tensors(text: str) -> list[dict[str, Any]]:
    """The tensors of `[ { Name: ... }, { Name: ... }]`. Raises BuildError for an entry that it cannot read: without it
    the audit would count too little."""
    tensors = []
    for part in re.split(r" ?\}, \{ ", text.strip().removeprefix("[").removesuffix("]").strip()):
        entry = part.strip().removeprefix("{").removesuffix("}").strip()
        if not entry:
            continue
        match = _PRINTED_TENSOR.match(entry)
        if match is None:
            raise BuildError(f"an entry of the layer list does not read as a tensor: {entry[:120]!r}")
        shape = [extent for extent in match["Dimensions"].split(",") if extent.strip()]
        tensors.append({**match.groupdict(), "Dimensions": shape, "Format": (match["Format"] or "").strip()})
    return tensors

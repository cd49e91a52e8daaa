"""The header of an ONNX file, read without `onnx`, which a Jetson that only builds and runs does not have.

An ONNX file is one protobuf message. The reader goes through its fields and skips the weights, so a file of hundreds of
megabytes takes milliseconds. It also refuses an empty or foreign file, which the compilers' own parsers read as a
network without outputs. Field numbers: onnx.proto of ONNX 1.16.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twins_trt.errors import BuildError

# The values of TensorProto.DataType that graph inputs and weights have.
_ELEMENT = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    16: "bfloat16",
    17: "float8",
}


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph. An extent is a size, the name of a dynamic dimension, or None without a name."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    @property
    def dynamic(self) -> bool:
        return not all(isinstance(extent, int) for extent in self.shape)


@dataclass(frozen=True)
class GraphHeader:
    """What an ONNX file holds besides its weights.

    `opset`: of the standard operators. `operators`: how often each one occurs. `metadata`: the file's strings by key.
    `weight_dtypes`: data types of the initializers. `external`: files beside the graph that hold its weights.
    """

    producer: str
    opset: int
    operators: dict[str, int]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    weight_dtypes: frozenset[str]
    external: tuple[str, ...]


class _Malformed(Exception):
    """The bytes are not a protobuf message. `cut`: they end in the middle of one."""

    def __init__(self, *, cut: bool = False) -> None:
        self.cut = cut
        super().__init__()


Buffer = mmap.mmap | bytes


def _varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise _Malformed
    raise _Malformed(cut=True)


def _fields(data: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, its value if it is a number, start and end of a nested message or string) of every field."""
    at = start
    while at < end:
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise _Malformed
        if wire == 0:
            value, at = _varint(data, at, end)
            yield number, value, at, at
            continue
        if wire == 2:
            length, at = _varint(data, at, end)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise _Malformed
        if at + length > end:
            raise _Malformed(cut=True)
        yield number, 0, at, at + length
        at += length


def _text(data: Buffer, start: int, end: int) -> str:
    return bytes(data[start:end]).decode("utf-8", "replace")


def _pair(data: Buffer, start: int, end: int) -> tuple[str, str]:
    pair = {1: "", 2: ""}
    for number, _, begin, stop in _fields(data, start, end):
        pair[number] = _text(data, begin, stop)
    return pair[1], pair[2]


def _tensor(data: Buffer, start: int, end: int) -> TensorInfo:
    name, element = "", 0
    shape: list[int | str | None] = []
    for number, _, begin, stop in _fields(data, start, end):
        if number == 1:
            name = _text(data, begin, stop)
        elif number == 2:  # TypeProto, whose field 1 is a tensor: element type, then shape
            for kind, _, type_begin, type_stop in _fields(data, begin, stop):
                if kind != 1:
                    continue
                for part, value, part_begin, part_stop in _fields(data, type_begin, type_stop):
                    if part == 1:
                        element = value
                    elif part == 2:
                        shape = [_extent(data, b, e) for n, _, b, e in _fields(data, part_begin, part_stop) if n == 1]
    return TensorInfo(name, _ELEMENT.get(element, f"type {element}"), tuple(shape))


def _extent(data: Buffer, start: int, end: int) -> int | str | None:
    for number, value, begin, stop in _fields(data, start, end):
        if number == 1:
            return value
        if number == 2:
            return _text(data, begin, stop)
    return None


def _weight(data: Buffer, start: int, end: int) -> tuple[str, str]:
    """Data type of an initializer and the file that holds it, "" if the graph itself does."""
    element, location = 0, ""
    for number, value, begin, stop in _fields(data, start, end):
        if number == 2:
            element = value
        elif number == 13:
            key, text = _pair(data, begin, stop)
            location = text if key == "location" else location
    return _ELEMENT.get(element, f"type {element}"), location


def _operator(data: Buffer, start: int, end: int) -> str:
    operator = domain = ""
    for number, _, begin, stop in _fields(data, start, end):
        if number == 4:
            operator = _text(data, begin, stop)
        elif number == 7:
            domain = _text(data, begin, stop)
    return operator if domain in ("", "ai.onnx") else f"{domain}::{operator}"


def _read(data: Buffer) -> GraphHeader:
    producer, opset = "", 0
    operators: Counter[str] = Counter()
    inputs: list[TensorInfo] = []
    outputs: list[TensorInfo] = []
    metadata: dict[str, str] = {}
    weights: set[tuple[str, str]] = set()
    initialized: set[str] = set()
    for number, _, start, end in _fields(data, 0, len(data)):
        if number == 2:
            producer = _text(data, start, end)
        elif number == 8:
            # OperatorSetIdProto: domain, version; the standard domain is the empty one.
            entry = {field: (value, _text(data, b, e)) for field, value, b, e in _fields(data, start, end)}
            if entry.get(1, (0, ""))[1] in ("", "ai.onnx"):
                opset = entry.get(2, (0, ""))[0]
        elif number == 14:
            key, text = _pair(data, start, end)
            metadata[key] = text
        elif number == 7:
            for part, _, begin, stop in _fields(data, start, end):
                if part == 1:
                    operators[_operator(data, begin, stop)] += 1
                elif part == 5:
                    weights.add(_weight(data, begin, stop))
                    initialized.update(_text(data, b, e) for n, _, b, e in _fields(data, begin, stop) if n == 8)
                elif part == 11:
                    inputs.append(_tensor(data, begin, stop))
                elif part == 12:
                    outputs.append(_tensor(data, begin, stop))
    return GraphHeader(
        producer=producer,
        opset=opset,
        operators=dict(operators.most_common()),
        # Before IR version 4 weights were listed among the inputs as well.
        inputs=tuple(tensor for tensor in inputs if tensor.name not in initialized),
        outputs=tuple(outputs),
        metadata=metadata,
        weight_dtypes=frozenset(dtype for dtype, _ in weights),
        external=tuple(sorted({location for _, location in weights if location})),
    )


def read_header(path: Path | str) -> GraphHeader:
    """The header of an ONNX file.

    Raises BuildError for a file that is missing, cut short or not an ONNX graph, or whose weights file is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise BuildError(f"there is no graph at {path}", "export one first: twins-trt export MODEL --out graph.onnx")
    if path.stat().st_size == 0:
        raise BuildError(f"{path} is empty", "export the graph again")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _read(data)
    except _Malformed as error:
        if error.cut and path.suffix == ".onnx":
            raise BuildError(f"{path} is truncated or no ONNX file", "copy or export the graph again") from error
        raise BuildError(f"{path} is not an ONNX file", "give a graph that twins-trt export wrote") from error
    if not header.outputs or not header.operators or header.opset == 0:
        raise BuildError(f"{path} holds no ONNX graph with outputs", "give a graph that twins-trt export wrote")
    for location in header.external:
        if not (path.parent / location).is_file():
            raise BuildError(
                f"{path} keeps its weights in {location}, which is not beside it", "copy both files into one folder"
            )
    return header

"""TensorRT modules of any version, made from their real names and signatures, for tests without TensorRT or a GPU.

`fake_module("10.3.0")` returns a module that has exactly the classes, members and enum values that the bindings of that
version have (`tensorrt_names.json`, read from the real ones by `tensorrt_bindings.py`). What a version lacks raises
AttributeError, also when it is assigned to; a wrong number of arguments, or an argument of another class or enum,
raises TypeError as pybind11 does. So code that runs against it calls only what is there.

Behind the names is a small simulation: parsing and building follow a `Script`, the timing cache is bytes, the inspector
answers in that version's JSON. `module.calls` lists every call as (class, method, arguments), in order; `calls` finds
those of one method.

    trt = install(monkeypatch, "11.4.0", Script(layers=[{"Name": "fc", "LayerType": "gemm"}]))
"""

from __future__ import annotations

import enum
import importlib.machinery
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import TYPE_CHECKING, Any, SupportsIndex

if TYPE_CHECKING:
    import pytest  # a benchmark reads the names where there may be none

NAMES = Path(__file__).with_name("tensorrt_names.json")
COMPILERS = {"tensorrt_rtx": "rtx-1.7.1.116", "tensorrt": "10.13.3.9"}  # flavour -> the version that stands for it


@dataclass
class Script:
    """What happens in a simulated parse and build.

    `serialized`: the engine; None for a build that fails. `parse_errors`: (description, node name, operator) of a parse
    that fails. `parse_messages`, `messages`: (severity name, text) logged while parsing and while building. `layers`:
    the engine's layers, as inspector JSON. `layer_log`: the list that TensorRT-RTX prints instead.
    `phases`: (name, parent or None, steps) the monitor is told of, one after another. `during`: called at every step.
    `network`: (layer type name, data type name of its output) of every layer of the parsed network.
    """

    serialized: bytes | None = b"engine"
    parse_errors: Sequence[tuple[str, str, str]] = ()
    parse_messages: Sequence[tuple[str, str]] = ()
    messages: Sequence[tuple[str, str]] = ()
    layers: Sequence[Any] = ()
    layer_log: str = ""
    phases: Sequence[tuple[str, str | None, int]] = (("Building engine", None, 2),)
    during: Callable[[], None] | None = None
    network: Sequence[tuple[str, str]] = ()
    refuses_cache: bool = False
    device: bool = True
    loads: bool = True
    cancelled: bool = field(default=False, init=False)  # set by a build that its monitor stopped
    ended: Event = field(default_factory=Event, init=False)  # set by a build that returns


@cache
def _descriptions() -> dict[str, Any]:
    return json.loads(NAMES.read_text())


def versions() -> list[str]:
    """The versions there is a description of, RTX's with the prefix "rtx-"."""
    return list(_descriptions())


def describe(version: str) -> dict[str, Any]:
    """{"classes", "enums"} of a version, named in full or by its beginning."""
    (match,) = [name for name in _descriptions() if name == version or name.startswith(f"{version}.")]
    return _descriptions()[match]


class _EnumType(enum.EnumMeta):
    """pybind11's enums are plain classes with `__members__`: no subscripts, no iteration, no length."""

    def __getitem__(cls, name: str) -> Any:
        raise TypeError(f"type {cls.__name__!r} is not subscriptable")

    def __iter__(cls) -> Any:
        raise TypeError(f"{type(cls).__name__!r} object is not iterable")

    def __len__(cls) -> int:
        raise TypeError(f"object of type {type(cls).__name__!r} has no len()")


class _Enum(enum.Enum, metaclass=_EnumType):
    """Base of the simulated enums: a member becomes a number where it is asked to, and is equal to none."""

    def __int__(self) -> int:
        return int(self.value)

    def __index__(self) -> int:
        return int(self.value)

    def __hash__(self) -> int:
        return hash(self.value)

    def __lt__(self, other: Any) -> Any:
        # Only these members have an order in every version.
        if type(self) is not type(other) or type(self).__name__ != "Severity":
            return NotImplemented
        return int(self) < int(other)


def _enum(name: str, values: Mapping[str, int], **options: Any) -> Any:
    make: Any = _Enum  # which has no members yet, and so makes an enum
    return make(name, values, **options)


class _Parameter:
    """One parameter of a pybind11 signature: its type's name, and whether it may be left out."""

    def __init__(self, text: str) -> None:
        annotation = text.partition(":")[2] or text
        self.type = annotation.partition("=")[0].strip()
        self.optional = "=" in annotation


def _parse(signature: str) -> tuple[list[_Parameter], str]:
    """Parameters after self, and the name of the returned type."""
    body, _, returned = signature[signature.index("(") + 1 :].rpartition(") -> ")
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(body):
        depth += letter in "[(<"
        depth -= letter in "])>" and body[at - 1] != "-"
        if letter == "," and depth == 0:
            parts.append(body[start:at])
            start = at + 1
    parts.append(body[start:])
    return [_Parameter(part.strip()) for part in parts if part.strip()][1:], returned.strip()


class _Fake:
    """Base of all simulated classes: knows its members and refuses others."""

    _module: Any
    _members: dict[str, str]

    def __setattr__(self, name: str, value: Any) -> None:
        derived = type(self).__module__ != self._module.__name__  # a test's own subclass may hold what it likes
        if not (derived or name.startswith("_") or self._members.get(name) == ""):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if not name.startswith("_"):
            given = () if name == "profiler" else (value,)  # a list of calls must not keep alive what bindings do not
            self._module.calls.append((type(self).__name__, name, given))
        object.__setattr__(self, name, value)


def _lookup(module: Any, name: str) -> Any:
    """The module's class or enum of a type name; a signature may have it in C++ ("nvinfer1::IEngineInspector")."""
    plain = name.rpartition("::")[2]
    found = module
    for part in plain.split("."):
        found = getattr(found, part, None)
    return found if found is not None else getattr(module, plain.removeprefix("I"), None)


def _check(module: Any, owner: str, name: str, parameters: Sequence[_Parameter], given: Sequence[Any]) -> None:
    required = sum(not parameter.optional for parameter in parameters)
    if not required <= len(given) <= len(parameters):
        raise TypeError(f"{owner}.{name}(): incompatible function arguments: {len(given)} given, {required} wanted")
    for parameter, value in zip(parameters, given, strict=False):
        kind: Any = {
            "int": SupportsIndex,
            "typing.SupportsInt": SupportsIndex,
            "bool": bool,
            "str": str,
        }.get(parameter.type)
        if kind is None:
            kind = _lookup(module, parameter.type)
            if parameter.type == "Dims":
                kind = (tuple, list)
            elif parameter.type in ("tuple", "list"):
                kind = {"tuple": tuple, "list": list}[parameter.type]
            elif parameter.type in ("buffer", "typing_extensions.Buffer"):
                kind = (bytes, bytearray, memoryview, module.IHostMemory)
        if kind is None and parameter.type.startswith("I") and type(value).__module__ == "builtins":
            kind = ()  # a class of the bindings that is not recorded: no builtin value is one
        if isinstance(kind, (type, tuple)) and not isinstance(value, kind):
            raise TypeError(f"{owner}.{name}(): {parameter.type} wanted, {type(value).__name__} given")


def _method(module: Any, owner: str, name: str, signature: str, behaviour: Callable[..., Any] | None) -> Any:
    overloads = [] if signature == "..." else [_parse(line) for line in signature.split("\n")]
    returned = overloads[0][1] if overloads else ""

    def call(self: Any, *given: Any) -> Any:
        refused: list[TypeError] = []
        for parameters, _ in overloads:
            try:
                _check(module, owner, name, parameters, given)
            except TypeError as error:
                refused.append(error)
        if overloads and len(refused) == len(overloads):
            raise refused[0]
        refused.clear()  # they hold this frame, and so what all its callers hold
        module.calls.append((owner, name, given))
        if behaviour is not None:
            return behaviour(self, *given)
        if returned in ("bool", "int", "str"):
            return {"bool": True, "int": 0, "str": ""}[returned]
        kind = _lookup(module, returned)
        return object.__new__(kind) if isinstance(kind, type) and issubclass(kind, _Fake) else None

    call.__name__ = name
    return call


def fake_module(
    version: str,
    script: Script | None = None,
    *,
    behaviours: Mapping[tuple[str, str], Callable[..., Any]] | None = None,
) -> Any:
    """A module with the names of that TensorRT version, called "tensorrt" or "tensorrt_rtx", acting out `script`.

    behaviours: (class, member) -> what it does, beside and before those of a build.
    """
    behaviours = {**_BEHAVIOURS, **(behaviours or {})}
    description = describe(version)
    full = next(name for name, each in _descriptions().items() if each is description)
    module: Any = ModuleType("tensorrt_rtx" if full.startswith("rtx-") else "tensorrt")
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    module.__version__ = full.removeprefix("rtx-")
    module.calls = []
    module.script = script = script or Script()
    for name, values in description["enums"].items():
        if "." not in name:
            setattr(module, name, _enum(name, values, module=module.__name__))
    severity = _enum("Severity", description["enums"]["ILogger.Severity"])
    for name, members in description["classes"].items():
        body: dict[str, Any] = {"_module": module, "_members": members, "__init__": _INITS.get(name, _no_constructor)}
        for member, signature in members.items():
            behaviour = behaviours.get((name, member))
            if member in severity.__members__ or member == "Severity":
                body[member] = severity if member == "Severity" else severity.__members__[member]
            elif signature:
                body[member] = _method(module, name, member, signature, behaviour)
            elif behaviour is not None:
                body[member] = property(behaviour)
            else:
                body[member] = None
        body["__module__"] = module.__name__
        setattr(module, name, type(name, (_Fake,), body))
    module.IHostMemory.__bytes__ = lambda self: self._content
    return module


def install(
    monkeypatch: pytest.MonkeyPatch, version: str, script: Script | None = None, *, name: str | None = None
) -> Any:
    """From now on an import finds the module of that version. name: the one it is found by, if not its own."""
    module = fake_module(version, script)
    monkeypatch.setitem(sys.modules, name or module.__name__, module)
    return module


def install_compilers(monkeypatch: pytest.MonkeyPatch, flavours: Collection[str] = tuple(COMPILERS)) -> None:
    """From now on this machine has the compilers of these flavours and no others."""
    for flavour, version in COMPILERS.items():
        if flavour in flavours:
            install(monkeypatch, version)
        else:
            monkeypatch.setitem(sys.modules, flavour, None)


def calls(module: Any, name: str) -> list[tuple[Any, ...]]:
    """The arguments of every call of a method, of any class, in order."""
    return [given for _, called, given in module.calls if called == name]


def made(module: Any, name: str) -> Any:
    """An object of a class that only the library makes."""
    return object.__new__(getattr(module, name))


def _no_arguments(self: Any, *given: Any) -> None:
    if given:
        raise TypeError(f"{type(self).__name__}(): no constructor takes {len(given)} arguments")


def _no_constructor(self: Any, *given: Any) -> None:
    raise TypeError(f"{type(self).__name__}: No constructor defined!")


def _with_logger(self: Any, logger: Any) -> None:
    if not isinstance(logger, self._module.ILogger):
        raise TypeError(f"{type(self).__name__}(): ILogger wanted")
    self._module.calls.append((type(self).__name__, "__init__", (logger,)))
    if not self._module.script.device:
        raise TypeError("pybind11::init(): factory function returned nullptr")
    self._logger = logger


def _parser(self: Any, network: Any, logger: Any) -> None:
    if not isinstance(network, self._module.INetworkDefinition) or not isinstance(logger, self._module.ILogger):
        raise TypeError("OnnxParser(): INetworkDefinition and ILogger wanted")
    self._network = network
    self._logger = logger


def _say(module: Any, logger: Any, severity: str, text: str) -> None:
    logger.log(module.ILogger.Severity.__members__[severity], text)


def _create_network(self: Any, flags: int = 0) -> Any:
    known = {int(flag) for flag in self._module.NetworkDefinitionCreationFlag.__members__.values()}
    if any(flags >> bit & 1 and bit not in known for bit in range(32)):
        raise ValueError(f"unknown network creation flags {flags:#b}")
    network = made(self._module, "INetworkDefinition")
    network._flags = flags
    return network


def parse_from_file(self: Any, path: str) -> bool:
    """What `OnnxParser.parse_from_file` does by the script."""
    module, script = self._module, self._module.script
    if "EXPLICIT_BATCH" in module.NetworkDefinitionCreationFlag.__members__ and module.__version__.startswith("8."):
        assert self._network._flags & 1, "8.x parses ONNX into explicit-batch networks only"
    for severity, text in script.parse_messages:
        _say(module, self._logger, severity, text)
    for description, node, _ in script.parse_errors:
        _say(module, self._logger, "ERROR", f"While parsing node {node}: {description}")
    self._network._layers = [_layer(module, kind, dtype) for kind, dtype in script.network]
    return not script.parse_errors


def _layer(module: Any, kind: str, dtype: str) -> Any:
    layer = made(module, "ILayer")
    tensor = made(module, "ITensor")
    object.__setattr__(tensor, "dtype", module.DataType.__members__[dtype])
    object.__setattr__(layer, "type", module.LayerType.__members__[kind])
    object.__setattr__(layer, "num_outputs", 1)
    layer._output = tensor
    return layer


def _get_error(self: Any, index: int) -> Any:
    error = made(self._module, "ParserError")
    error._fields = self._module.script.parse_errors[index]
    return error


def build_by_script(self: Any, network: Any, config: Any) -> Any:
    """What `Builder.build_serialized_network` does: messages, phases, and the script's engine or None."""
    try:
        return _act_out(self, config)
    finally:
        self._module.script.ended.set()


def _act_out(self: Any, config: Any) -> Any:
    module, script = self._module, self._module.script
    monitor = getattr(config, "progress_monitor", None)
    for severity, text in script.messages:
        _say(module, self._logger, severity, text)
    for name, parent, steps in script.phases:
        if monitor is not None:
            monitor.phase_start(name, parent, steps)
        for step in range(steps):
            if script.during is not None:
                script.during()
            if monitor is not None and not monitor.step_complete(name, step):
                script.cancelled = True
                return None
    for name, _, _ in reversed(script.phases):
        if monitor is not None:
            monitor.phase_finish(name)
    if script.layer_log and script.serialized is not None:
        _say(module, self._logger, "VERBOSE", script.layer_log)
    return None if script.serialized is None else _memory(module, script.serialized)


def _memory(module: Any, content: bytes) -> Any:
    memory = made(module, "IHostMemory")
    memory._content = content
    return memory


def _create_cache(self: Any, blob: bytes) -> Any:
    cache = made(self._module, "ITimingCache")
    cache._content = bytes(blob)
    return cache


def _set_cache(self: Any, cache: Any, ignore_mismatch: bool) -> bool:
    if self._module.script.refuses_cache and cache._content and not ignore_mismatch:
        return False
    self._cache = cache
    return True


def _combine(self: Any, other: Any, _: bool) -> bool:
    self._content = b"".join(dict.fromkeys((self._content, other._content)))
    return True


def _inspect(self: Any, _: Any) -> str:
    module = self._module
    new = int(module.__version__.split(".")[0]) >= 11 or module.__name__ == "tensorrt_rtx"
    tensors: dict[str, Any] = (
        {"I/O Tensors": [{"Name": "image", "IOMode": "Input"}]} if new else {"Bindings": ["image"]}
    )
    return json.dumps({"Layers": list(module.script.layers), **tensors})


_INITS: dict[str, Callable[..., None]] = {
    "Builder": _with_logger,
    "Runtime": _with_logger,
    "OnnxParser": _parser,
    **dict.fromkeys(("ILogger", "Logger", "IProfiler", "IProgressMonitor"), _no_arguments),
}
_BEHAVIOURS: dict[tuple[str, str], Callable[..., Any]] = {
    ("Builder", "create_network"): _create_network,
    ("Builder", "build_serialized_network"): build_by_script,
    ("OnnxParser", "parse_from_file"): parse_from_file,
    ("OnnxParser", "num_errors"): lambda self: len(self._module.script.parse_errors),
    ("OnnxParser", "get_error"): _get_error,
    ("ParserError", "desc"): lambda self: self._fields[0],
    ("ParserError", "node"): lambda self: 7,
    ("ParserError", "node_name"): lambda self: self._fields[1],
    ("ParserError", "node_operator"): lambda self: self._fields[2],
    ("INetworkDefinition", "num_layers"): lambda self: len(self._layers),
    ("INetworkDefinition", "get_layer"): lambda self, index: self._layers[index],
    ("ILayer", "get_output"): lambda self, index: self._output,
    ("IBuilderConfig", "create_timing_cache"): _create_cache,
    ("IBuilderConfig", "set_timing_cache"): _set_cache,
    ("IBuilderConfig", "get_timing_cache"): lambda self: self._cache,
    ("ITimingCache", "combine"): _combine,
    ("ITimingCache", "serialize"): lambda self: _memory(self._module, self._content + b"+measured"),
    ("Runtime", "deserialize_cuda_engine"): lambda self, serialized: (
        made(self._module, "ICudaEngine") if self._module.script.loads else None
    ),
    ("EngineInspector", "get_engine_information"): _inspect,
}

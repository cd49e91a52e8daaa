"""The manifest of a bundle: all that a device needs to run it, and where every part came from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, Literal

from twins_trt.codec import decode, encode
from twins_trt.errors import BundleError, UsageError
from twins_trt.inference.interface import MASK_HOLDS, MAX_CLASSES, GraphInterface
from twins_trt.models.conventions import Fact, TestMode
from twins_trt.models.source import Source

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GRAPH = "graph.onnx"
WEIGHTS = "weights.pth"  # optional: the weights that the torch engine runs
AUDIT = "audit.json"  # optional: what the layer lists of the engines say
GATE = "gate.json"  # optional: the verdict on accuracy
PACK = "gate.pack"  # optional: the images and reference masks that `twins-trt gate` judges on where there is no torch
REBUILD = "twins-trt build MODEL --checkpoint FILE --out {path}"  # if no manifest has a better command

# The fields that a file begins with, in the order in which every version has written them.
_FIRST = (
    "format_version",
    "model",
    "num_classes",
    "classes",
    "palette",
    "inputs",
    "outputs",
    "padding",
    "precision",
    "opset",
    "source",
    "rebuild",
    "preprocessing",
)
# Fields that came later, by the place that holds them, and the value with which they are left out.
_LATER: tuple[tuple[str, str, Any], ...] = (
    ("", "awaits", []),
    ("", "left_behind", []),
    ("", "reduce_zero_label", None),
    ("", "ignore_index", 255),
    ("", "test_mode", encode(TestMode())),
    ("", "miou", None),
    ("", "facts", []),
    ("source", "origin", ""),
    ("source", "weights", ""),
    ("source", "licence", ""),
    ("interface", "threshold", None),
)
_JETSONS = ("sm_87", "sm_101", "sm_110")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: path below it with forward slashes, sha256 in hex, size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Compiled:
    """Where and how `twins-trt compile` made an engine.

    device: the GPU's name; empty for an engine that was compiled for a GPU that was not there. board: of a Jetson.
    driver, cuda: versions of NVIDIA's kernel driver and of the CUDA that it serves. Empty where unknown. seconds: wall
    time. peak_host_mib: the highest resident memory of its process, MiB; None if the system does not tell.
    shared_memory: whether the GPU uses the same memory. workspace_mib, optimization_level: as given or chosen; None for
    the compiler's own.
    """

    device: str
    driver: str
    cuda: str
    seconds: float
    peak_host_mib: float | None = None
    shared_memory: bool = False
    workspace_mib: int | None = None
    optimization_level: int | None = None
    board: str = ""

    @property
    def how(self) -> str:
        """In words: `on Orin, driver 540.4.0, CUDA 12.6, in 95.0 s, 1830 MiB of the host at most, which the GPU
        shares`."""
        parts = [f"on {self.device}" if self.device else "without the GPU"]
        parts += [self.board] if self.board else []
        parts += [f"driver {self.driver}"] if self.driver else []
        parts += [f"CUDA {self.cuda}"] if self.cuda else []
        parts.append(f"in {self.seconds:.1f} s")
        if self.peak_host_mib is not None:
            shared = ", which the GPU shares" if self.shared_memory else ""
            parts.append(f"{self.peak_host_mib:.0f} MiB of the host at most{shared}")
        return ", ".join(parts)


@dataclass(frozen=True)
class EngineFile:
    """A serialized engine: its file, the flavour and version of its compiler, and the GPUs that it is for (`sm_86`).

    hardware_compatibility: other GPUs that it also runs on, in TensorRT's words, such as `ampere_plus`.
    compiled: None for an engine that `build` made.
    """

    file: str
    flavour: str
    version: str
    targets: tuple[str, ...]
    hardware_compatibility: str = "none"
    compiled: Compiled | None = None

    def runs_on(self, target: str) -> bool:
        """Whether it runs on a GPU of this target. TensorRT's Ampere-plus starts at SM80 and excludes Jetsons."""
        if target in self.targets or self.hardware_compatibility != "ampere_plus":
            return target in self.targets
        return int(target.removeprefix("sm_")) >= 80 and target not in _JETSONS


@dataclass(frozen=True)
class AwaitedEngine:
    """An engine that is still to be compiled, on the device itself: `twins-trt compile` replaces it by an `EngineFile`.

    target: the GPU that it is for (`sm_87`). device: its name, such as `jetson-orin`; empty where only the target is
    known. tensorrt: major and minor version of the TensorRT that will read the graph, such as `10.3`; empty if unknown.
    """

    target: str
    device: str = ""
    tensorrt: str = ""

    @property
    def where(self) -> str:
        """In words: `on the device: jetson-orin (sm_87, TensorRT 10.3)`."""
        compiler = f"TensorRT {self.tensorrt}" if self.tensorrt else "its TensorRT"
        known = f"{self.device} ({self.target}, {compiler})" if self.device else f"{self.target}, {compiler}"
        return f"on the device: {known}"


@dataclass(frozen=True)
class Figure:
    """One number and how it was measured.

    measured_on: the device, in words. simulated: true if the engine itself did not run there, but for example the same
    graph on another runtime.
    """

    name: str
    value: float
    unit: str
    measured_on: str
    simulated: bool


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    interface: of the graph; in the file its fields stand beside the others. model: a name of the zoo.
    padding: one of the padding semantics, `parity`, `masked` or `unmasked`. precision: `fp32`, `fp16`, `int8`.
    rebuild: the command that makes this bundle again. awaits: engines that the device itself has to compile.
    left_behind: files of the bundle that this one was taken from which did not travel with it. The graph may be among
    them if there is an engine.
    reduce_zero_label, ignore_index, test_mode, miou: what the checkpoint says of labels and scores (`Conventions`).
    facts: every value that was taken from the checkpoint, from flags or by default, with its origin.
    tools: name -> version of the tools that built it.
    gate: `ungated`, `passed` or `failed`. created: ISO 8601 with a zone. `write_bundle` sets `created` and `files`.
    Raises BundleError, naming the field and both values, if the parts contradict each other.
    """

    interface: GraphInterface
    model: str
    padding: Literal["parity", "masked", "unmasked"]
    precision: str
    opset: int
    source: Source
    rebuild: str
    engines: tuple[EngineFile, ...] = ()
    awaits: tuple[AwaitedEngine, ...] = ()
    figures: tuple[Figure, ...] = ()
    reduce_zero_label: bool | None = None
    ignore_index: int = 255
    test_mode: TestMode = field(default_factory=TestMode)
    miou: float | None = None
    facts: tuple[Fact, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    gate: Literal["ungated", "passed", "failed"] = "ungated"
    created: str = ""
    files: tuple[FileEntry, ...] = ()
    left_behind: tuple[FileEntry, ...] = ()
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for fault in _file_faults(self):
            raise BundleError(f"{MANIFEST}: {fault}", self.rebuild or None)

    @property
    def graph_sha256(self) -> str:
        """The sha256 of `graph.onnx`, also if it was left behind. Raises KeyError before the bundle is written."""
        return {entry.path: entry.sha256 for entry in (*self.files, *self.left_behind)}[GRAPH]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        plain: dict[str, Any] = encode(self)
        plain["interface"]["preprocessing"] = self.interface.preprocessing.to_json()
        for engine in plain["engines"]:
            if engine["compiled"] is None:
                del engine["compiled"]
        for place, name, unsaid in _LATER:
            values = plain[place] if place else plain
            if values[name] == unsaid:
                del values[name]  # as earlier versions wrote it, and read it
        plain |= {"num_classes": self.interface.num_classes, **plain.pop("interface")}
        return {name: plain.pop(name) for name in _FIRST} | plain

    @classmethod
    def from_json(cls, values: Any) -> Manifest:
        """The inverse of `to_json`. Raises BundleError with the field that is missing, unknown, mistyped or newer."""
        if not isinstance(values, dict):
            raise BundleError(f"{MANIFEST} holds {type(values).__name__}, not an object")
        version, command = values.get("format_version"), values.get("rebuild")
        rebuild = command if isinstance(command, str) and command else None
        if version != FORMAT_VERSION or isinstance(version, bool):
            newer = isinstance(version, int) and version > FORMAT_VERSION
            raise BundleError(
                f"{MANIFEST}: format_version is {version!r}, this twins-trt reads {FORMAT_VERSION}",
                f"pip install --upgrade twins-trt{f', or rebuild: {rebuild}' if rebuild else ''}" if newer else rebuild,
            )
        try:
            return decode(cls, _nested(values))
        except ValueError as error:  # UsageError of the parts' own checks included
            cause = error.cause if isinstance(error, UsageError) else str(error)
            named = cause.removeprefix("interface").lstrip(" .")  # the file has no field of this name
            raise BundleError(f"{MANIFEST}: {named}", rebuild) from error

    def dumps(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The file's values, with those of the interface as a value of their own. Raises ValueError if `num_classes` is not
    the number of classes."""
    plain = dict(values)
    if "interface" in plain:
        raise ValueError("has the field 'interface', which this version does not know")
    interface = {each.name: plain.pop(each.name) for each in fields(GraphInterface) if each.name in plain}
    if "num_classes" not in plain:
        raise ValueError("lacks the field 'num_classes'")
    count = plain.pop("num_classes")
    if type(count) is not int:
        raise ValueError(f"num_classes is {count!r}, not a whole number")
    if not 1 <= count <= MAX_CLASSES:
        raise ValueError(f"num_classes is {count}; {MASK_HOLDS}")
    for name in ("classes", "palette"):
        if isinstance(interface.get(name), list) and len(interface[name]) != count:
            raise ValueError(f"num_classes is {count} but {name} has {len(interface[name])} entries")
    return {"interface": interface, **plain}


def _file_faults(m: Manifest) -> list[str]:
    faults = []
    if m.source.seeded == (m.source.sha256 is not None):
        faults.append(f"source.seeded is {m.source.seeded} but source.sha256 is {m.source.sha256}")
    if m.source.sha256 is not None and not _SHA256.fullmatch(m.source.sha256):
        faults.append(f"source.sha256 is {m.source.sha256!r}, not 64 hex digits")
    for name, entries in (("files", m.files), ("left_behind", m.left_behind)):
        for i, entry in enumerate(entries):
            if not safe_path(entry.path):
                faults.append(f"{name}[{i}].path is {entry.path!r}, which is not a plain path below the bundle")
            if not _SHA256.fullmatch(entry.sha256) or entry.size < 0:
                faults.append(f"{name}[{i}] has the sha256 {entry.sha256!r} and the size {entry.size}")
    listed = [entry.path for entry in m.files]
    if len(set(listed)) != len(listed):
        faults.append("files lists a path twice")
    if not m.files:
        return faults  # empty until written
    left = [entry.path for entry in m.left_behind]
    if both := sorted(set(left) & set(listed)):
        faults.append(f"left_behind names {both[0]}, which files lists")
    graph = [] if GRAPH in left and m.engines else [("graph", GRAPH)]
    needed = [*graph, *((f"engines[{i}].file", engine.file) for i, engine in enumerate(m.engines))]
    faults += [f"{name} is {path}, which files does not list" for name, path in needed if path not in listed]
    return faults


def safe_path(path: str) -> bool:
    """Whether `path` names a file below the bundle on every system: relative, of plain parts, not the manifest."""
    parts = path.split("/")
    plain = not any(part in ("", ".", "..") for part in parts) and not set(path) & set("\\:\0")
    return plain and not PurePosixPath(path).is_absolute() and path != MANIFEST

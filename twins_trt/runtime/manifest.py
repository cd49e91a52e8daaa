"""What a bundle says about itself: everything a device needs to run it, and where every part came from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from twins_trt.data.preprocessing import Preprocessing
from twins_trt.errors import BundleError, UsageError
from twins_trt.runtime.codec import decode, encode
from twins_trt.runtime.tensors import TensorSpec

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GRAPH = "graph.onnx"
WEIGHTS = "weights.pth"  # only where asked for: what the torch engine runs
REBUILD = "twins-trt build MODEL --checkpoint FILE --out {path}"  # where the manifest cannot say better

Colour = tuple[int, int, int]
Layout = Literal["NHWC", "NCHW"]

_JETSONS = ("sm_87", "sm_101", "sm_110")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: path below it with forward slashes, sha256 in hex, size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class EngineFile:
    """A serialised engine: which compiler made it, of which version, for which GPUs (`sm_86`).

    hardware_compatibility: which other GPUs it also runs on, in TensorRT's words, such as `ampere_plus`.
    """

    file: str
    flavour: str
    version: str
    targets: tuple[str, ...]
    hardware_compatibility: str = "none"

    def runs_on(self, target: str) -> bool:
        """Whether it is for a GPU of this target. TensorRT's Ampere-plus starts at SM80 and leaves Jetsons out."""
        if target in self.targets or self.hardware_compatibility != "ampere_plus":
            return target in self.targets
        return int(target.removeprefix("sm_")) >= 80 and target not in _JETSONS


@dataclass(frozen=True)
class Source:
    """Where the weights came from: a checkpoint's file name and sha256, or a generator of random ones."""

    checkpoint: str | None = None
    sha256: str | None = None
    seeded: bool = False


@dataclass(frozen=True)
class Figure:
    """One number and how it came about.

    measured_on: the device, in words. simulated: true where the engine itself did not run there (say, the same graph on
    another runtime).
    """

    name: str
    value: float
    unit: str
    measured_on: str
    simulated: bool


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`. `files` and `created` are filled in by `write_bundle`.

    model: a name of the zoo. classes, palette: one name and one RGB colour per class, by index.
    inputs: exactly one, uint8 [N, H, W, 3] RGB with normalisation inside the graph, or float [N, 3, H, W].
    outputs: `mask` uint8 [N, H, W] and/or `logits` float [N, classes, h, w].
    padding: which of the two padding semantics, `parity` or `masked`. precision: `fp32`, `fp16`, `int8`.
    preprocessing: normalisation (inside the graph where the input is uint8) and the test scale, in RGB.
    tools: name -> version of what built it. gate: `ungated`, `passed` or `failed`. created: ISO 8601 with a zone.
    rebuild: the command that makes this bundle again.
    Raises BundleError, naming the field and both values, where the parts contradict each other.
    """

    model: str
    num_classes: int
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    padding: Literal["parity", "masked"]
    precision: str
    opset: int
    source: Source
    rebuild: str
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    engines: tuple[EngineFile, ...] = ()
    figures: tuple[Figure, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    gate: Literal["ungated", "passed", "failed"] = "ungated"
    created: str = ""
    files: tuple[FileEntry, ...] = ()
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for fault in (*_class_faults(self), *_tensor_faults(self), *_file_faults(self)):
            raise BundleError(f"{MANIFEST}: {fault}", self.rebuild or None)

    @property
    def image(self) -> TensorSpec:
        """The one input."""
        return self.inputs[0]

    @property
    def layout(self) -> Layout:
        """`NHWC` for a graph that takes pixels, `NCHW` for one that takes normalised planes."""
        return "NHWC" if self.image.dtype == "uint8" else "NCHW"

    @property
    def batch_limits(self) -> tuple[int, int | None]:
        """(smallest, largest) batch; the largest is None where nothing bounds it."""
        return self.image.limits()[0]

    @property
    def size_limits(self) -> tuple[tuple[int, int | None], tuple[int, int | None]]:
        """(smallest, largest) height and the same of the width, in pixels."""
        first = 1 if self.layout == "NHWC" else 2
        height, width = self.image.limits()[first : first + 2]
        return height, width

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of a graph of fixed size, None for a dynamic one."""
        (height, highest), (width, widest) = self.size_limits
        return (height, width) if height == highest and width == widest else None

    def output(self, name: str) -> TensorSpec | None:
        """The output called `name`, or None."""
        return next((spec for spec in self.outputs if spec.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        plain: dict[str, Any] = encode(self)
        return {"format_version": plain.pop("format_version"), **plain}

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
            return decode(cls, values)
        except ValueError as error:  # UsageError of the parts' own checks included
            cause = error.cause if isinstance(error, UsageError) else str(error)
            raise BundleError(f"{MANIFEST}: {cause}", rebuild) from error

    def dumps(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _class_faults(m: Manifest) -> list[str]:
    faults = []
    if not 1 <= m.num_classes <= 255:
        faults.append(f"num_classes is {m.num_classes}; an 8-bit mask holds 1 to 255, and 255 for ignored pixels")
    for name in ("classes", "palette"):
        if len(getattr(m, name)) != m.num_classes:
            faults.append(f"num_classes is {m.num_classes} but {name} has {len(getattr(m, name))} entries")
    faults += [
        f"palette[{i}] is {c}, not 0 to 255" for i, c in enumerate(m.palette) if not all(0 <= v <= 255 for v in c)
    ]
    return faults


def _tensor_faults(m: Manifest) -> list[str]:
    if len(m.inputs) != 1:
        return [f"inputs has {len(m.inputs)} entries, not 1"]
    (image,) = m.inputs
    channels = 3 if image.dtype == "uint8" else 1
    if len(image.shape) != 4 or image.shape[channels] != 3 or image.dtype not in ("uint8", "float16", "float32"):
        return [f"inputs[0] is {image}, neither uint8 [N, H, W, 3] nor float [N, 3, H, W]"]
    faults = [] if m.outputs else ["outputs is empty"]
    for i, spec in enumerate(m.outputs):
        if spec.name == "mask":
            fits, wanted = spec.dtype == "uint8" and len(spec.shape) == 3, "mask uint8 [N, H, W]"
        else:
            wanted = f"logits float [N, {m.num_classes}, h, w]"
            fits = spec.name == "logits" and spec.dtype in ("float16", "float32") and len(spec.shape) == 4
            fits = fits and spec.shape[1] == m.num_classes
        if not fits:
            faults.append(f"outputs[{i}] is {spec}, not {wanted}")
    if len({spec.name for spec in m.outputs}) != len(m.outputs):
        faults.append("outputs names a tensor twice")
    return faults


def _file_faults(m: Manifest) -> list[str]:
    faults = []
    if m.source.seeded == (m.source.sha256 is not None):
        faults.append(f"source.seeded is {m.source.seeded} but source.sha256 is {m.source.sha256}")
    if m.source.sha256 is not None and not _SHA256.fullmatch(m.source.sha256):
        faults.append(f"source.sha256 is {m.source.sha256!r}, not 64 hex digits")
    for i, entry in enumerate(m.files):
        if not safe_path(entry.path):
            faults.append(f"files[{i}].path is {entry.path!r}, which is not a plain path below the bundle")
        if not _SHA256.fullmatch(entry.sha256) or entry.size < 0:
            faults.append(f"files[{i}] has the sha256 {entry.sha256!r} and the size {entry.size}")
    listed = [entry.path for entry in m.files]
    if len(set(listed)) != len(listed):
        faults.append("files lists a path twice")
    needed = [("graph", GRAPH), *((f"engines[{i}].file", engine.file) for i, engine in enumerate(m.engines))]
    if m.files:  # empty until written
        faults += [f"{name} is {path}, which files does not list" for name, path in needed if path not in listed]
    return faults


def safe_path(path: str) -> bool:
    """Whether `path` names a file below the bundle on every system: relative, of plain parts, not the manifest."""
    parts = path.split("/")
    plain = not any(part in ("", ".", "..") for part in parts) and not set(path) & set("\\:\0")
    return plain and not PurePosixPath(path).is_absolute() and path != MANIFEST

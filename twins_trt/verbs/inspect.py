"""`inspect`: the request about a bundle, a graph or a checkpoint, its defaults and its flags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twins_trt.errors import UsageError
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.groups.running import ENGINE_FLAG
from twins_trt.verbs.groups.weights import reading_flags
from twins_trt.verbs.kinds import NAMES, SWITCH, Kind

Shape = tuple[int, ...]
Shapes = tuple[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class InspectRequest:
    """What to inspect, and how closely.

    path: a bundle, a graph or a checkpoint. verify: compare a bundle's files with their sha256. engine: the kind that
    is asked whether it can run a bundle here, of `runtime.engines.KINDS`, or `auto` for all kinds. targets: GPUs to
    compile a graph for; the result is audited. layers: list every kernel. shapes: the name and the min, opt and max
    shape of each dynamic input, or their text `image:1x512x512x3:4x512x512x3:8x512x512x3`. padding, weights,
    conventions: of a checkpoint, as in `BuildRequest`.
    Raises `UsageError` for a value of the wrong kind.
    """

    path: str = ""
    verify: bool = True
    engine: str = "auto"
    targets: tuple[str, ...] = ()
    layers: bool = False
    shapes: tuple[Shapes, ...] = ()
    padding: str | None = None
    weights: str | None = None
    conventions: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        settle(self, TABLE)

    @property
    def compiles(self) -> bool:
        """Whether a graph is to be compiled."""
        return bool(self.targets or self.layers or self.shapes)


def parse_shapes(value: Any) -> Shapes:
    """Name, and min, opt and max shape, of `image:1x512x512x3:4x512x512x3:8x512x512x3`. Raises `UsageError`."""
    if not isinstance(value, str):
        name, shapes = value
        return name, shapes
    name, *texts = value.split(":")
    sizes = [text.split("x") for text in texts]
    if not name or len(sizes) != 3 or not all(re.fullmatch(r"\d{1,9}", size) for shape in sizes for size in shape):
        raise UsageError(f"{value!r} is no profile", "write NAME:MIN:OPT:MAX, each shape as 1x512x512x3")
    smallest, optimal, largest = (tuple(map(int, shape)) for shape in sizes)
    return name, (smallest, optimal, largest)


def _show_shapes(value: Shapes) -> str:
    return ":".join([value[0], *("x".join(map(str, shape)) for shape in value[1])])


GRAPHS = "graphs"

TABLE: tuple[Flag, ...] = (
    Flag("PATH", "path", "a bundle, a graph (.onnx) or a checkpoint (.pth, .safetensors)"),
    Flag("--no-verify", "verify", "do not compare a bundle's files with their sha256", SWITCH, sets=False),
    ENGINE_FLAG,
    Flag(
        "--target",
        "targets",
        "compile for these GPUs (rtx-4090,sm_86) and audit the result",
        NAMES,
        "NAME,...",
        group=GRAPHS,
    ),
    Flag("--layers", "layers", "list every kernel, with shapes and graph nodes", SWITCH, sets=True, group=GRAPHS),
    Flag(
        "--shapes",
        "shapes",
        "of a dynamic input, as image:1x512x512x3:4x512x512x3:8x512x512x3",
        Kind(parse_shapes, _show_shapes),
        "NAME:MIN:OPT:MAX",
        group=GRAPHS,
        repeated=True,
    ),
    *reading_flags("checkpoints"),
)

FLAGS = FlagTable(InspectRequest, TABLE)

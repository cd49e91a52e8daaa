"""What to export, and what was exported."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from typing import Any

from twins_trt.codec import encode
from twins_trt.errors import UsageError
from twins_trt.models.zoo import IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from twins_trt.spelling import speaking, spelled

PRECISIONS = ("fp32", "fp16")
OPSETS = (17, 18, 19, 20)
INPUTS = ("uint8", "float32")
OUTPUTS = ("mask", "logits", "probability")
TARGETS = ("gpu", "cpu")
_TARGET_KEY = "forms"  # the key of `target` in a graph's metadata, kept for graphs that exist
SMALLEST_SIDE = 32  # one pixel of the last stage; the model itself goes down to MIN_SIDE


@dataclass(frozen=True)
class DynamicDim:
    """A dimension that a graph leaves open. Engines take sizes from `min` to `max` and are fastest at `opt`.

    Raises `UsageError` unless 1 <= min <= opt <= max.
    """

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not (_is_int(self.min, self.opt, self.max) and 1 <= self.min <= self.opt <= self.max):
            raise UsageError(
                f"a dynamic dimension needs 1 <= min <= opt <= max, not {self.min!r}, {self.opt!r}, {self.max!r}",
                "write MIN:OPT:MAX",
            )


@dataclass(frozen=True)
class ExportOptions:
    """How a model becomes a graph.

    height, width, batch: an int fixes the dimension, a `DynamicDim` leaves it open from its min to its max.
    precision: `fp32`, or `fp16` for a graph whose every cast is written out (nothing is left to builder flags).
    opset: 17 to 20. TensorRT 8.6 reads up to 17, 10.3 up to 20.
    input: `uint8` [N, H, W, 3] RGB with normalization inside, or `float32` [N, 3, H, W] already normalized, its planes
        in the network's own order: blue first for a model that was trained so.
    outputs: `mask` uint8 [N, H, W] (resized to the image and argmaxed inside), `logits` float32 at a quarter, or both.
        For a head with one logit also `probability` float32 [N, H, W], of the foreground, at the image's size.
    target: which exact rewritings to use: `gpu` those that compile to the fewest kernels, `cpu` the fewest operations.
    upernet_levels: how many coarse levels of UPerNet's 3×3 bottleneck are convolved at their own resolution
        (0 to 3); None takes the measured default of `target`.
    """

    height: int | DynamicDim = 512
    width: int | DynamicDim = 512
    batch: int | DynamicDim = 1
    precision: str = "fp32"
    opset: int = 17
    input: str = "uint8"
    outputs: tuple[str, ...] = ("mask",)
    target: str = "gpu"
    upernet_levels: int | None = None

    def __post_init__(self) -> None:
        for name, allowed, more in (
            ("precision", PRECISIONS, ""),
            ("opset", OPSETS, ""),
            ("input", INPUTS, ""),
            ("target", TARGETS, "; one graph serves every GPU, and `build` makes each its engine"),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"{spelled(name)} cannot be {getattr(self, name)!r}",
                    f"use one of {', '.join(map(str, allowed))}{more}",
                )
        object.__setattr__(self, "outputs", tuple(self.outputs))  # a list would not survive the JSON round trip
        if not self.outputs or set(self.outputs) - set(OUTPUTS) or len(set(self.outputs)) != len(self.outputs):
            raise UsageError(
                f"{spelled('outputs')} cannot be {self.outputs!r}",
                f"use one or more of {', '.join(OUTPUTS)}, each once",
            )
        for name in ("height", "width", "batch"):
            value = getattr(self, name)
            if not isinstance(value, DynamicDim) and not _is_int(value):
                raise UsageError(f"{name} cannot be {value!r}", "give a whole number, or a DynamicDim")
            smallest = value.min if isinstance(value, DynamicDim) else value
            floor = 1 if name == "batch" else SMALLEST_SIDE
            if smallest < floor:
                raise UsageError(f"{name} {smallest} is too small", f"use {floor} or more")
        if self.upernet_levels is not None and self.upernet_levels not in (0, 1, 2, 3):
            raise UsageError(
                f"{spelled('upernet_levels')} must be 0 to 3, not {self.upernet_levels!r}", "use 0, 1, 2 or 3"
            )
        if isinstance(self.height, DynamicDim) != isinstance(self.width, DynamicDim):
            raise UsageError("height and width must both be fixed or both be dynamic", "give both as MIN:OPT:MAX")

    def check_model(self, spec: ModelSpec, *, threshold: float | None) -> None:
        """Raises `UsageError` where a model cannot be exported so. threshold: None for a head with softmax."""
        if self.upernet_levels and (spec.head != "upernet" or self.dynamic_size):
            raise UsageError(
                f"{spelled('upernet_levels')} needs a UPerNet head and a fixed size",
                f"leave {spelled('upernet_levels')} out",
            )
        if "probability" in self.outputs and threshold is None:
            raise UsageError(
                f"only a head with one logit has a probability, and that of {spec.name} has softmax",
                f"leave probability out of {spelled('outputs')}",
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`, with the keys that graphs have in their metadata."""
        plain: dict[str, Any] = encode(self)
        plain[_TARGET_KEY] = plain.pop("target")
        return plain

    @property
    def dynamic_size(self) -> bool:
        return isinstance(self.height, DynamicDim)


@dataclass(frozen=True)
class GraphInfo:
    """The facts of a graph. They travel inside the ONNX file as metadata `twins_trt.info`.

    attentions: how many fused attentions a perfect build has. islands: names of the nodes that stay float32 in an FP16
    graph, and why. mean, std: of the network's channels in its own order, grey levels; channels: that order, `rgb` or
    `bgr`. threshold: of a head with one logit, 0 to 1; None for a head with softmax.
    The last four are in the file only where they differ from their defaults, which graphs without them have.
    """

    model: str
    num_classes: int
    padding: str
    attentions: int
    options: ExportOptions
    islands: dict[str, str]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: str = "rgb"
    threshold: float | None = None

    def to_json(self) -> str:
        plain: dict[str, Any] = {**encode(self), "options": self.options.to_json()}
        for field in fields(self):
            if field.default is not MISSING and getattr(self, field.name) == field.default:
                del plain[field.name]
        return json.dumps(plain, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> GraphInfo:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for any other text."""
        facts = json.loads(text)
        options = facts.pop("options")
        options["target"] = options.pop(_TARGET_KEY)
        for name in ("height", "width", "batch"):
            if isinstance(options[name], dict):
                options[name] = DynamicDim(**options[name])
        options["outputs"] = tuple(options["outputs"])
        facts.update({name: tuple(facts[name]) for name in ("mean", "std") if name in facts})
        with speaking(None):  # errors name the file's fields, not parameters or flags
            return GraphInfo(**facts, options=ExportOptions(**options))


def _is_int(*values: object) -> bool:
    """Whether all are Python's own integers: NumPy's, booleans and whole floats would change in JSON and ONNX."""
    return all(type(value) is int for value in values)

"""Makes a model round where the INT8 graph of a precision plan rounds: from graph nodes to modules."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from twins_trt.builders.export import ExportOptions
from twins_trt.builders.export.export import build_graph
from twins_trt.builders.plan.precision_plan import PrecisionPlan
from twins_trt.builders.plan.sites import Site, block_of, source_of
from twins_trt.builders.quantize.rewrite import FIRST_OPSET, attention_operands
from twins_trt.calib.options import CalibrationOptions
from twins_trt.calib.ranges import Ranges
from twins_trt.data.preprocessing import Size
from twins_trt.errors import DataError, UsageError
from twins_trt.models.heads import ConvModule
from twins_trt.models.segmentor import Segmentor
from twins_trt.training.qat.fake import Activation
from twins_trt.training.qat.modules import (
    QuantizedConv2d,
    QuantizedConvModule,
    QuantizedFFN,
    QuantizedGSA,
    QuantizedLSA,
)

_BLOCKS = {"FFN": QuantizedFFN, "LSA": QuantizedLSA, "GSA": QuantizedGSA}


@dataclass(frozen=True)
class FakeQuantized:
    """What `attach` did. sites: the graph's nodes that compute in INT8. activations: the tensors that they read, by
    name."""

    sites: tuple[str, ...]
    activations: dict[str, Activation]

    @property
    def observing(self) -> bool:
        """Whether there are tensors without a range."""
        return any(each.observing for each in self.activations.values())

    def choose_ranges(self) -> None:
        """Ends observing: gives each tensor without a range the range of the values that it has seen."""
        options = CalibrationOptions()
        for each in self.activations.values():
            if each.observing:
                each.amax = each.choose(options)

    def amax(self) -> dict[str, float]:
        """The range of every tensor that has one."""
        return {name: each.amax for name, each in self.activations.items() if each.amax is not None}


def read_plan(path: str | Path, *, model: str) -> PrecisionPlan:
    """A precision plan that can be trained.

    Raises `DataError` where it cannot be read, `UsageError` where it belongs to another model or has SmoothQuant, whose
    scales are not part of a checkpoint.
    """
    plan = PrecisionPlan.from_json(_text(path))
    if plan.model != model:
        raise UsageError(f"{path} is a plan of {plan.model}, not {model}", "name this model's plan")
    if plan.smooth is not None:
        raise UsageError(
            f"{path} smooths activations, which training does not know", 'write "smooth": null into the plan'
        )
    return plan


def read_amax(path: str | Path) -> dict[str, float]:
    """The ranges of a range file, by tensor, of its first observer. Raises `DataError` where it cannot be read."""
    try:
        values = json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}", "calibrate again: twins-trt calibrate") from error
    ranges = Ranges.from_json(values, name=str(path))
    return {name: ranges.amax(name) for name in ranges.ranges}


def attach(
    model: Segmentor, plan: PrecisionPlan, *, size: Size, amax: Mapping[str, float] | None = None
) -> FakeQuantized:
    """Makes `model` compute as the graph that `quantize` makes of it with this plan, for TensorRT; in place.

    size: (height, width) of that graph, pixels. amax: range of each tensor that it reads in INT8; with None the ranges
    are observed first. Weights are rounded at each step. State-dict keys stay.
    Raises `UsageError` for a plan that does not fit the model, `DataError` for a tensor without a range.
    """
    graph, _ = build_graph(model, ExportOptions(*size, opset=FIRST_OPSET, outputs=("logits",)))
    sites = plan.int8_sites(graph)
    nodes = {node.name: node for node in graph.nodes}
    bins = CalibrationOptions().bins
    activations: dict[str, Activation] = {}

    def place(tensor: str) -> Activation:
        return activations.setdefault(tensor, Activation(tensor, bins=bins))

    for site in sites:
        if site.kind == "attention":
            operands = attention_operands(nodes, block_of(site.node))
            for name, tensor in zip("qkv", operands, strict=True):
                _in_block(model, site, f"attention.{name}", place(source_of(tensor).name))
            _in_block(model, site, "attention.context", place(site.source))
        elif re.search(r"\.(attn|ffn)/(?!sr$)", site.node):
            _in_block(model, site, site.node.rpartition("/")[2], place(site.source))
        else:
            for module in _convolutions(model, site.node):
                _convolution(module, place(site.source))
    if amax is not None:
        for name, each in activations.items():
            if name not in amax:
                raise DataError(
                    f"the ranges have no tensor {name!r}",
                    f"calibrate a graph of the crop's size: twins-trt export --size {size[0]}x{size[1]}",
                )
            each.amax = float(amax[name])
    return FakeQuantized(tuple(site.node for site in sites), activations)


def _in_block(model: Segmentor, site: Site, name: str, activation: Activation) -> None:
    """Adds a tensor to round to the attention or FFN of the site."""
    stage, block, part = _block_place(site.node)
    module = getattr(cast(Any, model.backbone.layers)[stage][block], part)
    kind = type(module).__name__
    if kind in _BLOCKS:
        module.__class__ = _BLOCKS[kind]
        module.places = {}
    module.places[name] = activation


def _block_place(node: str) -> tuple[int, int, str]:
    found = re.match(r"stages\.(\d+)\.blocks\.(\d+)\.(attn|ffn)/", node)
    assert found is not None  # a site of a block
    return int(found[1]), int(found[2]), found[3]


def _convolution(module: nn.Module, activation: Activation) -> None:
    if isinstance(module, ConvModule):
        if not module.norm:
            return _convolution(module.conv, activation)
        module.__class__ = QuantizedConvModule
    else:
        module.__class__ = QuantizedConv2d
    module.place = activation  # type: ignore[assignment]  # no tensor and no module: a plain attribute


def _convolutions(model: Segmentor, node: str) -> list[nn.Module]:
    """The modules of a graph's convolution: one, or the four of UPerNet's pyramid, which the graph computes at once."""
    block, name = node.split("/", 1)
    numbers = [int(part) for part in re.findall(r"\.(\d+)", node)]
    backbone, head = cast(Any, model.backbone), cast(Any, model.decode_head)
    if block.endswith(".patch_embed"):
        return [backbone.patch_embeds[numbers[0]].projection]
    if block.endswith(".pos"):
        return [backbone.position_encodings[numbers[0]].proj]
    if name == "sr":
        return [backbone.layers[numbers[0]][numbers[1]].attn.sr]
    if name == "classifier":
        return [head.conv_seg]
    if name.startswith("scale."):
        return [head.scale_heads[numbers[0]][2 * numbers[1]]]
    if name == "psp/scales":
        return [scale[1] for scale in head.psp_modules]
    if name in ("bottleneck", "fuse"):
        return [head.bottleneck if name == "bottleneck" else head.fpn_bottleneck]
    owner = cast(Any, model.neck) if block == "neck" else head
    return [getattr(owner, {"lateral": "lateral_convs", "conv": "fpn_convs"}[name.partition(".")[0]])[numbers[0]]]


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "check the path") from error

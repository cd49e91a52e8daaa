"""Sorts an engine's layer times into model blocks: our graphs name every node after its block."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from twins_trt.errors import BuildError
from twins_trt.profiling.results import Layer
from twins_trt.runtime.engines import InspectsLayers, LayerTime, ProfilesLayers

if TYPE_CHECKING:
    from twins_trt.runtime.engines.protocol import Array

log = logging.getLogger("twins_trt")

# `BLOCK/NODE` of our graphs, anywhere in a name that a compiler made of it.
_NODE = re.compile(r"(?<![\w.])((?:stages\.\d+(?:\.[\w.]+)?)|neck|head|input|output)/")


def profile_layers(engine: ProfilesLayers, image: Array, *, runs: int) -> tuple[Layer, ...]:
    """The engine's layers with their mean times on `image` and their blocks. Raises EngineError."""
    layers = engine.profile_layers(image, runs=runs)
    if not isinstance(engine, InspectsLayers):
        return in_blocks(layers)
    from twins_trt.builders.engine.layers import parse_inspector

    try:
        known = {layer.name: layer for layer in parse_inspector(engine.inspect_layers())}
    except BuildError as error:  # not built with detailed layers: there are only names
        log.info("the engine's layers name no graph nodes: %s", error.cause)
        return in_blocks(layers)
    return in_blocks(
        [
            replace(each, operator=known[each.name].type, nodes=known[each.name].nodes) if each.name in known else each
            for each in layers
        ]
    )


def in_blocks(layers: Sequence[LayerTime]) -> tuple[Layer, ...]:
    """The layers, in order of execution, each with the block it belongs to.

    A layer belongs to the block of the first graph node it computes, else to the first block that its name mentions.
    Layers that the runtime added itself (a GELU made of five operations, a change of layout) have neither: they belong
    to the block that ran just before. None until a first block is named; graphs that are not ours name none.
    """
    placed: list[Layer] = []
    block: str | None = None
    for layer in layers:
        block = next((name for text in (*layer.nodes, layer.name) if (name := _block(text))), block)
        placed.append(Layer(layer.name, layer.operator, round(layer.milliseconds, 5), block))
    return tuple(placed)


def _block(text: str) -> str | None:
    match = _NODE.search(text)
    return match[1] if match else None

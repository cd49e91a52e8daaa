"""From an engine's layer times to model blocks: our graphs name every node after its block."""

from __future__ import annotations

import re
from collections.abc import Sequence

from twins_trt.profiling.results import Layer
from twins_trt.runtime.engines import LayerTime

# `BLOCK/NODE` of our graphs, wherever a compiler has put it into a name of its own.
_NODE = re.compile(r"(?<![\w.])((?:stages\.\d+(?:\.[\w.]+)?)|neck|head|input|output)/")


def in_blocks(layers: Sequence[LayerTime]) -> tuple[Layer, ...]:
    """The layers, in order of execution, each with the block it belongs to.

    A layer belongs to the block of the first graph node it computes, else to the first block that its name mentions.
    What the runtime made up itself (a GELU out of five operations, a change of layout) says neither: it belongs to the
    block that ran just before. None where no block was named yet, as in graphs that are not ours.
    """
    found: list[Layer] = []
    block: str | None = None
    for layer in layers:
        block = next((name for text in (*layer.nodes, layer.name) if (name := _block(text))), block)
        found.append(Layer(layer.name, layer.operator, round(layer.milliseconds, 5), block))
    return tuple(found)


def _block(text: str) -> str | None:
    match = _NODE.search(text)
    return match[1] if match else None

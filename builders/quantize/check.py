"""Checks that an engine runs in INT8 what its graph has in INT8."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from twins_trt.builders.engine.audit import is_fused_attention
from twins_trt.builders.engine.layers import Layer


class Int8Places(Protocol):
    """What should run in INT8: nodes, products; attentions, blocks. `Quantization` has both."""

    @property
    def nodes(self) -> tuple[str, ...]: ...
    @property
    def attentions(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class KeptPlaces:
    """`Int8Places` as a bundle keeps them, for engines that are compiled without the tools that quantized the graph."""

    nodes: tuple[str, ...]
    attentions: tuple[str, ...]


def check_int8(layers: Sequence[Layer], quantized: Int8Places) -> tuple[str, ...]:
    """The products, and the blocks of the attentions, that should run in INT8 and do not.

    layers: of the finished engine (`BuiltEngine.layers`). A product runs in INT8 if a layer that computes its node
    reads INT8 activations and INT8 weights; an attention runs in INT8 if its fused kernel reads nothing but INT8.
    """
    products = _nodes(layer for layer in layers if _reads_int8(layer) and _weighs_int8(layer))
    attentions = _nodes(layer for layer in layers if is_fused_attention(layer) and _reads_only_int8(layer))
    missing = [node for node in quantized.nodes if node not in products]
    return (*missing, *(block for block in quantized.attentions if f"{block}/softmax" not in attentions))


def _nodes(layers: Iterable[Layer]) -> set[str]:
    return {node for layer in layers for node in layer.nodes}


def _reads_int8(layer: Layer) -> bool:
    return any(tensor.dtype == "int8" for tensor in layer.inputs)


def _weighs_int8(layer: Layer) -> bool:
    # EngineInspector up to TensorRT 10.x does not list constants.
    return not layer.constants or any(tensor.dtype == "int8" for tensor in layer.constants)


def _reads_only_int8(layer: Layer) -> bool:
    return bool(layer.inputs) and all(tensor.dtype == "int8" for tensor in layer.inputs)

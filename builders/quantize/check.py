"""Whether the compiler ran in INT8 what the graph says runs in INT8."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from twins_trt.builders.engine.audit import is_fused_attention
from twins_trt.builders.engine.layers import Layer
from twins_trt.builders.quantize.rewrite import Quantization


def check_int8(layers: Sequence[Layer], quantized: Quantization) -> tuple[str, ...]:
    """The products, and the blocks of attentions, that were to run in INT8 and do not.

    layers: of the finished engine (`BuiltEngine.layers`). A product runs in INT8 where a layer that computes its node
    reads INT8 activations and INT8 weights; an attention where its fused kernel reads nothing but INT8.
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
    # A layer list that does not tell constants apart (EngineInspector up to 10.x) has none to look at.
    return not layer.constants or any(tensor.dtype == "int8" for tensor in layer.constants)


def _reads_only_int8(layer: Layer) -> bool:
    return bool(layer.inputs) and all(tensor.dtype == "int8" for tensor in layer.inputs)

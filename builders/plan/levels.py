"""The precision levels of a plan, apart from what reads graphs: options name them."""

from __future__ import annotations

LEVELS: dict[str, frozenset[str]] = {
    "fp16": frozenset(),
    "int8-linear": frozenset({"linear"}),
    "int8-linear+conv": frozenset({"linear", "conv"}),
    "int8-attention": frozenset({"linear", "conv", "attention"}),
}
"""The kinds of places (`builders.plan.sites`) that each level runs in INT8; the rest of the block stays FP16."""

FIRST_OPSET = 19
"""Of ONNX from which on the scales of INT8, and what is dequantized, may be float16."""

INT8_OPSET = 20
"""Of an INT8 graph, and of the FP32 graph whose ranges it takes, where none is asked for: the latest that TensorRT 10.3
reads."""

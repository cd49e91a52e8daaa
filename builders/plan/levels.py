"""The precision levels of a plan. Options name them, so nothing heavy is imported here."""

from __future__ import annotations

LEVELS: dict[str, frozenset[str]] = {
    "fp16": frozenset(),
    "int8-linear": frozenset({"linear"}),
    "int8-linear+conv": frozenset({"linear", "conv"}),
    "int8-attention": frozenset({"linear", "conv", "attention"}),
}
"""The kinds of sites (`builders.plan.sites`) that each level runs in INT8; everything else stays FP16."""

FIRST_OPSET = 19
"""The first ONNX opset in which the scales of INT8, and what DequantizeLinear writes, may be float16."""

INT8_OPSET = 20
"""The default opset of an INT8 graph and of the FP32 graph that is calibrated for it: the latest that TensorRT 10.3
reads."""

"""Quantization-aware fine-tuning: the model computes as the INT8 graph of a plan does, rounding included."""

from twins_trt.training.qat.attach import FakeQuantized, attach, read_amax, read_plan

__all__ = ["FakeQuantized", "attach", "read_amax", "read_plan"]

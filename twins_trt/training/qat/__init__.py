"""Quantisation-aware fine-tuning: the model computes as the INT8 graph of a plan does, rounding included."""

from twins_trt.training.qat.attach import FakeQuantised, attach, read_amax, read_plan

__all__ = ["FakeQuantised", "attach", "read_amax", "read_plan"]

"""The positional encoding of Twins on tokens: a residual depthwise 3x3 convolution, and the sum before it."""

from twins_trt.kernels.position.op import add_position
from twins_trt.kernels.position.reference import add_position_reference

__all__ = ["add_position", "add_position_reference"]

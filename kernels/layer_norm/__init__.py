"""LayerNorm behind the additions that precede it, of a convolution's bias and of a residual, in one kernel."""

from twins_trt.kernels.layer_norm.op import add_layer_norm
from twins_trt.kernels.layer_norm.reference import add_layer_norm_reference

__all__ = ["add_layer_norm", "add_layer_norm_reference"]

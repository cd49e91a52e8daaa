"""What follows the network: low-resolution logits to a mask of any size, in one kernel."""

from twins_trt.kernels.postprocess.op import resize_argmax
from twins_trt.kernels.postprocess.reference import resize_argmax_reference

__all__ = ["resize_argmax", "resize_argmax_reference"]

"""What follows the network: low-resolution logits to a mask of any size, in one kernel."""

from twins_trt.kernels.postprocess.reference import resize_argmax_reference
from twins_trt.kernels.postprocess.resize_argmax import resize_argmax

__all__ = ["resize_argmax", "resize_argmax_reference"]

"""What precedes the network: pixels of any size to its resized, normalized input, in one kernel."""

from twins_trt.kernels.preprocess.op import resize_normalize
from twins_trt.kernels.preprocess.reference import resize_normalize_reference

__all__ = ["resize_normalize", "resize_normalize_reference"]

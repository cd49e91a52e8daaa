"""What lies between feature maps of different sizes: a map resized and added to another one, in one kernel."""

from twins_trt.kernels.resize.op import resize_add
from twins_trt.kernels.resize.reference import resize_add_reference

__all__ = ["resize_add", "resize_add_reference"]

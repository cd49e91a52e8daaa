"""What precedes the network: pixels of any size to its resized, normalised input, in one kernel."""

from twins_trt.kernels.preprocess.reference import resize_normalise_reference
from twins_trt.kernels.preprocess.resize_normalise import resize_normalise

__all__ = ["resize_normalise", "resize_normalise_reference"]

"""A convolution whose kernel is its stride, and the LayerNorm behind it: patch embeddings, and summaries of GSA."""

from twins_trt.kernels.patch.op import patch_norm
from twins_trt.kernels.patch.reference import patch_norm_reference

__all__ = ["patch_norm", "patch_norm_reference"]

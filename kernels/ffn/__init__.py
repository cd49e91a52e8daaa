"""The second half of a block, x + y + FFN(LayerNorm(x + y)), in one kernel or in few."""

from twins_trt.kernels.ffn.op import add_norm_ffn
from twins_trt.kernels.ffn.reference import add_norm_ffn_reference

__all__ = ["add_norm_ffn", "add_norm_ffn_reference"]

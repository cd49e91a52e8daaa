"""Global sub-sampled attention (GSA): every position attends to a strided summary of the map."""

from twins_trt.kernels.gsa.op import gsa, gsa_sdpa
from twins_trt.kernels.gsa.reference import gsa_reference

__all__ = ["gsa", "gsa_reference", "gsa_sdpa"]

"""Locally-grouped self-attention (LSA): attention inside 7×7 windows of a map."""

from twins_trt.kernels.lsa.op import lsa, lsa_sdpa
from twins_trt.kernels.lsa.reference import lsa_reference

__all__ = ["lsa", "lsa_reference", "lsa_sdpa"]

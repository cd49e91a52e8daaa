"""GSA by whichever form suits the device."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from twins_trt.errors import UsageError
from twins_trt.kernels.backend import choose_backend
from twins_trt.kernels.gsa.launch import HEAD_DIMS
from twins_trt.kernels.gsa.op import gsa_op
from twins_trt.kernels.gsa.reference import gsa_reference


def gsa(q: Tensor, kv: Tensor, *, num_heads: int, backend: str = "auto") -> Tensor:
    """Attention of every position to the sub-sampled keys and values.

    q: float [B, N, C], one query per position, bias included, heads inside C. May be strided.
    kv: float [B, M, 2C], keys then values of the M = floor(H/sr)·floor(W/sr) summaries, bias included. May be strided.
    backend: `triton`, `sdpa`, `reference`, or `auto`: Triton on a GPU that can, `sdpa` on one that cannot, the
    reference on a CPU. While a graph is exported every name means the reference, whose operators are plain.
    Returns float [B, N, C], before the output projection.
    Raises UsageError for an unknown name and for shapes that do not fit each other.
    Source: Twins (arXiv 2104.13840) section 3.2; mmsegmentation's EfficientMultiheadAttention.
    """
    fits = q.ndim == kv.ndim == 3 and kv.shape[0] == q.shape[0] and kv.shape[2] == 2 * q.shape[2]
    if not fits or q.shape[2] % num_heads:
        raise UsageError(
            f"queries {list(q.shape)} and packed keys and values {list(kv.shape)} do not hold {num_heads} heads",
            "pass q [B, N, C] and kv [B, M, 2C], with C a multiple of num_heads",
        )
    head_dim = q.shape[2] // num_heads
    unsupported = None if head_dim in HEAD_DIMS else f"there is no kernel for head dim {head_dim}"
    form = choose_backend(backend, q, op="gsa", unsupported=unsupported)
    if form == "triton":
        return gsa_op(q, kv, num_heads)[0]
    return (gsa_sdpa if form == "sdpa" else gsa_reference)(q, kv, num_heads=num_heads)


def gsa_sdpa(q: Tensor, kv: Tensor, *, num_heads: int) -> Tensor:
    """GSA through torch's scaled_dot_product_attention. Arguments and result as `gsa_reference`."""
    k, v = kv.unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, M, head_dim], not copied
    out = F.scaled_dot_product_attention(q.unflatten(-1, (num_heads, -1)).transpose(1, 2), k, v)
    return out.transpose(1, 2).flatten(2)

"""GSA in plain torch: the definition that every faster form is held against."""

from __future__ import annotations

from torch import Tensor


def gsa_reference(q: Tensor, kv: Tensor, *, num_heads: int) -> Tensor:
    """Attention of every position to the sub-sampled keys and values.

    q: float [B, N, C], one query per position, bias included, heads inside C.
    kv: float [B, M, 2C], keys then values of the M = floor(H/sr)·floor(W/sr) summaries, bias included.
    Returns float [B, N, C], before the output projection.
    Source: Twins (arXiv 2104.13840) section 3.2; mmsegmentation's EfficientMultiheadAttention.
    """
    batch, queries, channels = q.shape
    head_dim = channels // num_heads
    q = q.reshape(batch, queries, num_heads, head_dim).transpose(1, 2)  # [B, heads, N, D]
    k, v = kv.reshape(batch, kv.shape[1], 2, num_heads, head_dim).permute(2, 0, 3, 1, 4)  # each [B, heads, M, D]
    scores = (q * head_dim**-0.5) @ k.transpose(-2, -1)  # [B, heads, N, M]
    out = scores.softmax(dim=-1) @ v  # [B, heads, N, D]
    return out.transpose(1, 2).reshape(batch, queries, channels)  # [B, N, C]

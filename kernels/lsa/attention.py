"""LSA by whichever form suits the device."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from twins_trt.errors import UsageError
from twins_trt.kernels.backend import choose_backend
from twins_trt.kernels.lsa.launch import HEAD_DIMS, MAX_WINDOW
from twins_trt.kernels.lsa.op import lsa_op
from twins_trt.kernels.lsa.reference import (
    lsa_reference,
    masks_padding,
    pad_with_bias,
    score_mask,
    split_heads,
    to_map,
    to_windows,
    window_padding,
)


def lsa(
    qkv: Tensor,
    qkv_bias: Tensor,
    *,
    num_heads: int,
    window_size: int = 7,
    padding: str = "parity",
    backend: str = "auto",
) -> Tensor:
    """Attention inside windows of a packed qkv map.

    qkv: float [B, H, W, 3C], queries, keys and values of every position, bias included, heads inside C. May be strided.
    qkv_bias: float [3C], what a padded position projects to (its input is zero).
    padding: `parity` or `masked`, see `masks_padding`.
    backend: `triton`, `sdpa`, `reference`, or `auto`: Triton on a GPU that can, `sdpa` on one that cannot, the
    reference on a CPU. While a graph is exported every name means the reference, whose operators are plain.
    Returns float [B, H, W, C], before the output projection.
    Raises UsageError for an unknown name and for shapes that do not fit each other.
    Source: Twins (arXiv 2104.13840) section 3.2; mmsegmentation's models/backbones/twins.py.
    """
    channels3 = qkv.shape[-1]
    if qkv.ndim != 4 or qkv_bias.shape != (channels3,) or channels3 % (3 * num_heads):
        raise UsageError(
            f"a qkv map {list(qkv.shape)} with a bias {list(qkv_bias.shape)} does not hold {num_heads} heads",
            "pass qkv [B, H, W, 3C] and qkv_bias [3C], with C a multiple of num_heads",
        )
    if padding not in ("parity", "masked"):
        raise UsageError(f"padding '{padding}' is unknown", "choose parity or masked")
    qkv_bias = qkv_bias.to(qkv.dtype)
    form = choose_backend(backend, qkv, op="lsa", unsupported=_unsupported(channels3 // (3 * num_heads), window_size))
    if form == "triton":
        return lsa_op(qkv, qkv_bias, num_heads, window_size, padding)
    plain = lsa_sdpa if form == "sdpa" else lsa_reference
    return plain(qkv, qkv_bias, num_heads=num_heads, window_size=window_size, padding=padding)


def lsa_sdpa(qkv: Tensor, qkv_bias: Tensor, *, num_heads: int, window_size: int = 7, padding: str = "parity") -> Tensor:
    """LSA through torch's scaled_dot_product_attention, windows copied out. Arguments and result as `lsa_reference`."""
    _, height, width, _ = qkv.shape
    padded, inside = pad_with_bias(qkv, qkv_bias, window_size)
    q, k, v = split_heads(to_windows(padded, window_size), num_heads).flatten(1, 2)  # [B · windows, heads, tokens, D]
    mask = None
    if masks_padding(*window_padding(height, width, window_size), padding=padding):
        mask = score_mask(inside, window_size, q.dtype)[0].repeat(qkv.shape[0], 1, 1, 1)  # [B · windows, 1, 1, tokens]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    out = out.transpose(1, 2).flatten(2).unflatten(0, (qkv.shape[0], -1))  # [B, windows, tokens, C]
    return to_map(out, padded.shape[1], padded.shape[2], window_size)[:, :height, :width]


def _unsupported(head_dim: int, window_size: int) -> str | None:
    if head_dim not in HEAD_DIMS:
        return f"there is no kernel for head dim {head_dim}"
    return f"there is no kernel for window size {window_size}" if window_size > MAX_WINDOW else None

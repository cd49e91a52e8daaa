"""LSA in plain torch: the definition that every faster form is held against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = -1000.0
"""Added to the score of a masked key (mmsegmentation's value: exp(-1000) is 0 in every dtype used here)."""


def window_padding(height: int, width: int, window_size: int) -> tuple[int, int]:
    """Rows and columns to add at the bottom and right so that windows tile a `height` × `width` map."""
    return -height % window_size, -width % window_size


def masks_padding(pad_bottom: int, pad_right: int, *, padding: str) -> bool:
    """Whether padded keys are excluded from attention.

    `masked` excludes them always. `parity` follows mmsegmentation's `LocallyGroupedSelfAttention`: it marks the pads
    with `mask[:, -pad_b:, :]`, and when a pad is 0 the slice `-0:` marks the whole map, so nothing stands out and the
    mask cancels. The published weights were scored with that: padded keys take part when exactly one pad is 0.
    """
    if padding == "masked":
        return pad_bottom > 0 or pad_right > 0
    return pad_bottom > 0 and pad_right > 0


def lsa_reference(
    qkv: Tensor, qkv_bias: Tensor, *, num_heads: int, window_size: int = 7, padding: str = "parity"
) -> Tensor:
    """Attention inside windows of a packed qkv map.

    qkv: float [B, H, W, 3C], queries, keys and values of every position, bias included, heads inside C.
    qkv_bias: float [3C], what a padded position projects to (its input is zero).
    padding: `parity` or `masked`, see `masks_padding`.
    Returns float [B, H, W, C], before the output projection.
    Source: Twins (arXiv 2104.13840) section 3.2; mmsegmentation's models/backbones/twins.py.
    """
    batch, height, width, channels3 = qkv.shape
    channels = channels3 // 3
    head_dim = channels // num_heads
    pad_bottom, pad_right = window_padding(height, width, window_size)
    masked = masks_padding(pad_bottom, pad_right, padding=padding)
    if pad_bottom or pad_right:
        inside = F.pad(torch.ones(height, width, dtype=torch.bool, device=qkv.device), (0, pad_right, 0, pad_bottom))
        qkv = F.pad(qkv, (0, 0, 0, pad_right, 0, pad_bottom))
        qkv = torch.where(inside[..., None], qkv, qkv_bias)
    rows, columns = (height + pad_bottom) // window_size, (width + pad_right) // window_size
    tokens = window_size * window_size

    def windows(x: Tensor) -> Tensor:  # [B, rows·w, columns·w, D] -> [B, rows·columns, w·w, D]
        x = x.reshape(x.shape[0], rows, window_size, columns, window_size, x.shape[-1])
        return x.transpose(2, 3).reshape(x.shape[0], rows * columns, tokens, x.shape[-1])

    packed = windows(qkv).reshape(batch, rows * columns, tokens, 3, num_heads, head_dim)
    q, k, v = packed.permute(3, 0, 1, 4, 2, 5)  # each [B, windows, heads, tokens, head_dim]
    scores = (q * head_dim**-0.5) @ k.transpose(-2, -1)
    if masked:
        key_mask = windows(inside[None, :, :, None].to(scores.dtype))[..., 0]  # [1, windows, tokens]
        scores = scores + ((1 - key_mask) * MASKED)[:, :, None, None, :]
    out = scores.softmax(dim=-1) @ v  # [B, windows, heads, tokens, head_dim]
    out = out.transpose(2, 3).reshape(batch, rows, columns, window_size, window_size, channels)
    out = out.transpose(2, 3).reshape(batch, rows * window_size, columns * window_size, channels)
    return out[:, :height, :width]

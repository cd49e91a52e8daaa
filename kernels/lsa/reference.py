"""LSA in plain torch: the definition that every faster form is held against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PADDINGS = ("parity", "masked", "unmasked")
MASKED = -1000.0
"""Added to the score of a masked key (mmsegmentation's value: exp(-1000) is 0 in every dtype used here)."""


def window_padding(height: int, width: int, window_size: int) -> tuple[int, int]:
    """Rows and columns to add at the bottom and right so that windows tile a `height` × `width` map."""
    return -height % window_size, -width % window_size


def masks_padding(pad_bottom: int, pad_right: int, *, padding: str) -> bool:
    """Whether padded keys are excluded from attention.

    `masked` excludes them always, `unmasked` never: timm's `LocallyGroupedAttn` pads with zeros and has no mask.
    `parity` follows mmsegmentation's `LocallyGroupedSelfAttention`: it marks the pads with `mask[:, -pad_b:, :]`, and
    when a pad is 0 the slice `-0:` marks the whole map, so nothing stands out and the mask cancels. The published
    weights were scored with that: padded keys take part when exactly one pad is 0.
    """
    if padding == "unmasked":
        return False
    if padding == "masked":
        return pad_bottom > 0 or pad_right > 0
    return pad_bottom > 0 and pad_right > 0


def to_windows(x: Tensor, window_size: int) -> Tensor:
    """[B, rows · w, columns · w, C] -> [B, rows · columns, w · w, C]."""
    batch, height, width, channels = x.shape
    rows, columns = height // window_size, width // window_size
    x = x.reshape(batch, rows, window_size, columns, window_size, channels)  # [B, rows, w, columns, w, C]
    return x.transpose(2, 3).reshape(batch, -1, window_size * window_size, channels)  # [B, windows, tokens, C]


def to_map(x: Tensor, height: int, width: int, window_size: int) -> Tensor:
    """[B, rows · columns, w · w, C] -> [B, height, width, C], a map that windows tile."""
    batch, channels = x.shape[0], x.shape[-1]
    rows, columns = height // window_size, width // window_size
    x = x.reshape(batch, rows, columns, window_size, window_size, channels)  # [B, rows, columns, w, w, C]
    return x.transpose(2, 3).reshape(batch, height, width, channels)  # [B, rows · w, columns · w, C]


def pad_with_bias(qkv: Tensor, qkv_bias: Tensor, window_size: int) -> tuple[Tensor, Tensor]:
    """The map padded at the bottom and right to whole windows; a padded position projects to the bias.

    Returns [B, rows · w, columns · w, 3C] and which of its positions lie in the map: bool [rows · w, columns · w, 1].
    """
    _, height, width, _ = qkv.shape
    pad_bottom, pad_right = window_padding(height, width, window_size)
    inside = F.pad(torch.ones(height, width, dtype=torch.bool, device=qkv.device), (0, pad_right, 0, pad_bottom))
    inside = inside[..., None]  # [rows · w, columns · w, 1]
    if pad_bottom or pad_right:
        qkv = torch.where(inside, F.pad(qkv, (0, 0, 0, pad_right, 0, pad_bottom)), qkv_bias)
    return qkv, inside


def split_heads(windows: Tensor, num_heads: int) -> Tensor:
    """Packed [B, windows, tokens, 3C] -> queries, keys and values [3, B, windows, heads, tokens, D]."""
    batch, count, tokens, channels3 = windows.shape
    head_dim = channels3 // (3 * num_heads)
    packed = windows.reshape(batch, count, tokens, 3, num_heads, head_dim)  # [B, windows, tokens, 3, heads, D]
    return packed.permute(3, 0, 1, 4, 2, 5)  # [3, B, windows, heads, tokens, D]


def score_mask(inside: Tensor, window_size: int, dtype: torch.dtype) -> Tensor:
    """What is added to scores to exclude padded keys: [1, windows, 1, 1, tokens], from `pad_with_bias`."""
    keys = to_windows(inside[None].to(dtype), window_size)[..., 0]  # [1, windows, tokens]
    return ((1 - keys) * MASKED)[:, :, None, None, :]  # [1, windows, 1, 1, tokens]


def lsa_reference(
    qkv: Tensor, qkv_bias: Tensor, *, num_heads: int, window_size: int = 7, padding: str = "parity"
) -> Tensor:
    """Attention inside windows of a packed qkv map.

    qkv: float [B, H, W, 3C], queries, keys and values of every position, bias included, heads inside C.
    qkv_bias: float [3C], what a padded position projects to (its input is zero).
    padding: `parity`, `masked` or `unmasked`, see `masks_padding`.
    Returns float [B, H, W, C], before the output projection.
    Source: Twins (arXiv 2104.13840) section 3.2; mmsegmentation's models/backbones/twins.py.
    """
    height, width = qkv.shape[1:3]
    masked = masks_padding(*window_padding(height, width, window_size), padding=padding)
    padded, inside = pad_with_bias(qkv, qkv_bias, window_size)
    q, k, v = split_heads(to_windows(padded, window_size), num_heads)  # each [B, windows, heads, tokens, D]
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [B, windows, heads, tokens, tokens]
    if masked:
        scores = scores + score_mask(inside, window_size, scores.dtype)
    out = scores.softmax(dim=-1) @ v  # [B, windows, heads, tokens, D]
    out = out.transpose(2, 3).flatten(3)  # [B, windows, tokens, C]
    return to_map(out, padded.shape[1], padded.shape[2], window_size)[:, :height, :width]  # [B, H, W, C]

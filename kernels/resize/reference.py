"""Resize and addition in plain torch: the definition that the kernel is held against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_add_reference(x: Tensor, size: tuple[int, int], *, mode: str, add: Tensor | None = None) -> Tensor:
    """A map resized, and added to another one of the new size.

    x: float [B, C, H, W]. size: (h, w) of the result, pixels. mode: `bilinear` (align_corners=False) or `nearest`.
    add: [B, C, h, w] of the same dtype, or None.
    Returns [B, C, h, w] in torch.channels_last memory format, rounded to the dtype after each of both operations.
    Source: mmsegmentation's FPN, FPNHead and UPerHead.
    """
    out = F.interpolate(x, size=tuple(size), mode=mode, align_corners=False if mode == "bilinear" else None)
    if add is not None:
        out = add + out
    return out.contiguous(memory_format=torch.channels_last)

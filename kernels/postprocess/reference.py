"""Resize and argmax in plain torch: the definition that the kernel is held against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_argmax_reference(
    logits: Tensor, size: tuple[int, int], *, probability: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Logits resized (bilinear, align_corners=False) and each pixel's best class, the first of equal ones.

    logits: float [B, C, h, w], at most 255 classes; 16-bit ones are interpolated as fp32. size: (H, W) of the mask,
    pixels. probability: whether to give the softmax of the winning class as well.
    Returns the mask, uint8 [B, H, W], and the probability, float [B, H, W] (fp32 or wider), or None. A pixel whose
    logits hold NaN or infinity may get any class.
    Source: mmsegmentation's EncoderDecoder.postprocess_result.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    full = F.interpolate(wide, tuple(size), mode="bilinear", align_corners=False)  # [B, C, H, W]
    mask = full.argmax(1)  # [B, H, W]; torch.max does not promise the first of equal classes
    if not probability:
        return mask.to(torch.uint8), None
    best = full.gather(1, mask[:, None])  # [B, 1, H, W]
    return mask.to(torch.uint8), (full - best).exp().sum(1).reciprocal()

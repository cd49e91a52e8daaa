"""The positional encoding in plain torch: the definition that the kernel is held against."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def add_position_reference(
    x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, *, size: tuple[int, int]
) -> Tensor:
    """`s + conv(s)` on the map of s = x + y: a depthwise 3x3 convolution with a rim of zeros.

    x: float [B, N, C], tokens of a map of N = H · W positions. y: as x, or None for nothing to add.
    weight: [C, 1, 3, 3]. bias: [C]. size: (H, W). All have one dtype.
    Returns [B, N, C]. On a CPU it does what `PositionEncoding` in `twins_trt/models/backbone.py` does on x + y, so
    results are equal to the bit.
    Source: conditional position encoding (arXiv 2102.10882); mmsegmentation's models/backbones/twins.py.
    """
    tokens = x if y is None else x + y
    batch, _, channels = tokens.shape
    image = tokens.transpose(1, 2).reshape(batch, channels, *size)  # [B, C, H, W]
    encoding = F.conv2d(image, weight, bias, padding=1, groups=channels)  # [B, C, H, W]
    return (encoding + image).flatten(2).transpose(1, 2)  # [B, N, C]

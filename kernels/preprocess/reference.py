"""Resize and normalization in plain torch: the definition that the kernel is held against."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

WEIGHT_BITS = 11
"""OpenCV weighs neighbouring pixels in steps of 1/2048."""

Channels = tuple[float, float, float]


def resize_normalize_reference(
    image: Tensor,
    size: tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """Pixels to the network's input: resized as OpenCV does, then `(pixel - mean) / std` in fp32.

    image: uint8 [B, H, W, 3], RGB. size: (h, w) of the result, pixels. mean, std: per channel, in grey levels of 0-255.
    Returns `dtype` [B, 3, h, w], in torch.channels_last memory format with `channels_last`.
    Call it once with a size before a CUDA graph captures that size: the first call copies tables to the device.
    Bit for bit what `cv2.resize` (INTER_LINEAR, x86-64) followed by `normalized_planes` gives in fp32: OpenCV's
    fixed-point weights, its rounding and what it does at the edges.
    Source: OpenCV's modules/imgproc/src/resize.cpp, resizeGeneric_ for uchar; mmsegmentation's SegDataPreProcessor.
    """
    pixels = image
    if tuple(image.shape[1:3]) != tuple(size):
        pixels = _resize(image, size)
    planes = pixels.permute(0, 3, 1, 2).to(torch.float32)  # [B, 3, h, w]
    mean_, std_ = (_per_channel(tuple(values), image.device) for values in (mean, std))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return ((planes - mean_) / std_).to(dtype).contiguous(memory_format=layout)


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    top, bottom, above, below = row_taps(image.shape[1], size[0], image.device)[:, :, None, None]  # each [h, 1, 1]
    left, right, before, after = column_taps(image.shape[2], size[1], image.device)[:, :, None]  # each [w, 1]
    wide = image.to(torch.int32)
    rows = wide[:, :, left[:, 0]] * before + wide[:, :, right[:, 0]] * after >> 4  # [B, H, w, 3]
    first, second = rows[:, top[:, 0, 0]] * above >> 16, rows[:, bottom[:, 0, 0]] * below >> 16  # [B, h, w, 3]
    return first + second + 2 >> 2


@functools.cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """fp32 [3, 1, 1]. A GPU multiplies by the reciprocal of a Python number, which rounds otherwise."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]  # [3, 1, 1]


@functools.cache
def row_taps(source: int, target: int, device: torch.device) -> Tensor:
    """Both neighbours of every row of the target, and their weights of 2048: int32 [4, target].

    Beyond the edges OpenCV clips indices and keeps weights, which rounds twice: `column_taps` does otherwise.
    They stay on the device for good, a few KB a size, because a CUDA graph that was captured with them reads them at
    every replay. Call this once before a capture, in which a copy to the device is forbidden.
    """
    index, weight = _positions(source, target)
    return _pack(index.clamp(0, source - 1), (index + 1).clamp(0, source - 1), weight).to(device)


@functools.cache
def column_taps(source: int, target: int, device: torch.device) -> Tensor:
    """Computes the taps of columns as `row_taps` does, but beyond the edges the first neighbour has all the weight."""
    index, weight = _positions(source, target)
    weight[(index < 0) | (index >= source - 1)] = 0
    index = index.clamp(0, source - 1)
    return _pack(index, (index + 1).clamp(max=source - 1), weight).to(device)


def _positions(source: int, target: int) -> tuple[Tensor, Tensor]:
    """Index of the first neighbour, -1 beyond the edge, and the weight of the second, fp32."""
    scale = 1 / (target / source)  # the reciprocal of a ratio, as OpenCV has it, is not always source / target
    centres = ((torch.arange(target, dtype=torch.float64) + 0.5) * scale - 0.5).to(torch.float32)
    index = centres.floor()
    return index.to(torch.int64), centres - index


def _pack(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    steps = float(1 << WEIGHT_BITS)
    return torch.stack((first, second, ((1 - weight) * steps).round(), (weight * steps).round())).to(torch.int32)

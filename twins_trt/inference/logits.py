"""The operations on logits [N, C, H, W] that inference needs, for NumPy arrays and for torch tensors.

A PyTorch model's logits stay on its device and are computed by `torch.nn.functional`. An engine's NumPy logits need no
torch. Both give the same numbers up to rounding (1e-6 of the largest logit); tests check that.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

# A NumPy array or a torch tensor; a type that names torch would import it.
Logits = Any

# Rows of full-size logits that are in memory at once while classes are compared. They take 40 MB for 150 classes at
# 2048 pixels, and a band stays in the processor's cache.
_BAND = 32


def is_tensor(values: Logits) -> bool:
    """Whether `values` is a torch tensor. Never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)


def holds_nan(logits: Logits) -> bool:
    """Whether any value is NaN, on any device."""
    return bool((logits != logits).any())


def resize_logits(logits: Logits, size: tuple[int, int]) -> Logits:
    """Bilinear resize of [N, C, H, W] to (height, width), `align_corners=False`, no antialiasing: F.interpolate's."""
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    if is_tensor(logits):
        from torch.nn import functional

        return functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    columns = lerp(np.asarray(logits, np.float32), size[1], axis=3)
    return lerp(columns, size[0], axis=2)


def class_probabilities(logits: Logits, *, threshold: float | None = None) -> Logits:
    """Softmax over the classes of [N, C, H, W], in float32.

    threshold: of a head with one logit, whose channel 1 it is. Then the result is the sigmoid of that, beside the
    threshold itself in channel 0: the larger of both averages is mmsegmentation's mask.
    """
    if threshold is not None:
        return _beside(threshold, sigmoid(logits[:, 1:]))
    if is_tensor(logits):
        return logits.float().softmax(dim=1)
    shifted = np.asarray(logits, np.float32) - logits.max(axis=1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=1, keepdims=True)
    return shifted


def sigmoid(values: Logits) -> Logits:
    """1 / (1 + exp(-x)) in float32. Large values overflow nothing."""
    if is_tensor(values):
        return values.float().sigmoid()
    half = np.tanh(np.asarray(values, np.float32) * np.float32(0.5))
    return half * np.float32(0.5) + np.float32(0.5)


def _beside(constant: float, values: Logits) -> Logits:
    """[N, 1, H, W] -> [N, 2, H, W], with the constant in channel 0."""
    if is_tensor(values):
        import torch

        return torch.cat([torch.full_like(values, constant), values], dim=1)
    return np.concatenate([np.full_like(values, constant), values], axis=1)


def flip_width(values: Logits) -> Logits:
    """`values` with the last axis mirrored."""
    return values.flip(-1) if is_tensor(values) else np.ascontiguousarray(values[..., ::-1])


def zeros_of_size(logits: Logits, size: tuple[int, int]) -> Logits:
    """Zeros float32 [N, C, height, width], an array or a tensor as `logits` is, on its device."""
    shape = (*logits.shape[:2], *size)
    if is_tensor(logits):
        import torch

        return logits.new_zeros(shape, dtype=torch.float32)
    return np.zeros(shape, np.float32)


def divide(logits: Logits, count: npt.NDArray[np.float32]) -> Logits:
    """Logits [N, C, H, W] divided by a count per pixel, [H, W]."""
    if is_tensor(logits):
        import torch

        return logits / torch.from_numpy(count).to(logits.device)
    return logits / count


def resized_argmax(logits: Logits, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Resizes [1, C, H, W] to (height, width) and takes the best class of every pixel: uint8 [height, width].

    The lowest of equal classes wins. With NumPy the full-size logits are never in memory: for 150 classes and a
    photograph they are gigabytes.
    """
    if is_tensor(logits):
        mask: npt.NDArray[np.uint8] = resize_logits(logits, size)[0].argmax(dim=0).byte().cpu().numpy()
        return mask
    columns = np.asarray(logits[0], np.float32)
    if columns.shape[2] != size[1]:
        columns = lerp(columns, size[1], axis=2)  # [C, H, width]
    mask = np.empty(size, np.uint8)
    for top in range(0, size[0], _BAND):
        rows = slice(top, min(top + _BAND, size[0]))
        mask[rows] = first_argmax(lerp(columns, size[0], axis=1, part=rows))
    return mask


def first_argmax(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """uint8 argmax over axis 0 of [C, H, W], class by class: NumPy's own is slow on an axis with a stride of H*W."""
    best = scores[0].copy()
    mask = np.zeros(best.shape, np.uint8)
    for index in range(1, len(scores)):
        better = scores[index] > best
        mask[better] = index
        np.maximum(best, scores[index], out=best)
    return mask


def lerp(
    values: npt.NDArray[np.float32],
    length: int,
    *,
    axis: int,
    part: slice | None = None,
    first: int = 0,
    extent: int | None = None,
) -> npt.NDArray[np.float32]:
    """Linear interpolation of one axis to `length` half-pixel-centred samples, or `part` of them. Edges are repeated.

    first, extent: `values` is a piece of an axis of `extent` samples that begins at `first` and has all that `part`
    needs.
    """
    extent = values.shape[axis] if extent is None else extent
    if extent == length:
        rows = slice(0, length) if part is None else part
        whole = part is None and not first
        return values if whole else values[(slice(None),) * axis + (slice(rows.start - first, rows.stop - first),)]
    scale = np.float32(extent / length)
    centres = (np.arange(length, dtype=np.float32)[part or slice(None)] + np.float32(0.5)) * scale - np.float32(0.5)
    # As in torch, the left edge is clamped before the weight is computed. At the right edge the last sample is
    # repeated.
    np.maximum(centres, 0, out=centres)
    low = np.minimum(centres.astype(np.int64), extent - 1)
    # Samples beyond the last one have no weight.
    high = np.minimum(low + 1, first + values.shape[axis] - 1)
    weight = (centres - low).reshape((-1,) + (1,) * (values.ndim - 1 - axis)).astype(np.float32)
    result = np.take(values, high - first, axis=axis)
    left = np.take(values, low - first, axis=axis)
    result -= left
    result *= weight
    result += left
    return result

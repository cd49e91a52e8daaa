"""Bilinear resizing written from its definition, for tests to hold every other way of computing it against."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def bilinear(plane: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """float64 [h, w, ...] to [height, width, ...], align_corners=False: written from the definition."""
    for axis, target in enumerate(size):
        length = plane.shape[axis]
        position = np.clip((np.arange(target) + 0.5) * length / target - 0.5, 0, length - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, length - 1)
        weight = (position - low).reshape((-1,) + (1,) * (plane.ndim - axis - 1))
        plane = plane.take(low, axis) * (1 - weight) + plane.take(high, axis) * weight
    return plane

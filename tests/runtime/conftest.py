"""Pictures that show every class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tiny_graphs import PROTOTYPES, UInt8Array


@pytest.fixture
def picture(rng: np.random.Generator) -> Callable[[int, int], UInt8Array]:
    """`picture(height, width)`: patches of prototype colours with noise, so that every class occurs."""

    def draw(height: int, width: int) -> UInt8Array:
        index = rng.integers(0, len(PROTOTYPES), (-(-height // 6), -(-width // 6))).repeat(6, 0).repeat(6, 1)
        noise = rng.integers(-20, 21, (height, width, 3))
        return np.clip(PROTOTYPES[index[:height, :width]] + noise, 0, 255).astype(np.uint8)

    return draw

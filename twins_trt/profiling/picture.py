"""The picture that is segmented where none is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def draw_picture(path: Path, size: tuple[int, int]) -> None:
    """Writes a JPEG of patches of colour with some noise, the same every time: about as many bytes as a photograph."""
    from PIL import Image

    rng = np.random.default_rng(0)
    height, width = size
    patches = rng.integers(0, 256, (-(-height // 24), -(-width // 24), 3)).repeat(24, 0).repeat(24, 1)
    noisy = patches[:height, :width] + rng.normal(0, 6, (height, width, 3))
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path, "JPEG", quality=90)

"""Small bundles, images and packs for the tests of packs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from twins_trt.verbs.build import BuildRequest

SIZE, CLASSES, IMAGES = (64, 96), 5, 30


def write_images(folder: Path, *, images: int = IMAGES, size: tuple[int, int] = SIZE) -> str:
    """Blocks of colour with random labels, some of them ignored. Returns the data set's name."""
    rng = np.random.default_rng(3)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    tall, wide = -(-size[0] // 16), -(-size[1] // 16)
    for i in range(images):
        blocks = rng.integers(0, 255, (tall * 2, wide * 2, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        Image.fromarray(blocks[: size[0], : size[1]]).save(folder / "images" / f"{i:02}.png")
        labels = rng.integers(0, CLASSES + 1, (tall, wide)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
        labels[labels == CLASSES] = 255
        Image.fromarray(labels[: size[0], : size[1]]).save(folder / "labels" / f"{i:02}.png")
    (folder / "classes.txt").write_text("".join(f"class {i}\n" for i in range(CLASSES)))
    return f"folder:{folder}"


def small(path: Path, **fields: Any) -> BuildRequest:
    """A build of the demo's model with seeded weights, for the CPU."""
    more = {"size": SIZE, "num_classes": CLASSES, "targets": ("cpu",), **fields}
    return BuildRequest("twins_svt-demo_fpn", str(path), seeded=True, **more)

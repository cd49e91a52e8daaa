"""A model of a few layers and a data set of coloured blocks, both small enough for a test that trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from twins_trt.models import zoo

TOY, TOY_UPERNET, TOY_PCPVT = "twins_svt-toy_fpn", "twins_svt-toy_upernet", "twins_pcpvt-toy_fpn"
COLOURS = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200)], np.uint8)
WIDTHS = {"embed_dims": (16, 32, 48, 64), "num_heads": (1, 2, 3, 4), "depths": (2, 2, 1, 1)}


def register() -> None:
    """Puts the toys into the zoo of this process."""
    for name, base in ((TOY, "svt-s_fpn"), (TOY_UPERNET, "svt-s_upernet"), (TOY_PCPVT, "pcpvt-s_fpn")):
        spec = replace(zoo.get_spec(f"twins_{base}"), name=name, variant="toy", mlp_ratios=(2, 2, 2, 2), **WIDTHS)
        zoo._BY_NAME[name] = spec


def unregister() -> None:
    for name in (TOY, TOY_UPERNET, TOY_PCPVT):
        zoo._BY_NAME.pop(name, None)


def draw(root: Path, *, train: int = 8, val: int = 2, size: tuple[int, int] = (72, 88)) -> str:
    """A data set of 3 classes, blocks of 8 pixels in the colour of their class with noise; the top rows ignored."""
    (root / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            blocks = rng.integers(0, 3, (-(-size[0] // 8), -(-size[1] // 8))).astype(np.uint8)
            label = blocks.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]
            image = np.clip(COLOURS[label].astype(int) + rng.integers(-30, 31, (*label.shape, 3)), 0, 255)
            label = label.copy()
            label[:3] = 255
            Image.fromarray(image.astype(np.uint8)).save(root / split / "images" / f"{i}.png")
            Image.fromarray(label).save(root / split / "labels" / f"{i}.png")
    return f"folder:{root}"

"""A small labelled data set: smooth pictures, with the float32 model's own masks as labels.

So a graph that computes what the model computes scores 100.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from twins_trt.inference import predict_mask

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor

MODEL, SIZE, CLASSES = "twins_svt-demo_fpn", (64, 96), 4
"""What builds of tests are made of: the smallest model, (height, width), and how many classes it has."""


def write_data(folder: Path, model: Segmentor, *, size: tuple[int, int], count: int) -> Path:
    """`count` pictures of `size` in PATH/train and PATH/val, with labels and classes.txt."""
    import torch

    def logits(x: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            return model(torch.as_tensor(x))

    for seed, split in enumerate(("train", "val")):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        for index in range(count):
            image = picture(1000 * seed + index, size)
            Image.fromarray(image).save(folder / split / "images" / f"{index:02}.png")
            mask = predict_mask(logits, image)
            Image.fromarray(mask).save(folder / split / "labels" / f"{index:02}.png")
    (folder / "classes.txt").write_text("".join(f"class {index}\n" for index in range(model.num_classes)))
    return folder


def picture(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Waves of colour with a little noise: uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    waves = [np.sin(rng.uniform(3, 30) * x + rng.uniform(3, 30) * y + rng.uniform(0, 6)) for _ in range(3)]
    image = 128 + 100 * np.stack(waves, axis=2) + rng.normal(0, 6, (*size, 3))
    return np.clip(image, 0, 255).astype(np.uint8)

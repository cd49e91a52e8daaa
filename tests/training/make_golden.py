"""mmsegmentation's training loss and its gradients on seeded weights and pictures: what ours is held against.

Writes golden.json beside it. Runs in mmsegmentation's own environment (see CONTRIBUTING.md), from the top of the
repository:

    PYTHONPATH=.:benchmarks mmseg-env/bin/python tests/training/make_golden.py

Everything is float64, without dropout and drop path, so that what remains is definition and not rounding. A gradient is
kept as two numbers, its norm and its product with a seeded direction.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from twins_trt.models.seeded import seed_weights, seeded_array

MODELS = ("twins_svt-s_fpn", "twins_pcpvt-s_fpn", "twins_svt-s_upernet")
CLASSES = 19
SIZE = (70, 100)  # no side is a multiple of 4


def seeded_batch() -> tuple[Tensor, Tensor]:
    """Pictures float64 [2, 3, 70, 100] and labels int64 [2, 70, 100], a tenth of them 255."""
    images = torch.from_numpy(seeded_array("images", (2, 3, *SIZE))).double() * 2
    labels = torch.from_numpy(seeded_array("labels", (2, *SIZE))).double()
    classes = ((labels + 1) / 2 * CLASSES).long()
    return images, torch.where(labels > 0.8, 255, classes)


def described(gradients: dict[str, Tensor]) -> dict[str, list[float]]:
    """Norm, and product with a seeded direction, of each gradient."""
    numbers = {}
    for name, gradient in gradients.items():
        direction = torch.from_numpy(seeded_array(f"direction.{name}", (gradient.numel(),))).double()
        numbers[name] = [float(f"{x:.9g}") for x in (gradient.norm(), gradient.flatten() @ direction)]
    return numbers


def mmseg_losses(name: str) -> dict[str, Any]:
    """Losses by mmseg's names, and the gradient of their sum."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    from mmseg_export import build_mmseg

    model = build_mmseg(name, CLASSES)
    seed_weights(model)
    model.double().train()
    for module in model.modules():
        if type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
        elif isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    images, labels = seeded_batch()
    samples = [SegDataSample(gt_sem_seg=PixelData(data=each[None])) for each in labels]
    losses = model.loss(images, samples)
    sum(value for key, value in losses.items() if "loss" in key).backward()
    gradients = {key: value.grad for key, value in model.named_parameters()}
    return {"losses": {key: float(value) for key, value in losses.items()}, "gradients": described(gradients)}


def main() -> None:
    values = {name: mmseg_losses(name) for name in MODELS}
    text = json.dumps({"torch": torch.__version__, "numpy": np.__version__, **values})
    lines = text.replace('"backbone.', '\n"backbone.').replace('"decode_head.', '\n"decode_head.')
    Path(__file__).with_name("golden.json").write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The demo's checkpoint: rounded, scored, and with the conventions of its training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from twins_trt.data import open_dataset
from twins_trt.demo.scenes import CLASSES, write_scenes
from twins_trt.demo.train import save_rounded
from twins_trt.evaluation import evaluate_model
from twins_trt.models import build_model
from twins_trt.models.seeded import seed_weights
from twins_trt.models.zoo import DEMO


def test_the_demos_checkpoint_carries_its_score(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "scenes", "val", range(3), size=(64, 96))
    model = build_model(DEMO.name, len(CLASSES))
    seed_weights(model)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "trained.pth")
    meta = save_rounded(tmp_path / "trained.pth", tmp_path / "out.pth", data=data, facts={"scenes": 3})
    rounded = build_model(checkpoint=tmp_path / "out.pth")
    assert meta["mIoU"] == rounded.conventions.miou and meta["scenes"] == 3
    assert rounded.conventions.classes == CLASSES
    scored = evaluate_model(rounded, open_dataset(data, split="val")).scores.miou
    assert scored == pytest.approx(meta["mIoU"], abs=0.005)

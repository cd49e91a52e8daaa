"""Makes mmsegmentation's plain exports with the weights of our models, in a Python that has mmsegmentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twins_trt.models import Segmentor

EXPORTER = Path(__file__).with_name("mmseg_export.py")


def seeded_model(name: str) -> Segmentor:
    """The model with the weights of `--seeded`. mmsegmentation's export gets the same weights."""
    from twins_trt.models import build_model
    from twins_trt.models.seeded import seed_weights

    model = build_model(name)
    seed_weights(model)
    return model


def export_baseline(
    python: str, name: str, folder: Path, *, size: tuple[int, int], opset: int = 18, model: Segmentor | None = None
) -> Path:
    """Writes `MODEL.onnx` and `MODEL.fp16.onnx` into `folder` and returns the first. Existing files are kept.

    python: an interpreter with mmsegmentation (see mmseg_export.py). model: gives the weights, by default seeded ones.
    Raises SystemExit, with the exporter's message, if the export fails.
    """
    path = folder / f"{name}.onnx"
    if path.exists() and path.with_suffix(".fp16.onnx").exists():
        return path
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{name}.pth"
    model = model or seeded_model(name)
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    command = [python, str(EXPORTER), name, "--size", f"{size[0]}x{size[1]}", "--out", str(folder)]
    command += ["--checkpoint", str(checkpoint), "--opset", str(opset), "--num-classes", str(model.num_classes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    checkpoint.unlink()
    if done.returncode:
        sys.exit(f"mmsegmentation's export of {name} failed:\n{done.stderr[-2000:]}")
    return path

"""mmsegmentation's plain exports with the weights of our models, made by a Python that has mmsegmentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXPORTER = Path(__file__).with_name("mmseg_export.py")


def seeded_checkpoint(name: str, folder: Path) -> Path:
    """A checkpoint of `name` with the weights that `--seeded` uses: both graphs then compute the same thing."""
    import torch

    from twins_trt.models import build_model
    from twins_trt.models.seeded import seed_weights

    model = build_model(name)
    seed_weights(model)
    path = folder / f"{name}.pth"
    torch.save({"state_dict": model.state_dict()}, path)
    return path


def export_baseline(python: str, name: str, folder: Path, *, size: tuple[int, int], opset: int = 18) -> Path:
    """Writes `MODEL.onnx` and `MODEL.fp16.onnx` into `folder` and returns the first. Files that are there are kept.

    `python`: an interpreter with mmsegmentation (see mmseg_export.py). Raises SystemExit with its words if it fails.
    """
    path = folder / f"{name}.onnx"
    if path.exists() and path.with_suffix(".fp16.onnx").exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = seeded_checkpoint(name, folder)
    command = [python, str(EXPORTER), name, "--size", f"{size[0]}x{size[1]}", "--out", str(folder)]
    command += ["--checkpoint", str(checkpoint), "--opset", str(opset)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    checkpoint.unlink()
    if done.returncode:
        sys.exit(f"mmsegmentation's export of {name} failed:\n{done.stderr[-2000:]}")
    return path

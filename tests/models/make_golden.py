"""Writes golden.json: what mmsegmentation's own 12 models compute on this package's seeded weights.

Run in a virtual environment of its own with mmsegmentation 1.2.2 (see CONTRIBUTING.md):
    PYTHONPATH=. python tests/models/make_golden.py PATH_OF_MMSEG_REFERENCE
where the argument is a folder with `mmseg_reference.py`, whose `build(name)` gives mmsegmentation's model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from twins_trt.models.seeded import seed_weights
from twins_trt.models.zoo import list_models

# Whole windows in no stage; padding of columns only in three stages (mmseg's mask cancels there).
SIZES = ((64, 96), (112, 80))
SAMPLES = 24


def pixels(height: int, width: int) -> np.ndarray:
    """A network input, float32 [1, 3, height, width]: waves, so that any platform computes the same."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [np.sin(x / (5 + c) + y / (9 - c) + c) + 0.5 * np.cos(x * y / (400 + 90 * c)) for c in range(3)]
    return np.stack(waves)[None].astype(np.float32)


def sample(logits: np.ndarray) -> list[float]:
    """`SAMPLES` values spread over a tensor."""
    flat = logits.ravel()
    return [float(f"{flat[i]:.6g}") for i in np.linspace(0, flat.size - 1, SAMPLES).astype(int)]


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    from mmseg_reference import build

    golden = {}
    for name in list_models():
        model = build(name)
        seed_weights(model)
        for height, width in SIZES:
            with torch.no_grad():
                logits = model._forward(torch.from_numpy(pixels(height, width))).numpy()
            entry = {"shape": list(logits.shape), "absmax": float(np.abs(logits).max()), "samples": sample(logits)}
            golden[f"{name}@{height}x{width}"] = entry
        golden[name] = {"parameters": sum(p.numel() for p in model.parameters()), "keys": len(model.state_dict())}
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
    Path(__file__).with_name("golden.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()

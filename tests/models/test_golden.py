"""All 12 models against outputs of mmsegmentation 1.2.2, on the same seeded weights and inputs."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from twins_trt.models import build_model, list_models

pytestmark = pytest.mark.shared
TOLERANCE = 1e-4  # of the logits' largest magnitude; float32 sums in another order differ by about 1e-6


@pytest.mark.parametrize("name", list_models())
def test_matches_mmsegmentation(name: str, shared: Path, seeded: ModuleType) -> None:
    golden = shared / "data" / "golden"
    table = json.loads((golden / f"{name}.json").read_text())
    model = build_model(name)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {key: list(shape) for key, shape in shapes.items()} == table["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == table["parameters"]

    model.load_state_dict({k: torch.from_numpy(v) for k, v in seeded.seeded_state_dict(shapes).items()})
    expected = np.load(golden / f"{name}.npz")
    sizes = [key.removeprefix("logits_") for key in expected if key.startswith("logits_")]
    assert {"512x512x1", "256x672x1", "200x333x1"} <= set(sizes)
    for size in sizes:
        height, width, batch = map(int, size.split("x"))
        x = torch.from_numpy(seeded.seeded_image(height, width, batch))
        with torch.inference_mode():
            stages = model.forward_features(x)
            logits = model(x).numpy()
        assert list(logits.shape) == expected[f"shape_{size}"].tolist()
        limit = TOLERANCE * float(expected[f"absmax_{size}"])
        np.testing.assert_allclose(logits[:, ::10, ::8, ::8], expected[f"logits_{size}"], rtol=0, atol=limit)
        for i, stage in enumerate(stages):
            want = expected[f"stage{i}_{size}"]
            atol = TOLERANCE * float(stage.abs().max())
            np.testing.assert_allclose(stage.numpy()[:, ::16, ::8, ::8], want, rtol=0, atol=atol)

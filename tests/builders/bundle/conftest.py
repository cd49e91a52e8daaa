from __future__ import annotations

from pathlib import Path

import pytest
from pictures import CLASSES, MODEL, SIZE, write_data

from twins_trt.models.weights import load_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight labelled images, with the model's own masks as labels."""
    model, _ = load_weights(MODEL, seeded=True, num_classes=CLASSES)
    return write_data(tmp_path_factory.mktemp("data"), model, size=SIZE, count=8)

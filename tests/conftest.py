"""Fixtures for every room. `shared` is the acceptance data that lies beside the checkout and never in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden outputs, CamVid and the trained checkpoint; TWINS_TRT_SHARED overrides where it lies."""
    folder = Path(os.environ.get("TWINS_TRT_SHARED", ROOT.parent / "shared"))
    if not (folder / "data" / "golden").is_dir():
        pytest.skip(f"acceptance data missing: no {folder.name}/data/golden beside the checkout (set TWINS_TRT_SHARED)")
    return folder


@pytest.fixture(scope="session")
def camvid(shared: Path) -> Path:
    folder = shared / "data" / "camvid"
    if not folder.is_dir():
        pytest.skip("acceptance data missing: data/camvid")
    return folder


@pytest.fixture(scope="session")
def camvid_checkpoint(shared: Path) -> Path:
    path = shared / "data" / "checkpoints" / "twins_svt-s_fpn_camvid.pth"
    if not path.is_file():
        pytest.skip("acceptance data missing: data/checkpoints/twins_svt-s_fpn_camvid.pth")
    return path


@pytest.fixture(scope="session")
def seeded(shared: Path) -> ModuleType:
    """The module that makes the weights and inputs behind the golden outputs."""
    sys.path.insert(0, str(shared / "tools"))
    try:
        import seeded_weights
    finally:
        sys.path.pop(0)
    return seeded_weights


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)

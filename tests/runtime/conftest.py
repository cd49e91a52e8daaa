"""Fixtures of the runtime: pictures that show every class, and a simulated machine with a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from machine import Machine
from tiny_graphs import PROTOTYPES, MakeBundle, UInt8Array


@pytest.fixture
def picture(rng: np.random.Generator) -> Callable[[int, int], UInt8Array]:
    """`picture(height, width)`: patches of prototype colours with noise, so that every class occurs."""

    def draw(height: int, width: int) -> UInt8Array:
        index = rng.integers(0, len(PROTOTYPES), (-(-height // 6), -(-width // 6))).repeat(6, 0).repeat(6, 1)
        noise = rng.integers(-20, 21, (height, width, 3))
        return np.clip(PROTOTYPES[index[:height, :width]] + noise, 0, 255).astype(np.uint8)

    return draw


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, make_bundle: MakeBundle, tmp_path: Path) -> Iterator[Machine]:
    """A machine with TensorRT 10.13, cuda-bindings and a desktop's GPU; `install` makes it another. At the end nothing
    may be left on its GPU."""
    made = Machine(monkeypatch, make_bundle, tmp_path / "home")
    yield made
    for engine in made.made:
        engine.close()
    gc.collect()
    assert made.gpu.pending() == 0
    assert made.gpu.held() == dict.fromkeys(made.gpu.held(), 0)

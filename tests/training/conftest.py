from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("cv2")

import toy
from toy import Options

from twins_trt.training import TrainRequest


@pytest.fixture(autouse=True)
def toys() -> Iterator[None]:
    toy.register()
    yield
    toy.unregister()


@pytest.fixture(scope="session")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`folder:PATH` of 8 pictures to train on and 2 to validate on."""
    return toy.draw(tmp_path_factory.mktemp("blocks"))


@pytest.fixture
def options(blocks: str, tmp_path: Path) -> Options:
    """The request of a short run of the toy model; fields can be overridden."""

    def make(**fields: Any) -> TrainRequest:
        short: dict[str, Any] = {
            "model": toy.TOY,
            "data": blocks,
            "out": str(tmp_path / "run"),
            "scratch": True,
            "iterations": 4,
            "batch": 2,
            "crop": (64, 64),
            "lr": 1e-3,
            "warmup": 1,
            "validate_every": 100,
            "threads": 1,
        }
        return TrainRequest(**{**short, **fields})

    return make

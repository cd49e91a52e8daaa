"""The reference's masks are computed once; a damaged file of a mask is computed again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from twins_trt.builders.gate.reference import ReferenceMasks
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.models.weights import load_weights


@pytest.fixture(scope="module")
def model() -> Any:
    return load_weights("twins_svt-demo_fpn", seeded=True, num_classes=4)[0]


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (8, 12, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8) for _ in range(3)]


def other(mask: np.ndarray) -> Callable[[Path], object]:
    return lambda path: np.savez_compressed(path, mask=mask)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x00" * 500),
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        lambda path: path.write_bytes(b"no archive"),
        flip,
        lambda path: np.savez_compressed(path, masks=np.zeros((64, 96), np.uint8)),
        other(np.zeros((96, 64), np.uint8)),
        other(np.zeros((64, 96), np.int64)),
        other(np.array([{}], object)),
    ],
)
def test_a_damaged_mask_is_named_and_computed_again(
    model: Any, tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    first = ReferenceMasks(model, preprocessing=Preprocessing(), folder=tmp_path)
    expected = [first(image) for image in images()]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert first.computed == len(kept) == 3
    victim = max(kept, key=lambda path: kept[path])  # of the last image
    damage(victim)
    again = ReferenceMasks(model, preprocessing=Preprocessing(), folder=tmp_path)
    assert all(np.array_equal(again(image), mask) for image, mask in zip(images(), expected, strict=True))
    assert again.computed == 1
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(f"{victim} is damaged (")
    caplog.clear()
    third = ReferenceMasks(model, preprocessing=Preprocessing(), folder=tmp_path)
    assert all(np.array_equal(third(image), mask) for image, mask in zip(images(), expected, strict=True))
    assert third.computed == 0 and not caplog.messages and {*tmp_path.iterdir()} == {*kept}

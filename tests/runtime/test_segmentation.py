"""Masks as pictures: the PNG holds the indices and the palette, the overlay the blend."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_graphs import CLASSES, PALETTE, UInt8Array

from twins_trt.data import generated_palette
from twins_trt.errors import ImageError, MissingDependencyError, UsageError
from twins_trt.runtime import Segmentation

MASK = np.array([[0, 1, 2], [3, 4, 4]], np.uint8)


@pytest.fixture
def image(rng: np.random.Generator) -> UInt8Array:
    return rng.integers(0, 256, (2, 3, 3), dtype=np.uint8)


@pytest.fixture
def result(image: UInt8Array) -> Segmentation:
    return Segmentation(MASK, CLASSES, PALETTE, image)


def test_the_mask_is_saved_as_indices_with_its_palette(result: Segmentation, tmp_path: Path) -> None:
    path = result.save(tmp_path / "new" / "folder" / "x.png")
    with Image.open(path) as saved:
        assert saved.mode == "P"
        assert np.array_equal(np.asarray(saved), MASK)
        assert np.array_equal(np.asarray(saved.convert("RGB")), np.array(PALETTE, np.uint8)[MASK])


def test_all_256_indices_survive_a_png(tmp_path: Path) -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    result = Segmentation(mask, tuple(map(str, range(256))), generated_palette(256))
    with Image.open(result.save(tmp_path / "x.PNG")) as saved:
        assert np.array_equal(np.asarray(saved), mask)
    assert len({tuple(colour) for colour in result.colours().reshape(-1, 3).tolist()}) == 256


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_an_overlay_is_the_blend_of_picture_and_colours(result: Segmentation, image: UInt8Array, alpha: float) -> None:
    wanted = (1 - alpha) * image.astype(float) + alpha * np.array(PALETTE, float)[MASK]
    overlay = result.overlay(alpha=alpha)
    assert overlay.dtype == np.uint8
    assert np.abs(overlay - wanted).max() <= 0.501
    assert np.array_equal(overlay, Segmentation(MASK, CLASSES, PALETTE).overlay(image, alpha=alpha))


def test_the_overlay_is_saved(result: Segmentation, tmp_path: Path) -> None:
    with Image.open(result.save_overlay(tmp_path / "x.png", alpha=0.25)) as saved:
        assert np.array_equal(np.asarray(saved), result.overlay(alpha=0.25))


def test_areas_are_fractions_by_class(result: Segmentation) -> None:
    assert result.areas() == pytest.approx(
        {"night": 1 / 6, "snow": 1 / 6, "brick": 1 / 6, "grass": 1 / 6, "water": 2 / 6}
    )
    assert sum(result.areas().values()) == pytest.approx(1)


def test_classes_past_the_palette_are_black_not_a_crash() -> None:
    result = Segmentation(np.array([[200]], np.uint8), CLASSES, PALETTE)
    assert result.colours().tolist() == [[[0, 0, 0]]]
    assert sum(result.areas().values()) == 0


def test_what_cannot_be_drawn_or_written_is_a_typed_error(result: Segmentation, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"alpha is 1\.5"):
        result.overlay(alpha=1.5)
    with pytest.raises(UsageError, match="alpha is nan"):
        result.overlay(alpha=float("nan"))
    with pytest.raises(UsageError, match="holds no picture"):
        Segmentation(MASK, CLASSES, PALETTE).overlay()
    with pytest.raises(ImageError, match=r"uint8 \[3, 2, 3\], the mask needs uint8 \[2, 3, 3\]"):
        result.overlay(np.zeros((3, 2, 3), np.uint8))
    with pytest.raises(UsageError, match="not a name for a PNG"):
        result.save(tmp_path / "x.jpg")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ImageError, match="cannot be written"):
        result.save(tmp_path / "file" / "x.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match="cannot be written"):
        result.save(tmp_path / "folder.png")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.png"}  # no half-written file stays


def test_without_pillow_saving_says_so(result: Segmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match="Pillow"):
        result.save(tmp_path / "x.png")
    assert result.overlay().shape == (2, 3, 3)

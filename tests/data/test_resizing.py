"""Resizing against the definition of bilinear, with OpenCV and with Pillow alone."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from bilinear import bilinear

from twins_trt.data.resizing import resize_image, resize_mask, resize_plane
from twins_trt.errors import MissingDependencyError

SIZES = [((37, 53), (200, 11)), ((100, 70), (33, 99)), ((1, 1), (7, 5)), ((16, 12), (64, 48)), ((40, 60), (20, 30))]


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_planes_are_resized_exactly(
    resizer: str, rng: np.random.Generator, source: tuple[int, int], target: tuple[int, int]
) -> None:
    plane = rng.standard_normal(source).astype(np.float32)
    resized = resize_plane(plane, target)
    assert resized.dtype == np.float32
    assert np.abs(resized - bilinear(plane.astype(float), target)).max() < 2e-6


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_images_are_resized_to_within_a_grey_level(
    resizer: str, rng: np.random.Generator, source: tuple[int, int], target: tuple[int, int]
) -> None:
    image = rng.integers(0, 256, (*source, 3), dtype=np.uint8)
    resized = resize_image(image, target)
    assert resized.dtype == np.uint8
    bound = 1.0 if resizer == "opencv" else 0.5 + 1e-4  # fixed-point weights; correctly rounded
    assert np.abs(resized - bilinear(image.astype(float), target)).max() <= bound


def test_an_image_of_the_right_size_is_not_touched(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert resize_image(image, (6, 8)) is image
    assert resize_image(image, (6, 8), as_mmseg=True) is image
    assert resize_plane(plane := np.zeros((6, 8), np.float32), (6, 8)) is plane
    assert resize_mask(mask := np.zeros((6, 8), np.uint8), (6, 8)) is mask


@pytest.mark.usefixtures("without_opencv")
def test_without_opencv_and_pillow_resizing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(MissingDependencyError, match="OpenCV or Pillow"):
        resize_image(image, (8, 8))
    with pytest.raises(MissingDependencyError, match=r"(?s)as mmsegmentation does.*twins-trt\[build\]"):
        resize_image(image, (8, 8), as_mmseg=True)


def test_masks_take_the_class_of_the_nearest_pixel_centre(rng: np.random.Generator) -> None:
    mask = rng.integers(0, 5, (7, 9), dtype=np.uint8)
    assert np.array_equal(resize_mask(mask, (21, 27)), mask.repeat(3, 0).repeat(3, 1))
    assert np.array_equal(resize_mask(mask.repeat(3, 0).repeat(3, 1), (7, 9)), mask)
    odd = resize_mask(mask, (5, 31))
    for row in range(5):
        for column in range(31):
            assert odd[row, column] == mask[int((row + 0.5) * 7 / 5), int((column + 0.5) * 9 / 31)]

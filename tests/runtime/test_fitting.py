"""Resizing against the definition of bilinear, and where an image of any size lands."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from tiny_graphs import CLASSES, PREPROCESSING, bilinear, tensors, tiny_manifest

from twins_trt.errors import EngineError, MissingDependencyError
from twins_trt.evaluation.pipeline import fitted_size
from twins_trt.runtime import Manifest, Preprocessing
from twins_trt.runtime import resize as resize_module
from twins_trt.runtime.fitting import Fit, fit_size, logits_to_mask, place, unfit_mask
from twins_trt.runtime.resize import resize_image, resize_mask, resize_plane
from twins_trt.runtime.tensors import Dim

SIZES = [((37, 53), (200, 11)), ((100, 70), (33, 99)), ((1, 1), (7, 5)), ((16, 12), (64, 48)), ((40, 60), (20, 30))]


@pytest.fixture(params=["opencv", "pillow"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "opencv":
        pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    else:
        monkeypatch.setattr(resize_module, "_cv2", lambda: None)
    return str(request.param)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_planes_are_resized_exactly(
    backend: str, rng: np.random.Generator, source: tuple[int, int], target: tuple[int, int]
) -> None:
    plane = rng.standard_normal(source).astype(np.float32)
    resized = resize_plane(plane, target)
    assert resized.dtype == np.float32
    assert np.abs(resized - bilinear(plane.astype(float), target)).max() < 2e-6


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_images_are_resized_to_within_a_grey_level(
    backend: str, rng: np.random.Generator, source: tuple[int, int], target: tuple[int, int]
) -> None:
    image = rng.integers(0, 256, (*source, 3), dtype=np.uint8)
    resized = resize_image(image, target)
    assert resized.dtype == np.uint8
    bound = 1.0 if backend == "opencv" else 0.5 + 1e-4  # fixed-point weights; correctly rounded
    assert np.abs(resized - bilinear(image.astype(float), target)).max() <= bound


def test_an_image_of_the_right_size_is_not_touched(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert resize_image(image, (6, 8)) is image
    assert resize_plane(plane := np.zeros((6, 8), np.float32), (6, 8)) is plane
    assert resize_mask(mask := np.zeros((6, 8), np.uint8), (6, 8)) is mask


def test_without_opencv_and_pillow_resizing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize_module, "_cv2", lambda: None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match="OpenCV or Pillow"):
        resize_image(np.zeros((4, 4, 3), np.uint8), (8, 8))


def test_masks_take_the_class_of_the_nearest_pixel_centre(rng: np.random.Generator) -> None:
    mask = rng.integers(0, 5, (7, 9), dtype=np.uint8)
    assert np.array_equal(resize_mask(mask, (21, 27)), mask.repeat(3, 0).repeat(3, 1))
    assert np.array_equal(resize_mask(mask.repeat(3, 0).repeat(3, 1), (7, 9)), mask)
    odd = resize_mask(mask, (5, 31))
    for row in range(5):
        for column in range(31):
            assert odd[row, column] == mask[int((row + 0.5) * 7 / 5), int((column + 0.5) * 9 / 31)]


def graph(height: Dim, width: Dim, *, scale: tuple[int, int] | None = None, keep_ratio: bool = True) -> Manifest:
    manifest = tiny_manifest(*tensors(height, width, 1, ("mask",), "uint8"))
    return replace(manifest, preprocessing=Preprocessing(test_scale=scale, keep_ratio=keep_ratio))


@pytest.mark.parametrize(
    ("size", "inner"),
    [
        ((480, 360), (480, 360)),
        ((960, 720), (480, 360)),
        ((100, 360), (100, 360)),
        ((480, 100), (480, 100)),
        ((1000, 1000), (360, 360)),
        ((1, 5000), (1, 360)),
        ((5000, 1), (480, 1)),
        ((10, 10), (360, 360)),
    ],
)
def test_a_fixed_graph_stretches_or_letterboxes(size: tuple[int, int], inner: tuple[int, int]) -> None:
    fixed = graph(480, 360, scale=(2048, 512))
    assert fit_size(size, fixed, "stretch") == Fit(size, (480, 360), (480, 360))
    assert fit_size(size, fixed, "letterbox") == Fit(size, inner, (480, 360))


@pytest.mark.parametrize(
    ("size", "canvas"),
    [
        ((512, 683), (512, 683)),  # ADE20K's usual shapes, sizes as mmcv computes them
        ((256, 341), (512, 682)),
        ((683, 512), (683, 512)),
        ((300, 200), (768, 512)),
        ((100, 1000), (205, 2048)),
    ],
)
def test_a_dynamic_graph_takes_the_test_scale(size: tuple[int, int], canvas: tuple[int, int]) -> None:
    dynamic = graph((32, 512, 2048), (32, 512, 2048), scale=(2048, 512))
    assert fit_size(size, dynamic, "stretch") == Fit(size, canvas, canvas)


def test_the_test_scale_means_here_what_it_means_in_the_evaluation(rng: np.random.Generator) -> None:
    dynamic = graph((1, 512, 9999), (1, 512, 9999), scale=(2048, 512))
    for height, width in rng.integers(1, 3000, (300, 2)):
        size = int(height), int(width)
        assert fit_size(size, dynamic, "stretch").canvas == fitted_size(size, (2048, 512))


def test_without_keeping_the_ratio_the_scale_is_width_then_height() -> None:
    dynamic = graph((32, 512, 2048), (32, 512, 2048), scale=(640, 480), keep_ratio=False)
    assert fit_size((100, 100), dynamic, "stretch").canvas == (480, 640)


@pytest.mark.parametrize(
    ("size", "canvas"),
    [
        ((100, 120), (100, 120)),  # within the limits: its own size
        ((512, 256), (256, 128)),  # too high
        ((256, 1024), (128, 512)),  # too wide
        ((1024, 4096), (128, 512)),  # both
        ((32, 64), (64, 128)),  # too low: enlarged
        ((10, 5000), (64, 512)),  # the limits do not allow the ratio
        ((1, 1), (64, 64)),
    ],
)
def test_a_dynamic_graph_keeps_within_its_profile(size: tuple[int, int], canvas: tuple[int, int]) -> None:
    dynamic = graph((64, 128, 256), (64, 128, 512))
    assert fit_size(size, dynamic, "stretch") == Fit(size, canvas, canvas)


def test_letterbox_pads_right_and_below_with_the_mean() -> None:
    fixed = graph(8, 12)
    image = np.full((8, 6, 3), 7, np.uint8)
    placed = place(image, fit_size((8, 6), fixed, "letterbox"), fixed)
    assert np.array_equal(placed[:, :6], image)
    assert np.array_equal(placed[:, 6:], np.broadcast_to(np.array([124, 116, 104]), (8, 6, 3)))


def test_planes_are_normalised_in_rgb(rng: np.random.Generator) -> None:
    manifest = tiny_manifest(*tensors(8, 12, 1, ("mask",), "float32"))
    image = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
    placed = place(image, fit_size((8, 12), manifest, "stretch"), manifest)
    wanted = (image.astype(float) - PREPROCESSING.mean) / PREPROCESSING.std
    assert placed.dtype == np.float32
    assert placed.shape == (3, 8, 12)
    assert np.abs(placed - wanted.transpose(2, 0, 1)).max() < 1e-6


def test_an_image_of_the_graphs_size_is_passed_on_as_it_is() -> None:
    image = np.zeros((8, 12, 3), np.uint8)
    assert place(image, fit_size((8, 12), graph(8, 12), "letterbox"), graph(8, 12)) is image


@pytest.mark.parametrize(
    "fit",
    [
        Fit((24, 32), (24, 32), (24, 32)),
        Fit((50, 41), (24, 32), (24, 32)),
        Fit((41, 30), (24, 18), (24, 32)),
        Fit((7, 5), (24, 18), (24, 32)),
    ],
)
def test_logits_become_the_mask_that_two_resizes_and_an_argmax_give(
    backend: str, rng: np.random.Generator, fit: Fit
) -> None:
    logits = rng.standard_normal((5, 6, 8)).astype(np.float32)
    canvas = bilinear(logits.transpose(1, 2, 0).astype(float), fit.canvas)
    full = bilinear(canvas[: fit.inner[0], : fit.inner[1]], fit.original)
    mask = logits_to_mask(logits, fit)
    assert mask.dtype == np.uint8
    differ = mask != full.argmax(-1)
    top = np.sort(full, -1)
    assert not differ[top[..., -1] - top[..., -2] > 1e-5].any()
    assert np.count_nonzero(differ) <= 1


def test_the_first_of_equal_classes_wins() -> None:
    assert not logits_to_mask(np.ones((3, 2, 2), np.float16), Fit((4, 4), (4, 4), (4, 4))).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_overflown_logits_are_an_error_not_a_mask(value: float) -> None:
    logits = np.full((len(CLASSES), 4, 4), value, np.float32)
    with pytest.raises(EngineError, match="64 of 64 pixels have no finite logit"):
        logits_to_mask(logits, Fit((8, 8), (8, 8), (8, 8)))


def test_a_mask_of_another_size_than_the_canvas_is_refused() -> None:
    with pytest.raises(EngineError, match=r"gave a mask of \[4, 4\] for an image of \[8, 8\]"):
        unfit_mask(np.zeros((4, 4), np.uint8), Fit((8, 8), (8, 8), (8, 8)))

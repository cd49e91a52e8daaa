"""How an image of any size is fitted into a graph, and how its mask is brought back to the image's size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bilinear import bilinear
from tiny_graphs import CLASSES, PREPROCESSING, tensors, tiny_interface

from twins_trt.errors import EngineError
from twins_trt.inference.fitting import Fit, fit_size, logits_to_mask, place, unfit_mask
from twins_trt.inference.interface import GraphInterface
from twins_trt.inference.tensors import Dim
from twins_trt.runtime import Preprocessing


def graph(height: Dim, width: Dim, *, scale: tuple[int, int] | None = None, keep_ratio: bool = True) -> GraphInterface:
    interface = tiny_interface(*tensors(height, width, 1, ("mask",), "uint8"))
    return replace(interface, preprocessing=Preprocessing(test_scale=scale, keep_ratio=keep_ratio))


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


def test_planes_are_normalized_in_rgb(rng: np.random.Generator) -> None:
    planes = tiny_interface(*tensors(8, 12, 1, ("mask",), "float32"))
    image = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
    placed = place(image, fit_size((8, 12), planes, "stretch"), planes)
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
    resizer: str, rng: np.random.Generator, fit: Fit
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

"""mmsegmentation's test pipeline: the sizes that it computes, and the normalized planes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twins_trt.data import ADE20K_TEST, Preprocessing
from twins_trt.errors import ImageError, MissingDependencyError
from twins_trt.inference import fitted_size, input_size, normalize, prepare, resize_image
from twins_trt.inference.pipeline import scaled_size

sides = st.integers(16, 3000)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 683), (512, 683)),  # as it comes
        ((480, 640), (512, 683)),  # 682.67 rounds up
        ((300, 400), (512, 683)),  # small images grow
        ((683, 512), (683, 512)),  # portrait: the scale's sides are long and short, not width and height
        ((200, 1600), (256, 2048)),  # the long side binds
        ((1, 5000), (1, 2048)),  # never nothing
    ],
)
def test_the_size_of_ade20ks_test_images(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert input_size(size, ADE20K_TEST) == expected


@settings(deadline=None, max_examples=200)
@given(sides, sides, sides, sides)
def test_a_fitted_size_is_the_exact_one_rounded(height: int, width: int, a: int, b: int) -> None:
    factor = min(Fraction(max(a, b), max(height, width)), Fraction(min(a, b), min(height, width)))
    fitted = fitted_size((height, width), (a, b))
    assert all(
        side == 1 or abs(side - exact * factor) <= Fraction(1, 2) + Fraction(1, 10**9)
        for side, exact in zip(fitted, (height, width), strict=True)
    )
    assert min(fitted) >= 1
    assert max(fitted) <= max(a, b)
    assert min(fitted) <= min(a, b)
    assert max(fitted) == max(a, b) or min(fitted) == min(a, b)
    assert fitted_size((width, height), (b, a)) == fitted[::-1]


@settings(deadline=None, max_examples=100)
@given(sides, sides, st.sampled_from([0.5, 0.75, 1.25, 1.5, 1.75]))
def test_a_ratio_scales_both_sides(height: int, width: int, ratio: float) -> None:
    scaled = scaled_size((height, width), ratio)
    # mmcv rounds twice, so a long thin image may be off by more than rounding once would be.
    assert abs(scaled[0] - height * ratio) <= 0.5 + height / min(height, width) / 2
    assert abs(scaled[1] - width * ratio) <= 0.5 + width / min(height, width) / 2
    assert scaled_size((height, width), 1.0) == (height, width)


def test_without_a_test_scale_an_image_keeps_its_size_and_without_ratio_it_gets_the_scale() -> None:
    assert input_size((123, 457), Preprocessing()) == (123, 457)
    assert input_size((123, 457), Preprocessing(test_scale=(640, 480), keep_ratio=False)) == (480, 640)


def test_normalizing_is_float32_arithmetic_to_the_bit(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    image = rng.integers(0, 256, (9, 13, 3)).astype(np.uint8)
    p = Preprocessing()
    tensor = torch.from_numpy(image).permute(2, 0, 1).float()
    expected = (tensor - torch.tensor(p.mean).view(3, 1, 1)) / torch.tensor(p.std).view(3, 1, 1)
    pixels = normalize(image, p)
    assert (pixels.shape, pixels.dtype) == ((1, 3, 9, 13), np.float32)
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels[0], expected.numpy())


def test_prepare_resizes_then_normalizes(rng: np.random.Generator) -> None:
    pytest.importorskip("cv2")
    image = rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)
    p = Preprocessing(test_scale=(64, 45))
    assert np.array_equal(prepare(image, p), normalize(resize_image(image, (45, 60)), p))


@pytest.mark.parametrize("shape", [(5, 5), (5, 5, 4), (0, 5, 3), (1, 5, 5, 3)])
def test_other_arrays_are_no_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="uint8"):
        prepare(np.zeros(shape, np.uint8), Preprocessing())
    with pytest.raises(ImageError, match="float32"):
        prepare(np.zeros((5, 5, 3), np.float32), Preprocessing())  # type: ignore[arg-type]


@pytest.mark.usefixtures("without_opencv")
def test_without_opencv_the_error_names_the_extra() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(MissingDependencyError, match=r"twins-trt\[build\]"):
        resize_image(image, (8, 8))
    assert prepare(image, Preprocessing()).shape == (1, 3, 4, 4)  # nothing to resize, nothing needed

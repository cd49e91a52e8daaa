"""Each operation in NumPy and in torch, against each other and against the formulas."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twins_trt.inference.logits import (
    class_probabilities,
    divide,
    flip_width,
    resize_logits,
    resized_argmax,
    zeros_of_size,
)

torch = pytest.importorskip("torch")
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def random_logits(size: tuple[int, int], classes: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, classes, *size), dtype=np.float32)


@settings(deadline=None, max_examples=80)
@given(sizes, sizes, st.integers(0, 99))
def test_resizing_is_interpolates(size: tuple[int, int], target: tuple[int, int], seed: int) -> None:
    logits = random_logits(size, seed=seed)
    tensor = torch.from_numpy(logits)
    exact = torch.nn.functional.interpolate(tensor.double(), size=target, mode="bilinear", align_corners=False)
    resized, in_torch = resize_logits(logits, target), resize_logits(tensor, target)
    # Both compute the coordinates in float32, so they agree better with each other than with float64.
    np.testing.assert_allclose(resized, in_torch, atol=1e-5)
    np.testing.assert_allclose(resized, exact, atol=1e-4)


def test_resizing_by_hand() -> None:
    """Two samples to four: centres at -0.25, 0.25, 0.75, 1.25, the outer two clamped to the edge."""
    row = np.array([[[[0.0, 8.0]]]], np.float32)
    assert resize_logits(row, (1, 4)).ravel().tolist() == [0, 2, 6, 8]
    assert resize_logits(row.transpose(0, 1, 3, 2), (4, 1)).ravel().tolist() == [0, 2, 6, 8]
    assert resize_logits(np.array([[[[0.0, 4.0, 8.0, 20.0]]]], np.float32), (1, 2)).ravel().tolist() == [2, 14]
    assert resize_logits(row, (1, 2)) is row


@settings(deadline=None, max_examples=40)
@given(sizes, st.tuples(st.integers(1, 100), st.integers(1, 60)), st.integers(0, 99))
def test_the_banded_argmax_is_the_argmax(size: tuple[int, int], target: tuple[int, int], seed: int) -> None:
    logits = random_logits(size, seed=seed)
    full = resize_logits(logits, target)
    mask = resized_argmax(logits, target)
    assert (mask.dtype, mask.shape) == (np.uint8, target)
    assert np.array_equal(mask, full[0].argmax(axis=0))
    # Where torch decides otherwise, the two classes are level to rounding.
    other = resized_argmax(torch.from_numpy(logits), target)
    best, chosen = full[0].max(axis=0), np.take_along_axis(full[0], other[None].astype(np.int64), axis=0)[0]
    np.testing.assert_allclose(chosen, best, atol=2e-5)
    assert other.dtype == np.uint8


def test_a_tie_goes_to_the_lowest_class() -> None:
    logits = np.array([1.0, 3.0, 3.0, 2.0], np.float32).reshape(1, 4, 1, 1)
    assert resized_argmax(logits, (2, 3)).tolist() == [[1, 1, 1], [1, 1, 1]]


def test_probabilities_are_softmax_even_of_large_logits() -> None:
    logits = random_logits((3, 5), classes=6) * 100
    exact = torch.from_numpy(logits).double().softmax(dim=1)
    np.testing.assert_allclose(class_probabilities(logits), exact, atol=1e-6)
    np.testing.assert_allclose(class_probabilities(torch.from_numpy(logits)), exact, atol=1e-6)
    np.testing.assert_allclose(class_probabilities(logits).sum(axis=1), 1, rtol=1e-5)


def test_the_small_operations_agree() -> None:
    logits = random_logits((3, 5))
    tensor = torch.from_numpy(logits)
    count = np.arange(1, 16, dtype=np.float32).reshape(3, 5)
    np.testing.assert_array_equal(flip_width(tensor), flip_width(logits))
    np.testing.assert_array_equal(flip_width(logits)[..., 0], logits[..., -1])
    np.testing.assert_array_equal(divide(tensor, count), divide(logits, count))
    assert zeros_of_size(logits, (7, 2)).shape == tuple(zeros_of_size(tensor, (7, 2)).shape) == (1, 4, 7, 2)
    assert zeros_of_size(tensor.half(), (7, 2)).dtype == torch.float32


def test_half_precision_logits_are_compared_in_float32() -> None:
    logits = random_logits((6, 7)).astype(np.float16)
    expected = resize_logits(logits.astype(np.float32), (20, 21))
    np.testing.assert_array_equal(resize_logits(logits, (20, 21)), expected)
    assert resize_logits(torch.from_numpy(logits), (20, 21)).dtype == torch.float32
    assert class_probabilities(torch.from_numpy(logits)).dtype == torch.float32


def test_evaluating_masks_and_numpy_logits_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from twins_trt.data import open_dataset, Preprocessing\n"
        "from twins_trt.evaluation import evaluate_masks, evaluate_logits\n"
        "from twins_trt.inference import predict_mask\n"
        "image = np.zeros((40, 50, 3), np.uint8)\n"
        "net = lambda x: x[:, :, ::4, ::4]\n"
        "for mode in ('whole', 'slide'):\n"
        "    assert predict_mask(net, image, mode=mode).shape == (40, 50)\n"
        "print([m for m in ('torch', 'cv2', 'onnx', 'onnxruntime', 'PIL') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

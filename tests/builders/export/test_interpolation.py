"""Pooling and resizing as matrices, against torch's own operators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from twins_trt.builders.export.interpolation import (
    phase_weights,
    pooling_matrix,
    shifted_upsampling,
    upsampling_matrix,
)

sizes = st.integers(1, 70)


@given(size=sizes, bins=st.integers(1, 8))
def test_pooling_matrix_is_adaptive_average_pooling(size: int, bins: int) -> None:
    want = functional.adaptive_avg_pool1d(torch.eye(size)[:, None], bins)[:, 0].T.numpy()
    np.testing.assert_allclose(pooling_matrix(size, bins), want, atol=1e-6)


@given(size=sizes, to=sizes)
def test_upsampling_matrix_is_bilinear(size: int, to: int) -> None:
    want = functional.interpolate(torch.eye(size)[:, None], size=to, mode="linear", align_corners=False)[:, 0].T
    np.testing.assert_allclose(upsampling_matrix(size, to), want.numpy(), atol=2e-5)


@settings(deadline=None)
@given(size=st.integers(1, 12), factor=st.integers(1, 8))
def test_shifted_upsampling_is_upsampling_then_convolution(size: int, factor: int) -> None:
    x, taps = torch.randn(1, 1, size), torch.randn(1, 1, 3)
    up = functional.interpolate(x, size=size * factor, mode="linear", align_corners=False)
    want = functional.conv1d(up, taps, padding=1)[0, 0].numpy()
    got = np.einsum("tks,s,k->t", shifted_upsampling(size, size * factor), x[0, 0].numpy(), taps[0, 0].numpy())
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_phase_weights_are_the_rows_of_the_upsampling_matrix(factor: int) -> None:
    inner = upsampling_matrix(5, 5 * factor)[2 * factor : 3 * factor, 1:4]  # outputs of pixel 2, which sees 1, 2, 3
    np.testing.assert_allclose(phase_weights(factor), inner.T, atol=1e-6)

"""Holds the line on what the compiler makes of the graphs: a form that costs a kernel or a copy fails here.

The same builds as `python -m benchmarks.kernels`, whose table is in docs/measurements.md, for one target.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.kernels import build_ours
from twins_trt.models import get_spec, list_models

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX missing: pip install 'twins-trt[rtx]'")

# Most kernels allowed, and the megabytes between kernels that a first attempt at the same forms moved.
LIMITS = {
    "twins_svt-s_upernet": (200, 812),
    "twins_svt-s_fpn": (200, 529),
    "twins_pcpvt-s_fpn": (210, 632),
}


@pytest.mark.parametrize("name", LIMITS)
def test_stays_within_kernels_and_traffic(name: str) -> None:
    most_kernels, most_megabytes = LIMITS[name]
    row = build_ours(name, ("sm_89",))
    assert row["kernels"] <= most_kernels
    assert row["bytes_moved"] < most_megabytes * 1e6
    _assert_fused(name, row)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_models() if name not in LIMITS])
def test_fuses_every_attention(name: str) -> None:
    _assert_fused(name, build_ours(name, ("sm_89",)))


def _assert_fused(name: str, row: dict[str, Any]) -> None:
    assert row["attentions"] == row["expected_attentions"] == sum(get_spec(name).depths)
    assert row["unfused_attentions"] == []

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest

from twins_trt.data import ADE20K_TEST, Preprocessing
from twins_trt.errors import UsageError


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(),
        ADE20K_TEST,
        Preprocessing(mean=(0.5, 1.0, 2.0), std=(1.0, 2.0, 3.0), test_scale=(640, 480), keep_ratio=False),
    ],
)
def test_json_round_trip(preprocessing: Preprocessing) -> None:
    again = Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json())))
    assert again == preprocessing
    assert hash(again) == hash(preprocessing)


def test_defaults_are_mmsegmentations() -> None:
    assert Preprocessing().mean == (123.675, 116.28, 103.53)
    assert Preprocessing().std == (58.395, 57.12, 57.375)
    assert (Preprocessing().test_scale, ADE20K_TEST.test_scale) == (None, (2048, 512))
    with pytest.raises(FrozenInstanceError):
        Preprocessing().keep_ratio = False  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mean": [1.0, 2.0]}, "three numbers"),
        ({"std": [1.0, 0.0, 1.0]}, "std positive"),
        ({"test_scale": [0, 5]}, "positive sizes"),
        ({"test_scale": [5]}, "positive sizes"),
        ({"keep_ratio": False}, "needs a test_scale"),
        ({"colour": "bgr"}, "unknown fields"),
        ({"mean": 3}, "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Preprocessing.from_json(values)

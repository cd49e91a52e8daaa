"""Options of an engine build: what is refused, and their JSON."""

from __future__ import annotations

import json

import pytest

from twins_trt.builders.engine import EngineOptions
from twins_trt.errors import UsageError


def test_options_a_flavour_does_not_know_never_reach_a_compiler() -> None:
    for words, given in (
        ("unknown engine flavour", {"flavour": "trt"}),
        ("is not a GPU target", {"targets": ("ampere",)}),
        ("targets is one string", {"targets": "sm_86"}),
        ("workspace of 0 MiB", {"workspace_mib": 0}),
        ("optimization level 6", {"optimization_level": 6}),
        ("unknown hardware compatibility", {"hardware_compatibility": "hopper"}),
        ("has 2 shapes", {"profile": {"q": ((1,), (2,))}}),
        ("mixes shapes", {"profile": {"q": ((1,), (2,), (3, 4))}}),
        ("not ordered", {"profile": {"q": ((4,), (2,), (8,))}}),
    ):
        with pytest.raises(UsageError, match=words):
            EngineOptions(**given)  # type: ignore[arg-type]


def test_options_survive_json() -> None:
    options = EngineOptions(
        flavour="tensorrt",
        targets=("87",),
        workspace_mib=1024,
        optimization_level=5,
        timing_cache="cache",
        hardware_compatibility="ampere_plus",
        profile={"image": ((1, 256, 256, 3), (1, 512, 512, 3), (4, 1024, 1024, 3))},
    )
    assert options.targets == ("sm_87",)
    assert EngineOptions.from_json(json.loads(json.dumps(options.to_json()))) == options
    assert EngineOptions.from_json(EngineOptions().to_json()) == EngineOptions()
    with pytest.raises(UsageError, match="no field 'precision'"):
        EngineOptions.from_json({"precision": "fp16"})

"""Comparing profiles of different times: what changed, by how much, and what else differs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from results_of import measurement, profile

from twins_trt.errors import ProfileError
from twins_trt.profiling.compare import UNPAIRED, compare


def test_the_same_conditions_are_comparable_but_never_paired() -> None:
    before, after = profile(measurement("x", [20.0] * 8)), profile(measurement("x", [10.0] * 8))
    found = compare(before, after)
    (change,) = found.changes
    assert (change.before_ms, change.after_ms, change.value, change.low, change.high) == (20.0, 10.0, 2.0, 2.0, 2.0)
    assert (found.comparable, found.differences) == (True, ())
    assert found.notes[0] == UNPAIRED
    assert "first: the machine was busy" in found.notes
    assert found.to_json()["changes"][0]["label"] == "x"


def test_every_difference_is_named() -> None:
    before = profile(measurement("x"))
    after = replace(
        profile(replace(m := measurement("x"), subject=replace(m.subject, threads=4, graph_sha256="cd" * 32))),
        machine=replace(before.machine, processor="another", gpu="a GPU"),
        versions={"python": "3.11.7", "onnxruntime": "1.33.0", "torch": "2.13"},
    )
    found = compare(before, after)
    assert not found.comparable
    assert found.differences == (
        "processor: a processor, then another",
        "gpu: none, then a GPU",
        "onnxruntime: 1.32.0, then 1.33.0",
        "torch: none, then 2.13",
        "x: graph sha256: abababababab..., then cdcdcdcdcdcd...",
        "x: threads: none, then 4",
    )


def test_only_what_is_in_both_is_compared() -> None:
    found = compare(profile(measurement("x"), measurement("y")), profile(measurement("z"), measurement("y")))
    assert [change.label for change in found.changes] == ["y"]
    with pytest.raises(ProfileError, match="no candidate is in both: x, y; z"):
        compare(profile(measurement("x"), measurement("y")), profile(measurement("z")))
    (change,) = compare(profile(measurement("x")), profile(measurement("z"))).changes  # there is no other choice
    assert change.label == "x then z"


def test_a_single_round_has_no_interval() -> None:
    (change,) = compare(profile(measurement("x", [4.0])), profile(measurement("x", [2.0]))).changes
    assert (change.value, change.low, change.high) == (2.0, None, None)

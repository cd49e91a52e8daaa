"""Every circumstance that makes a figure unreliable gives a warning, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from results_of import measurement, profile

from twins_trt.profiling.machine import STOLEN
from twins_trt.profiling.results import Conditions, Latency, Profile, WarmUp
from twins_trt.profiling.warnings import find_warnings

QUIET = Conditions(0.1, 0.02, {"cpu": 2600.0, "gpu": 300.0}, events={STOLEN: 1000, "over-current oc1": 2})


def clean() -> Profile:
    found = replace(profile(measurement("x", [10.0] * 6)), before=QUIET, seconds=100.0)
    return replace(found, after=replace(QUIET, load_average=2.0, busy=None, clocks_mhz={"cpu": 2590.0, "gpu": 1400.0}))


def test_a_clean_run_raises_none() -> None:
    assert find_warnings(clean()) == ()


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ({"busy": 0.4}, {}, "busy before the run: 40 % of 2 cores"),
        ({}, {"throttled": ("too hot",)}, "clocks were held back: too hot"),
        ({}, {"events": {STOLEN: 1000, "over-current oc1": 5}}, "over-current oc1: 3 more at the end"),
        ({}, {"events": {STOLEN: 21_000}}, "the hypervisor took 10 % of the processor time"),
        ({}, {"clocks_mhz": {"cpu": 1300.0}}, "the cpu clock fell from 2600 to 1300 MHz"),
    ],
)
def test_what_the_machine_did(before: dict[str, object], after: dict[str, object], says: str) -> None:
    found = clean()
    spoilt = replace(found, before=replace(found.before, **before), after=replace(found.after, **after))  # type: ignore[arg-type]
    (said,) = find_warnings(spoilt)
    assert says in said


def test_what_a_candidate_did() -> None:
    (good,) = clean().measurements
    uneven = replace(good, call=Latency.of([0.010, 0.015] * 3))
    restless = replace(good, warm_up=WarmUp(40, 30.2, False))
    stand_in = replace(good, subject=replace(good.subject, simulated=True))
    for spoilt, says in (
        (uneven, "x: calls are uneven, neighbours differ by 40 %"),
        (restless, "x: still changing after 30 s"),
        (stand_in, "x: onnxruntime stands in for the engines in it"),
    ):
        (said,) = find_warnings(replace(clean(), measurements=(spoilt,)))
        assert says in said


def test_a_counter_that_was_not_there_before_is_not_counted() -> None:
    found = clean()
    assert find_warnings(replace(found, before=replace(found.before, events={}))) == ()

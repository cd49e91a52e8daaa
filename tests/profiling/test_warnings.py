"""Every circumstance that makes a figure unreliable gives a warning, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from results_of import measurement, profile

from twins_trt.profiling.machine import STOLEN
from twins_trt.profiling.results import Conditions, Latency, Profile, Settling, WarmUp
from twins_trt.profiling.warnings import drift_of, find_warnings

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
        ({"power_mode": "MAXN"}, {"power_mode": "15W"}, "the power mode changed from MAXN to 15W"),
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


WORK = {"gpu": 900.0, "gpu_max": 918.0, "memory": 3199.0, "memory_max": 3199.0}


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ([{}, {"clocks_mhz": {**WORK, "gpu": 600.0}}], "the gpu clock was down to 600 MHz at work, its maximum is 918"),
        ([{"clocks_mhz": {**WORK, "memory": 2133.0}}], "the memory clock was down to 2133 MHz at work"),
        (
            [{"temperatures_c": {"tj": 99.5}, "limits_c": {"tj": 99.0}}, {}],
            "tj reached 100 °C, and is slowed down from 99",
        ),
    ],
)
def test_what_was_seen_in_the_middle_of_the_work(states: list[dict[str, dict[str, float]]], says: str) -> None:
    cool = Conditions(clocks_mhz=WORK, temperatures_c={"tj": 60.0}, limits_c={"tj": 99.0})
    assert find_warnings(replace(clean(), during=(cool, cool))) == ()
    during = tuple(replace(cool, **state) for state in states)  # type: ignore[arg-type]
    spoilt = replace(clean(), during=during)
    (said,) = find_warnings(spoilt)
    assert says in said and "jetson_clocks" not in said
    (said,) = find_warnings(replace(spoilt, machine=replace(spoilt.machine, board="NVIDIA Jetson Orin Nano")))
    assert ("sudo jetson_clocks" in said) == ("clock" in says)


def test_an_idle_gpu_may_have_a_low_clock() -> None:
    (found,) = clean().measurements
    on_cpu = replace(found, subject=replace(found.subject, measured_on=clean().machine.processor))
    idle = Conditions(clocks_mhz={**WORK, "gpu": 100.0})
    assert find_warnings(replace(clean(), measurements=(on_cpu,), during=(idle,))) == ()
    assert len(find_warnings(replace(clean(), during=(idle,)))) == 1


def test_a_drift_over_the_rounds_is_named() -> None:
    rounds = [10.0, 10.1, 10.2, 10.8, 10.9, 11.0]  # a third of six is two
    assert drift_of(rounds) == pytest.approx(10.95 / 10.05 - 1)
    assert drift_of(rounds[:5]) is None
    for calls, says in (
        (rounds, "x: calls became 11 % slower over"),
        (rounds[::-1], "x: calls became 10 % faster over"),
    ):
        (said,) = find_warnings(replace(clean(), measurements=(measurement("x", calls),)))
        assert says in said
    even = [10.0, 11.0] * 6  # each other round is slower, but none is slower than before
    assert drift_of(even) == pytest.approx(0.0)


def test_a_warm_up_that_ended_too_early_is_named() -> None:
    assert find_warnings(replace(clean(), settled=Settling(4.2, 4, True))) == ()
    (said,) = find_warnings(replace(clean(), settled=Settling(20.3, 20, False)))
    assert said == "clocks and latencies were not steady after 20 s of warm-up"


def test_a_counter_that_was_not_there_before_is_not_counted() -> None:
    found = clean()
    assert find_warnings(replace(found, before=replace(found.before, events={}))) == ()

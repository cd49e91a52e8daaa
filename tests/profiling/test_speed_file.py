"""The content of `speed.json`: it comes back as it was, says what it holds, and whether it still counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from results_of import measurement, profile
from tiny_graphs import MakeBundle

from twins_trt.errors import ProfileError
from twins_trt.profiling.results import Conditions, Latency, Ratio, Settling
from twins_trt.profiling.speed import (
    SPEED,
    SpeedVerdict,
    Summary,
    TimedBundle,
    dump_speed,
    in_short,
    outdated,
    read_speed,
    state_rows,
)
from twins_trt.runtime import Bundle, EngineFile, write_bundle
from twins_trt.runtime.bundle import amend_bundle

ENGINES = tuple(
    EngineFile(f"engines/{target}.engine", "tensorrt", "10.3.0", (target,)) for target in ("sm_86", "sm_87")
)
Verdicts = Callable[..., tuple[Bundle, SpeedVerdict]]


@pytest.fixture
def measured(make_bundle: MakeBundle) -> Verdicts:
    """`measured(file=None, **manifest)`: a bundle and the verdict on it. file: the engine that ran."""

    def make(*, file: str | None = None, **more: Any) -> tuple[Bundle, SpeedVerdict]:
        ours, theirs = make_bundle(**more), make_bundle()
        found = (measurement("int8", [10.0, 11.0, 12.0]), measurement("fp16", [20.0, 21.0, 22.0]))
        sides = tuple(
            TimedBundle.of(bundle, each, name=each.subject.label, file=file if bundle is ours else None)
            for bundle, each in zip((ours, theirs), found, strict=True)
        )
        run = replace(
            profile(*found),
            versions={"driver": "540.4.0", "l4t": "36.4.0", "tensorrt": "10.3.0", "numpy": "2.0"},
            settled=Settling(3.4, 3, True),
            during=(
                Conditions(clocks_mhz={"gpu": 918.0, "gpu_max": 918.0}, temperatures_c={"tj": 50.0, "cpu": 49.0}),
                Conditions(clocks_mhz={"gpu": 612.0, "gpu_max": 918.0}, temperatures_c={"tj": 61.0}),
            ),
        )
        return ours, SpeedVerdict.of(
            run,
            (sides[0], sides[1]),
            ratios=(Ratio("int8", "fp16", "call", 1.5, 1.4, 1.6, 3),),
            min_speedup=1.2,
            reasons=(),
            simulated=False,
            ship="int8",
            advice="ship int8",
        )

    return make


def test_it_comes_back_from_its_bytes(measured: Verdicts) -> None:
    bundle, found = measured()
    assert found.passed
    assert SpeedVerdict.from_json(json.loads(dump_speed(found))) == found
    assert read_speed(bundle) is None
    assert read_speed(amend_bundle(bundle, {SPEED: dump_speed(found)})) == found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format_version": 2}, "format_version is 2, this twins-trt reads 1"),
        ({"format_version": True}, "format_version is True"),
        ({"colour": "red"}, "the field 'colour', which this version does not know"),
        ({"passed": "yes"}, "passed is 'yes', not true or false"),
    ],
)
def test_what_does_not_fit_is_named(measured: Verdicts, change: dict[str, object], says: str) -> None:
    bundle, found = measured()
    broken = amend_bundle(bundle, {SPEED: json.dumps(found.to_json() | change).encode()})
    with pytest.raises(ProfileError, match=says):
        read_speed(broken)
    with pytest.raises(ProfileError, match="format_version is None"):
        SpeedVerdict.from_json([])


def test_rounds_keep_their_medians() -> None:
    found = Summary.of(Latency.of([0.001, 0.002, 0.009, 0.004, 0.004, 0.005]), 3)
    assert (found.calls, found.rounds, found.p50, found.p99) == (6, (2.0, 4.0), 4.0, None)


def test_the_table_says_what_was_measured_and_in_which_state(measured: Verdicts) -> None:
    _, found = measured()
    lines = replace(found, warnings=("too hot",), reasons=("slow",), passed=False).table().splitlines()
    assert lines[0] == "speed         FAILED: int8 against fp16"
    assert "times as fast 1.500 (1.400 to 1.600) in 3 rounds, to exceed 1.2" in lines
    assert "latency       int8 (fp32) 9.00 ms from picture to mask, engine 8.00 ms" in lines
    assert dict(state_rows(found)) == {
        "power mode": "MAXN",
        "versions": "driver 540.4.0, l4t 36.4.0, tensorrt 10.3.0",
        "clocks": "gpu 612 to 918 of 918 MHz",
        "temperature": "61 °C at most (tj)",
    }
    assert lines[-3:] == ["note          too hot", "reason        slow", "advice        ship int8"]


def test_a_machine_that_says_nothing_of_itself_has_no_rows(measured: Verdicts) -> None:
    _, found = measured()
    nothing = Conditions()
    assert list(state_rows(replace(found, versions={}, before=nothing, during=(), after=nothing))) == []


def test_a_warm_up_without_time_is_a_warning(measured: Verdicts) -> None:
    _, found = measured()
    assert found.warnings == ("the machine was busy",)  # of the profile
    unsettled = replace(profile(measurement("int8"), measurement("fp16")), warnings=())
    again = SpeedVerdict.of(
        unsettled,
        (found.ours, found.theirs),
        ratios=found.ratios,
        min_speedup=1.0,
        reasons=("slow",),
        simulated=True,
        ship=None,
        advice="",
    )
    assert again.warnings == ("nothing waited for steady clocks: the warm-up was given no time",)
    assert not again.passed


def test_it_counts_until_what_ran_is_replaced(measured: Verdicts) -> None:
    orin = ENGINES[1].file
    bundle, found = measured(file=orin, engines=ENGINES)
    assert found.ours.engines == {
        each.file: digest for each in ENGINES for path, digest in _digests(bundle).items() if path == each.file
    }
    assert found.ours.file_sha256 == _digests(bundle)[orin]
    assert outdated(found, bundle.manifest) is None
    line = in_short(found, bundle.manifest)
    assert line == "passed: 1.500 (1.400 to 1.600) times as fast as fp16, on a test, MAXN, 1 warning"

    other = _with(bundle, {ENGINES[0].file: b"of another GPU"})
    assert outdated(found, other.manifest) is None
    assert outdated(found, bundle.manifest, runs=ENGINES[1]) is None
    elsewhere = f"it is of {orin}, and {ENGINES[0].file} runs here"
    assert outdated(found, bundle.manifest, runs=ENGINES[0]) == elsewhere
    assert in_short(found, bundle.manifest, runs=ENGINES[0]).startswith(f"counts no more ({elsewhere}), was passed")
    compiled = _with(bundle, {orin: b"compiled again"})
    assert outdated(found, compiled.manifest) == f"{orin} was replaced since"
    assert in_short(found, compiled.manifest).startswith(f"counts no more ({orin} was replaced since), was passed: 1.5")
    pruned = _with(bundle, {}, engines=ENGINES[:1])
    assert outdated(found, pruned.manifest) == f"{orin} is no longer in the bundle"
    rebuilt = _with(bundle, {"graph.onnx": b"another graph"})
    assert outdated(found, rebuilt.manifest) == "the graph was replaced since"


def test_a_verdict_on_the_graph_ends_when_an_engine_joins_it(measured: Verdicts) -> None:
    bundle, found = measured(engines=ENGINES[:1])  # the graph ran in place of an engine for another GPU
    assert found.ours.file is None and outdated(found, bundle.manifest) is None
    joined = _with(bundle, {ENGINES[1].file: b"compiled"}, engines=ENGINES)
    assert outdated(found, joined.manifest) == f"{ENGINES[1].file} was compiled since, and was not timed"


def _digests(bundle: Bundle) -> dict[str, str]:
    return {entry.path: entry.sha256 for entry in bundle.manifest.files}


def _with(bundle: Bundle, files: dict[str, bytes], *, engines: tuple[EngineFile, ...] = ENGINES) -> Bundle:
    """The bundle with other files and engines."""
    content = {name: bundle.file(name).read_bytes() for name in bundle.files} | files
    kept = {name: each for name, each in content.items() if name == "graph.onnx" or name in {e.file for e in engines}}
    place = bundle.path.with_name("changed.bundle")
    return write_bundle(place, replace(bundle.manifest, engines=engines, files=()), kept, overwrite=place.exists())

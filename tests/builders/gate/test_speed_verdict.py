"""The speed verdict: its rule on times that are written down, its advice, what it refuses, and what it records."""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from speed_pairs import around, heavy_graph, int8_and_fp16, renamed, timed, with_graph

from tests.tiny_graphs import FOR_CPUS, MakeBundle
from twins_trt import compare_speed
from twins_trt.builders.gate.speed import judge_speed, pair_of, record_speed, time_pair
from twins_trt.errors import BundleError, UsageError
from twins_trt.profiling.results import ProfileOptions
from twins_trt.profiling.speed import SPEED, SpeedVerdict, read_speed, times_as_fast
from twins_trt.runtime import EngineFile, Figure, Segmenter, open_bundle, write_bundle
from twins_trt.runtime.bundle import amend_bundle
from twins_trt.runtime.manifest import PACK, AwaitedEngine
from twins_trt.verbs.command_line import on_command_line
from twins_trt.verbs.speed import FLAGS, MIN_ROUNDS, SpeedRequest, resolve_speed, time_both

RTX = EngineFile("engines/x.engine", "tensorrt_rtx", "1.7", ("sm_86",))
QUICK = ProfileOptions(rounds=MIN_ROUNDS, calls=2, warm_up_s=0.0, layers=False, power_s=0.0, threads=1)


def test_a_faster_bundle_passes_and_ships(make_bundle: MakeBundle) -> None:
    pair = int8_and_fp16(make_bundle)
    found = judge_speed(pair, timed(pair, around(4.0), around(6.0)))
    assert (found.passed, found.reasons, found.ship) == (True, (), "int8.bundle")
    assert found.ratio.of == "call"
    assert found.ratio.low is not None and found.ratio.high is not None
    assert 1.45 < found.ratio.low <= found.ratio.value <= found.ratio.high < 1.55
    assert found.advice == "ship int8.bundle: it is " + _times(found) + " times as fast"
    assert [each.of for each in found.ratios] == ["call", "end_to_end", "engine"]


def test_a_slower_bundle_fails_and_the_other_ships(make_bundle: MakeBundle) -> None:
    pair = int8_and_fp16(make_bundle)
    found = judge_speed(pair, timed(pair, around(5.69), around(5.49)))
    assert (found.passed, found.ship) == (False, "fp16.bundle")
    assert found.ratio.high is not None and found.ratio.high < 1
    assert found.reasons == (f"int8.bundle is {_times(found)} times as fast as fp16.bundle: not faster",)
    assert found.advice == "ship fp16.bundle: it is faster than int8.bundle"


def test_one_that_may_be_faster_fails_and_more_rounds_are_advised(make_bundle: MakeBundle) -> None:
    pair = int8_and_fp16(make_bundle)
    noisy = [6.0 * (0.9 if i % 3 else 1.15) for i in range(12)]
    measured = timed(pair, noisy, around(6.0, rounds=12))
    found = judge_speed(pair, measured)
    assert found.ratio.value > 1 and found.ratio.low is not None and found.ratio.low < 1
    assert (found.passed, found.ship) == (False, "fp16.bundle")
    (reason,) = found.reasons
    assert reason.endswith("not shown to be faster; more rounds may show it: rounds=48")
    with on_command_line(FLAGS):
        assert judge_speed(pair, measured).reasons[0].endswith("--rounds 48")
    assert (
        found.advice == "ship fp16.bundle: int8.bundle is not shown to gain enough, and this is the more accurate one"
    )


def test_as_fast_is_not_faster(make_bundle: MakeBundle) -> None:
    """Equal times give an interval of no width, which begins at 1 and does not exceed it."""
    pair = int8_and_fp16(make_bundle)
    found = judge_speed(pair, timed(pair, [6.0] * 8, [6.0] * 8))
    assert (found.ratio.low, found.ratio.high, found.passed) == (1.0, 1.0, False)


def test_what_is_asked_for_moves_the_limit(make_bundle: MakeBundle) -> None:
    pair = int8_and_fp16(make_bundle)
    measured = timed(pair, around(4.0), around(6.0))
    assert judge_speed(pair, measured, min_speedup=1.4).passed
    found = judge_speed(pair, measured, min_speedup=1.6)
    assert (found.passed, found.ship) == (False, "fp16.bundle")  # a gain that is too small is none
    assert found.reasons[0].endswith("times as fast as fp16.bundle: not more than 1.6 times as fast")
    assert judge_speed(pair, timed(pair, around(6.2), around(6.0)), min_speedup=0.9).passed


def test_rounds_are_pairs(make_bundle: MakeBundle) -> None:
    """A machine that gets slower from round to round slows both: their ratio stays the same."""
    pair = int8_and_fp16(make_bundle)
    slower = [1.1**i for i in range(16)]
    found = judge_speed(pair, timed(pair, [4.0 * each for each in slower], [6.0 * each for each in slower]))
    assert found.ratio.low is not None and found.ratio.high is not None
    assert found.ratio.high - found.ratio.low < 1e-3 and found.ratio.value == pytest.approx(1.5, abs=1e-3)
    calls = found.ours.times["call"]
    assert len(calls.rounds) == calls.calls == 16 and calls.rounds[-1] == pytest.approx(4.0 * slower[-1], abs=1e-3)


@pytest.mark.parametrize(
    ("gates", "times", "ship", "says", "judge"),
    [
        (("ungated", "passed"), (4.0, 6.0), "fp16.bundle", "int8.bundle would be preferred", "int8"),
        (("failed", "passed"), (4.0, 6.0), "fp16.bundle", "but it has failed its accuracy gate", None),
        (("passed", "ungated"), (6.0, 4.0), "int8.bundle", "fp16.bundle would be preferred", "fp16"),
        (("passed", "failed"), (6.0, 6.0), "int8.bundle", "fp16.bundle would be preferred", None),
        (("ungated", "ungated"), (4.0, 6.0), None, "ship int8.bundle once it has passed its accuracy gate", "int8"),
        (("ungated", "ungated"), (6.0, 4.0), None, "ship fp16.bundle once it has passed its accuracy gate", "fp16"),
        (("failed", "ungated"), (4.0, 6.0), None, "ship fp16.bundle once it has passed", "fp16"),
        (("failed", "failed"), (4.0, 6.0), None, "ship neither: both have failed", None),
    ],
)
def test_only_what_has_passed_its_accuracy_gate_ships(
    make_bundle: MakeBundle,
    gates: tuple[str, str],
    times: tuple[float, float],
    ship: str | None,
    says: str,
    judge: str | None,
) -> None:
    pair = int8_and_fp16(make_bundle, gates=gates)
    found = judge_speed(pair, timed(pair, around(times[0]), around(times[1])))
    assert found.ship == ship and says in found.advice
    assert found.passed == (times[0] < times[1])  # accuracy is the other gate's
    if ship is not None:
        assert found.advice.startswith(f"ship {ship}: ")
    folder = pair.ours.path.parent
    commands = [f"twins-trt gate {folder / name}.bundle --pack FILE" for name in ("int8", "fp16")]
    assert [each in found.advice for each in commands] == [judge == "int8", judge == "fp16"]


def test_what_only_a_simulation_has_judged_is_to_be_judged_on_the_device(make_bundle: MakeBundle) -> None:
    judge = "; only a simulation has judged its accuracy so far, judge it here: twins-trt gate {} --pack FILE"
    pair = int8_and_fp16(make_bundle, gates=("passed", "failed"))
    for simulated, says in ((True, judge.format(pair.ours.path)), (False, "")):
        amend_bundle(pair.ours, {"gate.json": json.dumps({"simulated": simulated}).encode()})
        now = pair_of(open_bundle(pair.ours.path), pair.theirs)
        faster = judge_speed(now, timed(now, around(4.0), around(6.0)))
        assert (faster.ship, faster.advice) == (
            "int8.bundle",
            f"ship int8.bundle: it is {_times(faster)} times as fast{says}",
        )
        slower = judge_speed(now, timed(now, around(6.0), around(4.0)))  # but the faster one has failed its gate
        assert slower.ship == "int8.bundle" and slower.advice.endswith(f"but it has failed its accuracy gate{says}")


def test_a_verdict_that_cannot_be_written_is_shown(make_bundle: MakeBundle, caplog: pytest.LogCaptureFixture) -> None:
    pair = int8_and_fp16(make_bundle)
    kept = amend_bundle(pair.ours, {"plan.json": b"as it was"}).file("plan.json")
    job = resolve_speed(SpeedRequest(str(pair.ours.path), str(pair.theirs.path), rounds=6, calls=1, warm_up=0.0))

    def damage(step: str, detail: str, share: float | None) -> None:
        if detail.startswith("round 6 of"):
            kept.write_bytes(b"as it is.")

    with pytest.raises(BundleError, match=r"sha256 of plan\.json"):
        time_both(job, progress=damage)
    assert "verdict that could not be written:" in caplog.text and "times as fast" in caplog.text


def test_a_bundle_with_a_pack_is_judged_on_it(make_bundle: MakeBundle) -> None:
    pair = int8_and_fp16(make_bundle, gates=("ungated", "passed"))
    packed = pair_of(amend_bundle(pair.ours, {PACK: b"a pack"}), pair.theirs)
    found = judge_speed(packed, timed(packed, around(4.0), around(6.0)))
    assert found.advice.endswith(f"judge it: twins-trt gate {pair.ours.path}")


def test_the_more_accurate_of_one_precision_is_the_one_that_lost_less(make_bundle: MakeBundle) -> None:
    def of(name: str, drop: float) -> None:
        plain = renamed(make_bundle(), name, precision="int8", gate="passed", rebuild=FOR_CPUS)
        amend_bundle(plain, {"gate.json": json.dumps({"drop": {"mean": drop}}).encode()})

    base = make_bundle().path.parent
    of("a.bundle", 0.1)
    of("b.bundle", 0.3)
    for first, second in (("a", "b"), ("b", "a")):
        pair = pair_of(*(open_bundle(base / f"{each}.bundle") for each in (first, second)))
        assert judge_speed(pair, timed(pair, [6.0] * 8, [6.0] * 8)).ship == "a.bundle"


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"height": 48}, "size is 24x32 and 48x32"),
        ({"batch": 2}, "batch is 1 and 2"),
        ({"outputs": ("mask", "logits")}, "outputs is mask"),
        ({"model": "twins_svt-b_fpn"}, "model is twins_svt-s_fpn and twins_svt-b_fpn"),
        ({"classes": ("a", "b", "c", "d"), "palette": ((0, 0, 0),) * 4}, "number of classes is 5 and 4"),
        ({"height": (24, 32, 48)}, "size is 24x32 and 24-48x32-32"),
    ],
)
def test_different_work_is_not_compared(make_bundle: MakeBundle, made: dict[str, object], says: str) -> None:
    height = made.pop("height", 24)
    other = make_bundle(height, **made)  # type: ignore[arg-type]
    with on_command_line(FLAGS), pytest.raises(UsageError, match="do different work") as caught:
        pair_of(make_bundle(), other)
    assert says in caught.value.cause
    assert caught.value.fix is not None and "--against OTHER.bundle" in caught.value.fix


def test_a_bundle_is_not_compared_with_itself(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    (tmp_path / "link").symlink_to(bundle.path)
    for same in (bundle.path, tmp_path / "link", bundle.path / ".." / bundle.path.name):
        with pytest.raises(UsageError, match="is named twice"):
            compare_speed(bundle, same)


def test_bundles_of_one_name_go_by_their_paths(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    (bundle.path.parent / "other").mkdir()
    other = renamed(bundle, f"other/{bundle.path.name}")
    assert pair_of(bundle, other).names == (str(bundle.path), str(other.path))


def test_the_torch_engine_and_unknown_ones_are_refused(make_bundle: MakeBundle) -> None:
    for kind, says in (("torch", "runs the weights"), ("cuda", "there is no engine 'cuda'")):
        with pytest.raises(UsageError, match=says):
            pair_of(make_bundle(), make_bundle(), engine=kind)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("rounds", MIN_ROUNDS - 1, "--rounds is 5, too few for an interval"),
        ("calls", 0, "--calls is 0"),
        ("warm_up", -1.0, "--warm-up is -1"),
        ("warm_up", float("inf"), "--warm-up is inf"),
        ("min_speedup", 0.0, "--min-speedup is 0"),
        ("min_speedup", float("nan"), "--min-speedup is nan"),
    ],
)
def test_options_that_cannot_be_are_named_before_a_bundle_is_opened(field: str, value: float, says: str) -> None:
    with on_command_line(FLAGS), pytest.raises(UsageError, match=says):
        resolve_speed(SpeedRequest("none.bundle", "nor-this.bundle", **{field: value}))  # type: ignore[arg-type]


def test_a_cpu_in_place_of_engines_says_nothing_of_the_device(make_bundle: MakeBundle) -> None:
    orin = (AwaitedEngine("sm_87", "jetson-orin", "10.3"),)
    stayed_behind: dict[str, object] = {}  # a graph for GPUs that was handed over without its engines
    for number, more in enumerate(({"engines": (RTX,)}, {"awaits": orin}, stayed_behind)):
        pair = pair_of(
            renamed(make_bundle(rebuild=FOR_CPUS), f"fp16-{number}.bundle", precision="fp16", gate="passed"),
            renamed(make_bundle(**more), f"int8-{number}.bundle", precision="int8", gate="passed"),
        )
        assert pair.simulated and pair.on_cpu
        found = judge_speed(pair, timed(pair, around(4.0), around(6.0)))
        assert (found.simulated, found.passed, found.ship) == (True, True, None)
        again = shlex.join(["twins-trt", "gate", str(pair.ours.path), "--against", str(pair.theirs.path)])
        assert found.advice.startswith("a CPU ran both") and found.advice.endswith(again)
        assert "onnxruntime standing in for the engines" in found.table()
    assert not int8_and_fp16(make_bundle).simulated  # for a CPU their graphs are what ships


def test_the_verdict_travels_in_the_bundle_and_is_replaced(make_bundle: MakeBundle) -> None:
    figure = Figure("latency", 3.0, "ms", "elsewhere", False)
    pair = int8_and_fp16(make_bundle, figures=(figure,))
    for ours in (4.0, 7.0):
        found = judge_speed(pair, timed(pair, around(ours), around(6.0)))
        record_speed(pair.ours, found)
        again = open_bundle(pair.ours.path)  # verified
        assert read_speed(again) == found
        assert again.manifest.figures == (figure,)
        assert again.manifest.gate == "passed"  # of accuracy
    assert set(again.files) == {"graph.onnx", SPEED}
    assert open_bundle(pair.theirs.path).files == ("graph.onnx",)
    assert found.ours.graph_sha256 == found.theirs.graph_sha256 == again.manifest.graph_sha256


def test_a_simulation_does_not_replace_what_a_device_measured(
    make_bundle: MakeBundle, caplog: pytest.LogCaptureFixture
) -> None:
    pair = int8_and_fp16(make_bundle)
    measured = judge_speed(pair, timed(pair, around(7.0), around(6.0)))
    simulation = replace(judge_speed(pair, timed(pair, around(4.0), around(6.0))), simulated=True)
    record_speed(pair.ours, simulation)
    record_speed(pair.ours, measured)
    with caplog.at_level(logging.WARNING, logger="twins_trt"):
        record_speed(pair.ours, simulation)
    assert read_speed(open_bundle(pair.ours.path)) == measured
    assert "keeps its speed verdict, which was measured on a test" in caplog.text
    newer = make_bundle(48)  # another graph: what was measured of the first says nothing of it
    record_speed(newer, measured)
    record_speed(newer, simulation)
    assert read_speed(open_bundle(newer.path)) == simulation


def test_a_damaged_verdict_is_replaced(make_bundle: MakeBundle, caplog: pytest.LogCaptureFixture) -> None:
    pair = int8_and_fp16(make_bundle)
    amend_bundle(pair.ours, {SPEED: b'{"format_version": 99}'})
    found = judge_speed(pair, timed(pair, around(4.0), around(6.0)))
    with caplog.at_level(logging.WARNING, logger="twins_trt"):
        record_speed(pair.ours, found)
    assert "the earlier speed verdict cannot be read" in caplog.text
    assert read_speed(open_bundle(pair.ours.path)) == found


@pytest.mark.parametrize("which", [0, 1])
def test_a_bundle_that_is_replaced_meanwhile_gives_no_verdict(make_bundle: MakeBundle, which: int) -> None:
    pair = int8_and_fp16(make_bundle)
    bundle = (pair.ours, pair.theirs)[which]

    def replace_it(step: str, detail: str, share: float | None) -> None:
        if detail.startswith("round 1 of") and detail.endswith(pair.names[0]):
            files: dict[str, bytes | Path] = {"graph.onnx": heavy_graph(bundle.graph.read_bytes(), width=8)}
            write_bundle(bundle.path, replace(bundle.manifest, files=()), files, overwrite=True)

    with pytest.raises(BundleError, match="was replaced since it was opened"):
        time_pair(pair, QUICK, progress=replace_it)


def test_an_interrupt_gives_no_verdict(make_bundle: MakeBundle) -> None:
    pair = int8_and_fp16(make_bundle)

    def interrupt(step: str, detail: str, share: float | None) -> None:
        if "round 3 of" in detail:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_speed(pair.ours, pair.theirs, rounds=MIN_ROUNDS, calls=1, warm_up=0.0, threads=1, progress=interrupt)
    assert SPEED not in open_bundle(pair.ours.path).files


def test_real_engines_of_very_different_speed(make_bundle: MakeBundle, rng: np.random.Generator) -> None:
    """Some hundred times the work for the same masks: whatever else the machine does, the order shows."""
    light = make_bundle()
    heavy = with_graph(light, heavy_graph(light.graph.read_bytes()), "heavy.bundle")
    image = rng.integers(0, 256, (24, 32, 3), np.uint8)
    masks = []
    for bundle in (light, heavy):
        with Segmenter(bundle) as segmenter:
            masks.append(segmenter(image).mask)
    assert np.array_equal(*masks)
    # Medians of five calls, since a busy machine holds up single ones.
    quick = {"rounds": 10, "calls": 5, "warm_up": 0.0, "threads": 1}
    faster = compare_speed(light.path, heavy.path, **quick)  # type: ignore[arg-type]
    assert faster.passed and faster.ratio.low is not None and 1 < faster.ratio.low <= faster.ratio.value
    assert faster.ratio.value > 4
    assert read_speed(open_bundle(light.path)) == faster
    assert any("nothing waited for steady clocks" in each for each in faster.warnings)
    slower = compare_speed(heavy, light, record=False, **quick)  # type: ignore[arg-type]
    assert not slower.passed and slower.ratio.high is not None and slower.ratio.high < 1
    assert slower.ratio.value < 0.25
    assert SPEED not in open_bundle(heavy.path).files
    assert slower.ours.name == "heavy.bundle" and slower.ours.times["call"].p50 > slower.theirs.times["call"].p50


def test_the_same_graph_under_two_names_is_not_three_times_as_fast(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    found = compare_speed(
        bundle, renamed(bundle, "twin.bundle"), min_speedup=3.0, rounds=10, calls=5, warm_up=0.0, threads=1
    )
    assert not found.passed


def _times(found: SpeedVerdict) -> str:
    return times_as_fast(found.ratio)

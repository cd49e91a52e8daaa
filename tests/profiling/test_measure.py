"""Measuring, with engines whose times are known: what is kept, in which order, and what an interrupt leaves."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trees
from tiny_graphs import MakeBundle
from told import Told

from twins_trt.errors import EngineError, ImageError, UsageError
from twins_trt.profiling import measure, steady
from twins_trt.profiling.candidates import Candidate, bundle_candidate
from twins_trt.profiling.measure import profile
from twins_trt.profiling.picture import draw_picture
from twins_trt.profiling.results import Profile, ProfileOptions
from twins_trt.profiling.statistics import ratio_of_medians
from twins_trt.runtime import Bundle, RuntimeOptions, Segmenter
from twins_trt.runtime.engines import DeviceMemory, LayerTime

QUICK = ProfileOptions(rounds=3, calls=2, warm_up_s=0.0, batches=(), layers=False, power_s=0.0)
# The first call, one window of warm-up and an observed call; in each round one that is not kept, the timed calls and as
# many observed ones.
CALLS = 1 + steady.WINDOW + 1 + 3 * (1 + 2 + 2)


class Sleeper:
    """An engine that takes `milliseconds(number of the call)`, of which it says that a tenth each way is copying.

    observing: milliseconds by which a call is longer if it is observed. observed: of every call, whether it was.
    """

    name, concurrent = "sleeper", True

    def __init__(
        self,
        bundle: Bundle,
        milliseconds: Callable[[int], float],
        options: RuntimeOptions,
        *,
        largest_batch: int,
        observing: float,
    ) -> None:
        self.inputs, self.outputs = bundle.interface.inputs, bundle.interface.outputs
        self.milliseconds, self.observe = milliseconds, options.observe
        self.largest_batch, self.observing = largest_batch, observing
        self.sizes: list[int] = []
        self.observed: list[bool] = []
        self.closed = 0

    def __call__(
        self, image: Any, *, outputs: Sequence[str] | None = None, out: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        if len(image) > self.largest_batch:
            raise EngineError("out of memory")
        self.sizes.append(len(image))
        observe = self.observe
        self.observed.append(observe is not None)
        seconds = self.milliseconds(len(self.sizes)) / 1e3
        time.sleep(seconds)
        if observe is not None:
            time.sleep(self.observing / 1e3)
            observe("copy_in", 0.1 * seconds)
            observe("engine", 0.8 * seconds)
            observe("copy_out", 0.1 * seconds)
        return {"mask": np.zeros(image.shape[:3], np.uint8)}

    def device_memory(self) -> DeviceMemory:
        return DeviceMemory(1 << 20, 2 << 20, 1 << 19)

    def profile_layers(self, image: Any, *, runs: int = 10) -> tuple[LayerTime, ...]:
        return (LayerTime("head/a", 1.5, "Conv"), LayerTime("Gelu", 0.5, "Gelu"))

    def close(self) -> None:
        self.closed += 1


class Meter:
    source = "a test"

    def watts(self) -> float:
        return 12.0

    def millijoules(self) -> int | None:
        return None

    def close(self) -> None:
        pass


@pytest.fixture
def sleeper(make_bundle: MakeBundle) -> Callable[..., tuple[Candidate, list[Sleeper]]]:
    """`sleeper(label, milliseconds, largest_batch=100, observing=0.0, **arguments of make_bundle)`: a candidate, and
    the engines that it has opened so far."""

    def make(
        label: str, milliseconds: Any, *, largest_batch: int = 100, observing: float = 0.0, **made: Any
    ) -> tuple[Candidate, list[Sleeper]]:
        bundle = make_bundle(**made)
        candidate = bundle_candidate(bundle.path, label=label)
        engines: list[Sleeper] = []
        takes = milliseconds if callable(milliseconds) else lambda number: milliseconds

        def open_sleeper(options: RuntimeOptions) -> Any:
            engines.append(Sleeper(bundle, takes, options, largest_batch=largest_batch, observing=observing))
            segmenter = Segmenter(bundle, engines[-1], options=options)
            real, subject = candidate.open(options)
            real.close()
            return segmenter, replace(subject, engine="sleeper")

        return Candidate(label, open_sleeper), engines

    return make


def test_two_candidates_in_turn_with_their_ratio(sleeper: Any) -> None:
    (slow, slow_engines), (fast, fast_engines) = sleeper("slow", 20.0), sleeper("fast", 10.0)
    found = profile([slow, fast], QUICK, command="twins-trt profile a b")
    assert [m.subject.label for m in found.measurements] == ["slow", "fast"]
    for measurement, engines in zip(found.measurements, (slow_engines, fast_engines), strict=True):
        assert len(measurement.end_to_end.samples) == 3 * 2 and measurement.calls_per_round == 2
        assert engines[0].sizes == [1] * CALLS
        assert engines[0].closed == 1
        assert set(measurement.stages) == {"decode", "preprocess", "copy", "engine", "postprocess"}
        assert measurement.call.p50 < measurement.end_to_end.p50
        assert measurement.memory.device_mib == 3.5
    slow_stages = found.of("slow").stages
    assert slow_stages["copy"].p50 == pytest.approx(4.0, abs=0.01)
    assert slow_stages["engine"].p50 == pytest.approx(16.0, abs=0.01)
    by_kind = {ratio.of: ratio for ratio in found.ratios}
    assert {(r.label, r.baseline, r.rounds) for r in found.ratios} == {("fast", "slow", 3)}
    assert by_kind["engine"].value == pytest.approx(2.0, rel=0.01)
    end_to_end = by_kind["end_to_end"]
    assert end_to_end.low is not None and end_to_end.high is not None
    rounds = [found.of(label).rounds("end_to_end") for label in ("fast", "slow")]  # by the clock: nothing to foresee
    assert (end_to_end.value, end_to_end.low, end_to_end.high) == ratio_of_medians(*rounds)
    assert end_to_end.low <= end_to_end.value <= end_to_end.high
    assert Profile.from_json(found.to_json()) == found
    assert (found.command, found.interrupted) == ("twins-trt profile a b", False)


def test_end_to_end_is_not_observed_and_stages_come_from_calls_of_their_own(sleeper: Any) -> None:
    candidate, engines = sleeper("x", 4.0, observing=40.0)
    found = profile([candidate], QUICK).measurements[0]
    warm, turn = [False] * (1 + steady.WINDOW) + [True], [False] * (1 + 2) + [True] * 2
    assert engines[0].observed == warm + 3 * turn
    assert engines[0].observe is None
    for latency in (found.end_to_end, found.call):
        assert len(latency.samples) == 3 * 2 and min(latency.samples) < 40
    assert found.observed_call is not None
    assert len(found.observed_call.samples) == 3 * 2 and min(found.observed_call.samples) >= 44
    for name, stage in found.stages.items():
        assert len(stage.samples) == 3 * 2, name
    assert found.stages["engine"].p50 == pytest.approx(3.2)
    assert found.overhead == pytest.approx(found.observed_call.p50 / 4.0 - 1, rel=0.01)


def test_the_sweep_and_energy_are_not_observed(sleeper: Any) -> None:
    candidate, engines = sleeper("x", 1.0, batch=(1, 2, 4))
    profile([candidate], replace(QUICK, batches=(1, 4), power_s=0.05), meter=Meter())
    assert len(engines[0].observed) > CALLS and not any(engines[0].observed[CALLS:])


def test_turns_rotate_and_the_baseline_can_be_chosen(sleeper: Any) -> None:
    order: list[str] = []
    (a, _), (b, _) = sleeper("a", lambda n: order.append("a") or 1.0), sleeper("b", lambda n: order.append("b") or 1.0)
    found = profile([a, b], QUICK, baseline="b")
    turns = [(name, len(list(calls))) for name, calls in itertools.groupby(order[-30:])]
    assert turns == [("a", 5), ("b", 10), ("a", 10), ("b", 5)]  # a and b, b and a, a and b
    assert {(ratio.label, ratio.baseline) for ratio in found.ratios} == {("a", "b")}


def test_throughput_stays_within_what_a_graph_takes(sleeper: Any) -> None:
    (candidate, engines) = sleeper("x", 2.0, batch=(1, 2, 4))
    found = profile([candidate], replace(QUICK, batches=(1, 4, 8))).measurements[0]
    assert [batch.size for batch in found.batches] == [1, 4]
    assert set(engines[0].sizes) == {1, 4}
    assert found.batches[1].images_per_second == pytest.approx(4e3 / found.batches[1].latency.p50)


def test_a_graph_of_fixed_batch_is_called_with_it(sleeper: Any) -> None:
    candidate, engines = sleeper("x", 1.0, batch=3)
    found = profile([candidate], QUICK).measurements[0]
    assert found.subject.batch == 3 and set(engines[0].sizes) == {3}
    assert found.rounds("end_to_end")[0][0] == pytest.approx(found.end_to_end.samples[0] / 3)


def test_a_batch_that_fails_ends_its_sweep_only(sleeper: Any, caplog: pytest.LogCaptureFixture) -> None:
    candidate, _ = sleeper("x", 1.0, largest_batch=2, batch=(1, 2, 8))
    with caplog.at_level(logging.WARNING, logger="twins_trt"):
        found = profile([candidate], replace(QUICK, batches=(2, 4, 8))).measurements[0]
    assert [batch.size for batch in found.batches] == [2]
    assert "x does not take a batch of 4: out of memory" in caplog.text


def test_layers_and_energy(sleeper: Any) -> None:
    candidate, _ = sleeper("x", 5.0)
    monitored = replace(QUICK, layers=True, power_s=0.1)
    found = profile([candidate], monitored, meter=Meter()).measurements[0]
    assert found.blocks() == {"head": 2.0}
    assert found.energy is not None
    assert (found.energy.watts, found.energy.idle_watts) == (12.0, 12.0)
    assert found.energy.joules_per_image == pytest.approx(12 * found.energy.seconds / found.energy.images, rel=0.05)


def test_layers_that_cannot_be_timed_cost_nothing_else(
    sleeper: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Sleeper, image: Any, *, runs: int = 10) -> tuple[LayerTime, ...]:
        raise EngineError("reported no layer")

    monkeypatch.setattr(Sleeper, "profile_layers", refuse)
    candidate, _ = sleeper("x", 1.0)
    with caplog.at_level(logging.WARNING, logger="twins_trt"):
        found = profile([candidate], replace(QUICK, layers=True)).measurements[0]
    assert (len(found.end_to_end.samples), found.layers) == (6, ())
    assert "x: layers were not timed: reported no layer" in caplog.text


def test_clocks_and_heat_are_read_between_rounds(sleeper: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The board gets hotter and slower with every call; `during` has what it was in the middle of the rounds."""
    monkeypatch.setattr(measure, "GLANCE_S", 1e6)  # so that they are read after the first round and the last
    zone, gpu = "sys/class/thermal/thermal_zone0", "sys/class/devfreq/17000000.gpu"
    still = {f"{zone}/type": "tj-thermal", f"{zone}/trip_point_0_type": "passive", f"{zone}/trip_point_0_temp": 84_000}
    cooling = "sys/class/thermal/cooling_device0"
    still |= {f"{gpu}/max_freq": "1000000000", f"{cooling}/type": "gpu-throttle-alert"}
    root = trees.write(tmp_path / "root", still)
    first, last = CALLS - 10, CALLS  # the calls before the first look and before the last

    def takes(number: int) -> float:
        trees.write(root, {f"{gpu}/cur_freq": 10**9 - number * 10**7, f"{zone}/temp": 60_000 + number * 1000})
        trees.write(root, {f"{cooling}/cur_state": int(number <= first)})  # it has ended when all is over
        return 1.0

    candidate, _ = sleeper("x", takes)
    found = profile([candidate], QUICK, root=root)
    assert [state.throttled for state in found.during] == [("cooling by gpu-throttle-alert",), ()]
    assert found.after.throttled == ("cooling by gpu-throttle-alert",)
    assert [state.clocks_mhz["gpu"] for state in found.during] == [1000 - 10 * first, 1000 - 10 * last]
    assert [state.temperatures_c for state in found.during] == [{"tj-thermal": 60.0 + n} for n in (first, last)]
    assert f"the gpu clock was down to {1000 - 10 * last} MHz at work, its maximum is 1000 MHz" in found.warnings
    assert f"tj-thermal reached {60 + last} °C, and is slowed down from 84 °C on" not in found.warnings
    takes(25)
    hot = profile([candidate], QUICK, root=root)
    assert hot.settled is None
    assert "tj-thermal reached 85 °C, and is slowed down from 84 °C on" in hot.warnings


def test_all_run_in_turn_until_they_are_steady(sleeper: Any) -> None:
    (a, a_engines), (b, b_engines) = sleeper("a", 1.0), sleeper("b", 2.0)
    found = profile([a, b], replace(QUICK, settle_s=0.01))  # less than a window, so there is one
    assert found.settled is not None
    assert (found.settled.windows, found.settled.steady) == (1, False)
    more = [len(each[0].sizes) - CALLS for each in (a_engines, b_engines)]
    assert more[0] == more[1] > 1
    assert any("latencies were not steady after" in warning for warning in found.warnings)
    assert Profile.from_json(found.to_json()) == found


def stopped_at(call: int, milliseconds: float = 1.0) -> Callable[[int], float]:
    def takes(number: int) -> float:
        if number == call:
            raise KeyboardInterrupt
        return milliseconds

    return takes


@pytest.mark.parametrize("late", [2, 4])  # in a timed call, and in an observed one
def test_an_interrupt_keeps_whole_rounds(sleeper: Any, late: int) -> None:
    before_rounds, turn = 1 + steady.WINDOW + 1, 1 + 2 + 2
    (a, a_engines), (b, b_engines) = sleeper("a", 1.0), sleeper("b", stopped_at(before_rounds + 2 * turn + late))
    found = profile([a, b], replace(QUICK, layers=True, batches=(1,)))
    assert found.interrupted
    assert [len(m.end_to_end.samples) for m in found.measurements] == [4, 4]
    assert [len(m.stages["engine"].samples) for m in found.measurements] == [4, 4]
    assert [m.layers for m in found.measurements] == [(), ()]
    assert found.ratios[0].rounds == 2
    assert any("interrupted" in warning for warning in found.warnings)
    assert [a_engines[0].closed, b_engines[0].closed] == [1, 1]


def test_an_interrupt_before_the_first_round_is_raised_and_all_is_closed(sleeper: Any) -> None:
    (a, a_engines), (b, b_engines) = sleeper("a", 1.0), sleeper("b", stopped_at(1 + steady.WINDOW + 2))
    with pytest.raises(KeyboardInterrupt):
        profile([a, b], QUICK)
    assert [a_engines[0].closed, b_engines[0].closed] == [1, 1]


def test_an_engine_that_fails_at_its_first_call_is_closed(sleeper: Any) -> None:
    def fail(number: int) -> float:
        raise EngineError("no memory")

    (good, good_engines), (bad, bad_engines) = sleeper("good", 1.0), sleeper("bad", fail)
    with pytest.raises(EngineError, match="no memory"):
        profile([good, bad], QUICK)
    assert [good_engines[0].closed, bad_engines[0].closed] == [1, 1]


def test_progress_says_where_the_work_is(sleeper: Any) -> None:
    told = Told()
    candidate, _ = sleeper("x", 1.0)
    profile([candidate], QUICK, progress=told)
    assert list(dict.fromkeys(step for step, _, _ in told.calls)) == ["open", "warm up", "measure"]
    assert told.calls[-1] == ("measure", "round 3 of 3, x", pytest.approx(2 / 3))


def test_labels_and_baselines_that_cannot_be(sleeper: Any, tmp_path: Path) -> None:
    candidate, engines = sleeper("x", 1.0)
    with pytest.raises(UsageError, match="name each once"):
        profile([candidate, candidate])
    with pytest.raises(UsageError, match="name each once"):
        profile([])
    with pytest.raises(UsageError, match="there is no candidate 'y'"):
        profile([candidate], baseline="y")
    assert engines == []
    with pytest.raises(ImageError):
        profile([candidate], QUICK, picture=tmp_path / "none.png")


def test_a_picture_of_another_size_is_resized_and_the_file_is_named(sleeper: Any, tmp_path: Path) -> None:
    draw_picture(tmp_path / "street.jpg", (60, 80))
    candidate, _ = sleeper("x", 1.0)
    found = profile([candidate], QUICK, picture=tmp_path / "street.jpg")
    assert found.settings.picture == "street.jpg, 60x80"
    assert found.measurements[0].subject.size == (24, 32)


def test_the_drawn_picture_is_always_the_same_and_as_heavy_as_a_photograph(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        draw_picture(tmp_path / name, (360, 480))
    first = (tmp_path / "a.jpg").read_bytes()
    assert first == (tmp_path / "b.jpg").read_bytes()
    assert 0.5 < 8 * len(first) / (360 * 480) < 4  # bits a pixel


def test_engines_at_different_sizes_are_no_match(sleeper: Any) -> None:
    (a, _), (b, _) = sleeper("a", 1.0), sleeper("b", 1.0, height=48, width=32)
    found = profile([a, b], QUICK)
    assert "the candidates work at different sizes: 24x32, 48x32" in found.warnings

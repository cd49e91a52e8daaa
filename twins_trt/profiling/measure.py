"""Measures candidates side by side: warm-up until stable, rounds in which each runs in turn, then the throughput
sweep, layers and energy.

A round runs every candidate once, in an order that rotates. The first call of each is not kept: it brings the weights
back into the caches and lets the threads of the candidate before fall asleep. The timed calls follow, and after them as
many in which stages are observed: an observed call waits for every stage, so it is not what a user has to wait for.
Whatever else the machine does in a round affects all candidates, and ratios are taken within rounds.
"""

from __future__ import annotations

import gc
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from twins_trt.data.images import read_image
from twins_trt.errors import EngineError, TwinsError, UsageError
from twins_trt.inference.fitting import fit_size
from twins_trt.profiling import machine
from twins_trt.profiling.candidates import Candidate, noise
from twins_trt.profiling.layers import profile_layers
from twins_trt.profiling.picture import draw_picture
from twins_trt.profiling.power import Meter, measure_energy, measure_idle
from twins_trt.profiling.results import (
    COMPARED,
    STAGES,
    Batch,
    Conditions,
    Energy,
    Latency,
    Layer,
    Measurement,
    Memory,
    Profile,
    ProfileOptions,
    Ratio,
    Settling,
    Subject,
    WarmUp,
)
from twins_trt.profiling.statistics import ratio_of_medians
from twins_trt.profiling.steady import settle, warm_up
from twins_trt.profiling.warnings import find_warnings
from twins_trt.progress import Progress, silent
from twins_trt.runtime import RuntimeOptions, Segmenter
from twins_trt.runtime.engines import HoldsDeviceMemory, ProfilesLayers
from twins_trt.runtime.engines.protocol import Stage

SWEEP_CALLS, SWEEP_S = 7, 5.0
LAYER_RUNS, WATCH_S = 10, 0.5
GLANCE_S = 0.5  # between two looks at the clocks: on a board one takes some milliseconds, and the GPU idles meanwhile
ANY_SIZE = (512, 512)  # of the picture, for graphs that take any

log = logging.getLogger("twins_trt")


def profile(
    candidates: Sequence[Candidate],
    options: ProfileOptions | None = None,
    *,
    picture: str | Path | None = None,
    baseline: str | None = None,
    meter: Meter | None = None,
    command: str = "",
    root: Path = machine.ROOT,
    progress: Progress | None = None,
) -> Profile:
    """Measures all candidates side by side.

    picture: an image file to segment; None draws one of the first candidate's size. baseline: the label that ratios
    refer to, by default the first candidate's. meter: reads the power; None measures no energy. command: written into
    the profile, to make it again. root: of the file system that holds /proc and /sys.
    KeyboardInterrupt after the first whole round ends the measuring and returns what was measured, marked
    `interrupted`; before that it is raised. Raises UsageError where there is no candidate or two have one label, and
    what opening or running a candidate raises.
    """
    options = options or ProfileOptions()
    reference = _reference([candidate.label for candidate in candidates], baseline)
    if picture is not None:
        read_image(picture)  # a broken one fails now, not after minutes of opening
    before, start = machine.look(root, watch_s=WATCH_S), time.perf_counter()  # while the load is that of others
    idle_watts = None if meter is None or not options.power_s else measure_idle(meter)
    work = _SideBySide(options, root, progress or silent)
    interrupted = False
    with tempfile.TemporaryDirectory(prefix="twins-trt-") as folder:
        try:
            work.open(candidates)
            work.use_picture(None if picture is None else Path(picture), folder=Path(folder))
            work.warm_up()
            try:
                work.settle()
                work.measure_rounds()
                after, end = work.look_after(), time.perf_counter()
            except KeyboardInterrupt:
                if not work.drop_unfinished_round():
                    raise
                after, end, interrupted = work.look_after(), time.perf_counter(), True
            try:
                if not interrupted:
                    work.sweep()
                    work.time_layers()
                    work.measure_energy(meter, idle_watts)
            except KeyboardInterrupt:
                interrupted = True
        finally:
            work.close()
    measurements = tuple(_measurement(each, options.calls) for each in work.opened)
    result = Profile(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        machine=machine.describe_machine(root),
        versions=machine.describe_versions(root=root),
        settings=work.options,
        before=before,
        after=after,
        seconds=round(end - start, 1),
        measurements=measurements,
        ratios=tuple(_ratios(measurements, reference)),
        interrupted=interrupted,
        during=tuple(work.during),
        settled=work.settled,
    )
    return replace(result, warnings=find_warnings(result))


@dataclass
class _Opened:
    """A candidate that is open, and what has been measured of it so far. calls: of whole rounds, the seconds of a call
    that nothing observed, and of an observed one."""

    subject: Subject
    segmenter: Segmenter
    memory: Memory
    warm_up: WarmUp = field(default_factory=lambda: WarmUp(0, 0.0, False))
    calls: list[tuple[dict[str, float], dict[str, float]]] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    layers: tuple[Layer, ...] = ()
    energy: Energy | None = None

    def call(self, pictures: Sequence[Any]) -> dict[str, float]:
        """Seconds of one call that nothing observes: `end_to_end` from pictures or their files, `call` once decoded.

        It decodes as the Segmenter does, and before it: the clock is read between the two, not inside.
        """
        start = time.perf_counter()
        images = [picture if isinstance(picture, np.ndarray) else read_image(picture) for picture in pictures]
        decoded = time.perf_counter()
        self.segmenter(images[0] if len(images) == 1 else images)
        end = time.perf_counter()
        return {"end_to_end": end - start, "call": end - decoded}

    def observed_call(self, pictures: Sequence[Path]) -> dict[str, float]:
        """Seconds of one call, by name of `STAGES`, and of all but decoding as `call`."""
        spent: dict[str, float] = {}

        def observe(stage: Stage, seconds: float) -> None:
            spent[stage] = spent.get(stage, 0.0) + seconds

        self.segmenter.observe = observe
        try:
            start = time.perf_counter()
            self.segmenter(pictures[0] if len(pictures) == 1 else list(pictures))
            total = time.perf_counter() - start
        finally:
            self.segmenter.observe = None
        return _by_stage(spent, total)


class _SideBySide:
    """Candidates that are open together and segment the same picture. `options` say which, once it is chosen."""

    def __init__(self, options: ProfileOptions, root: Path, progress: Progress) -> None:
        self.options = options
        self.opened: list[_Opened] = []
        self.during: list[Conditions] = []
        self.settled: Settling | None = None
        self._root, self._progress = root, progress
        self._picture = Path()

    def open(self, candidates: Sequence[Candidate]) -> None:
        for number, candidate in enumerate(candidates):
            self._progress("open", candidate.label, number / len(candidates))
            self.opened.append(_open(candidate, self.options.threads))

    def use_picture(self, picture: Path | None, *, folder: Path) -> None:
        """Chooses the file that all segment: `picture`, or one drawn in `folder` of the first candidate's size."""
        if picture is None:
            picture = folder / "drawn"
            draw_picture(picture, self.opened[0].segmenter.interface.opt_size or ANY_SIZE)
        self._picture = picture
        height, width = read_image(picture).shape[:2]
        self.options = replace(self.options, picture=f"{picture.name}, {height}x{width}")
        for each in self.opened:
            fit = fit_size((height, width), each.segmenter.interface, each.segmenter.fit)
            each.subject = replace(each.subject, size=fit.canvas)

    def warm_up(self) -> None:
        for each in self.opened:
            self._progress("warm up", each.subject.label, None)
            each.warm_up = warm_up(self._seconds(each), limit_s=self.options.warm_up_s)
            each.observed_call(self._pictures(each))  # an engine prepares its clocks in the first

    def settle(self) -> None:
        """Runs all in turn until clocks and latencies are steady, if the options want it."""
        if self.options.settle_s:
            calls = [self._seconds(each) for each in self.opened]
            self.settled = settle(calls, self._glance_while_settling, limit_s=self.options.settle_s)

    def _glance_while_settling(self) -> Conditions:
        self._progress("warm up", "until the clocks are steady", None)
        return machine.glance(self._root)

    def measure_rounds(self) -> None:
        """Adds whole rounds to `calls`, and the machine's state at the end of some to `during`."""
        rounds = self.options.rounds
        glanced = -GLANCE_S
        for number in range(rounds):
            first = number % len(self.opened)
            kept: list[tuple[_Opened, list[tuple[dict[str, float], dict[str, float]]]]] = []
            for each in (*self.opened[first:], *self.opened[:first]):
                self._progress("measure", f"round {number + 1} of {rounds}, {each.subject.label}", number / rounds)
                pictures = self._pictures(each)
                each.call(pictures)
                calls = [each.call(pictures) for _ in range(self.options.calls)]
                observed = [each.observed_call(pictures) for _ in range(self.options.calls)]
                kept.append((each, list(zip(calls, observed, strict=True))))
            for each, both in kept:
                each.calls += both
            if number + 1 == rounds or time.perf_counter() - glanced >= GLANCE_S:
                self.during.append(machine.glance(self._root))
                glanced = time.perf_counter()

    def look_after(self) -> Conditions:
        """The machine's state now, and what held the clocks back in the rounds."""
        held_back = dict.fromkeys(each for state in self.during for each in state.throttled)
        return replace(machine.look(self._root), throttled=tuple(held_back))

    def drop_unfinished_round(self) -> int:
        """Keeps the calls of the rounds that every candidate has finished. Returns how many calls each has then."""
        whole = min(len(each.calls) for each in self.opened)
        for each in self.opened:
            del each.calls[whole:]
        return whole

    def sweep(self) -> None:
        """Times each batch size of the options that a graph takes, on pictures in memory."""
        image = read_image(self._picture)
        for each in self.opened:
            low, high = each.segmenter.interface.batch_limits
            for size in self.options.batches:
                if size < low or (high is not None and size > high):
                    continue
                self._progress("sweep", f"{each.subject.label}, batch {size}", None)
                pictures = [image] * size
                try:
                    each.call(pictures)
                    start = time.perf_counter()
                    times: list[float] = []
                    while len(times) < SWEEP_CALLS and (len(times) < 3 or time.perf_counter() - start < SWEEP_S):
                        times.append(each.call(pictures)["call"])
                except (EngineError, MemoryError) as error:  # larger ones would fail the same way
                    log.warning("%s does not take a batch of %d: %s", each.subject.label, size, error)
                    break
                each.batches.append(Batch(size, Latency.of(times)))

    def time_layers(self) -> None:
        """Times the layers of the engines that can, if the options want it."""
        if not self.options.layers:
            return
        for each in self.opened:
            engine = each.segmenter.engine
            if isinstance(engine, ProfilesLayers):
                self._progress("layers", each.subject.label, None)
                batch = noise(each.segmenter, each.subject.size, each.subject.batch)
                try:
                    each.layers = profile_layers(engine, batch, runs=LAYER_RUNS)
                except TwinsError as error:  # the latencies are useful without layers
                    log.warning("%s: layers were not timed: %s", each.subject.label, error.cause)

    def measure_energy(self, meter: Meter | None, idle_watts: float | None) -> None:
        """Measures the energy of a steady run of each candidate, if there is a meter and the options want it."""
        if meter is None or not self.options.power_s:
            return
        for each in self.opened:
            self._progress("energy", each.subject.label, None)
            pictures = self._pictures(each)

            def work(each: _Opened = each, pictures: Sequence[Path] = pictures) -> int:
                each.call(pictures)
                return len(pictures)

            try:
                each.energy = measure_energy(meter, work, seconds=self.options.power_s, idle_watts=idle_watts)
            except TwinsError as error:  # the latencies are useful without energy
                log.warning("%s: %s", each.subject.label, error.cause)

    def close(self) -> None:
        for each in self.opened:
            each.segmenter.close()

    def _pictures(self, each: _Opened) -> list[Path]:
        """The pictures of one call: as many as the graph's batch."""
        return [self._picture] * each.subject.batch

    def _seconds(self, each: _Opened) -> Callable[[], float]:
        """A call that returns its seconds, those of decoding left out."""
        pictures = self._pictures(each)
        return lambda: each.call(pictures)["call"]


def _reference(labels: Sequence[str], baseline: str | None) -> str:
    """The label that ratios refer to. Raises UsageError where labels are missing or repeated, or it is none of them."""
    if not labels or len(set(labels)) < len(labels):
        raise UsageError(f"the labels are {', '.join(labels) or 'none'}", "name each once, at least one")
    reference = baseline or labels[0]
    if reference not in labels:
        raise UsageError(f"there is no candidate {reference!r}", f"use one of: {', '.join(labels)}")
    return reference


def _open(candidate: Candidate, threads: int | None) -> _Opened:
    """Opens a candidate and calls it once, since engines allocate at the first call; measures the memory it takes."""
    gc.collect()
    machine.forget_peak()
    before = machine.resident_mib()
    segmenter, subject = candidate.open(RuntimeOptions(threads=threads))
    height, width = segmenter.interface.opt_size or ANY_SIZE
    try:
        segmenter([np.zeros((height, width, 3), np.uint8)] * subject.batch)
    except BaseException:
        segmenter.close()
        raise
    memory = Memory()
    if before is not None and (now := machine.resident_mib()) is not None:
        memory = Memory(round(now[0] - before[0], 1), round(now[1] - before[0], 1))
    engine = segmenter.engine
    if isinstance(engine, HoldsDeviceMemory):
        memory = replace(memory, device_mib=round(engine.device_memory().total / 2**20, 1))
    return _Opened(subject, segmenter, memory)


def _by_stage(spent: dict[str, float], total: float) -> dict[str, float]:
    """Seconds by name of `STAGES`, with `call`. spent: as engine and Segmenter told them."""
    copies = [spent[name] for name in ("copy_in", "copy_out") if name in spent]
    stages = {name: spent[name] for name in STAGES if name in spent}
    stages.setdefault("engine", spent["run"])
    if copies:
        stages["copy"] = sum(copies)
    return stages | {"call": total - spent["decode"]}


def _measurement(each: _Opened, calls_per_round: int) -> Measurement:
    calls, observed = zip(*each.calls, strict=True)

    def latency(name: str, calls: Sequence[dict[str, float]]) -> Latency:
        return Latency.of([call[name] for call in calls])

    return Measurement(
        subject=each.subject,
        warm_up=each.warm_up,
        end_to_end=latency("end_to_end", calls),
        call=latency("call", calls),
        observed_call=latency("call", observed),
        stages={name: latency(name, observed) for name in STAGES if name in observed[0]},
        calls_per_round=calls_per_round,
        batches=tuple(each.batches),
        layers=each.layers,
        memory=each.memory,
        energy=each.energy,
    )


def _ratios(measurements: Sequence[Measurement], baseline: str) -> list[Ratio]:
    """How fast each candidate is beside the baseline, per picture: from file to mask, and the engine alone."""
    theirs = next(m for m in measurements if m.subject.label == baseline)
    ratios = []
    for ours in measurements:
        if ours is theirs:
            continue
        for of in COMPARED:
            rounds = ours.rounds(of)
            value, low, high = ratio_of_medians(rounds, theirs.rounds(of))
            ratios.append(Ratio(ours.subject.label, baseline, of, value, low, high, len(rounds)))
    return ratios

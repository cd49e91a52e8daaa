"""Measuring candidates side by side: warm-up until stable, rounds in which each runs in turn, then the throughput
sweep, layers and energy.

A round runs every candidate once, in an order that rotates: one call that is not kept, which brings its weights back
into the caches and lets the threads of the one before fall asleep, then the timed ones. Whatever else the machine does
in a round meets all candidates, and ratios are taken within rounds.
"""

from __future__ import annotations

import gc
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from twins_trt.data.images import read_image
from twins_trt.errors import EngineError, TwinsError, UsageError
from twins_trt.inference.fitting import fit_size
from twins_trt.profiling import machine
from twins_trt.profiling.candidates import Candidate, noise, usual_size
from twins_trt.profiling.layers import profile_layers
from twins_trt.profiling.power import Meter, measure_energy, measure_idle
from twins_trt.profiling.results import (
    COMPARED,
    STAGES,
    Batch,
    Energy,
    Latency,
    Layer,
    Measurement,
    Memory,
    Profile,
    Ratio,
    Settings,
    Subject,
    WarmUp,
)
from twins_trt.profiling.statistics import ratio_of_medians
from twins_trt.profiling.warnings import find_warnings
from twins_trt.progress import Progress, silent
from twins_trt.runtime import RuntimeOptions, Segmenter
from twins_trt.runtime.engines import HoldsDeviceMemory, ProfilesLayers
from twins_trt.runtime.engines.protocol import Stage

# Warm enough: the medians of the last two windows of calls differ by less than this share.
WINDOW, TOLERANCE = 5, 0.05
SWEEP_CALLS, SWEEP_S = 7, 5.0
LAYER_RUNS = 10
WATCH_S = 0.5
USUAL_PICTURE = (512, 512)

log = logging.getLogger("twins_trt")


@dataclass
class _Open:
    """A candidate at work."""

    subject: Subject
    segmenter: Segmenter
    spent: dict[str, float]
    memory: Memory
    warm_up: WarmUp = field(default_factory=lambda: WarmUp(0, 0.0, False))
    calls: list[dict[str, float]] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    layers: tuple[Layer, ...] = ()
    energy: Energy | None = None

    def call(self, pictures: Sequence[Any]) -> dict[str, float]:
        """Seconds of one call, by stage, with `end_to_end` and `call`."""
        self.spent.clear()
        start = time.perf_counter()
        self.segmenter(pictures[0] if len(pictures) == 1 else list(pictures))
        total = time.perf_counter() - start
        return _by_stage(self.spent, total)


def profile(
    candidates: Sequence[Candidate],
    settings: Settings | None = None,
    *,
    picture: str | Path | None = None,
    baseline: str | None = None,
    meter: Meter | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> Profile:
    """Measures all candidates side by side.

    picture: an image file to segment; None draws one of the first candidate's size. baseline: the label that ratios
    refer to, by default the first candidate's. meter: what reads power, None for no energy. command: how to make this
    again, for the results.
    KeyboardInterrupt after the first whole round ends the measuring, and what there is is returned, marked
    `interrupted`; before, it is raised. Raises UsageError for no candidates or two of one label, and whatever opening
    or running a candidate raises.
    """
    settings = settings or Settings()
    labels = [candidate.label for candidate in candidates]
    if not labels or len(set(labels)) < len(labels):
        raise UsageError(f"the labels are {', '.join(labels) or 'none'}", "name each once, at least one")
    if (reference := baseline or labels[0]) not in labels:
        raise UsageError(f"there is no candidate {reference!r}", f"use one of: {', '.join(labels)}")
    if picture is not None:
        read_image(picture)  # a broken one is said before minutes of opening
    say = progress or silent
    before, start = machine.look(watch_s=WATCH_S), time.perf_counter()  # while the load is that of others
    idle = None if meter is None or not settings.power_s else measure_idle(meter)
    opened: list[_Open] = []
    with tempfile.TemporaryDirectory(prefix="twins-trt-") as folder:
        try:
            for number, candidate in enumerate(candidates):
                say("open", candidate.label, number / len(labels))
                opened.append(_open(candidate, settings))
            file = Path(folder, "drawn") if picture is None else Path(picture)
            if picture is None:
                draw_picture(file, usual_size(opened[0].segmenter.interface) or USUAL_PICTURE)
            height, width = read_image(file).shape[:2]
            settings = replace(settings, picture=f"{file.name}, {height}x{width}")
            for each in opened:
                fit = fit_size((height, width), each.segmenter.interface, each.segmenter.fit)
                each.subject = replace(each.subject, size=fit.canvas)
                say("warm up", each.subject.label, None)
                each.warm_up = _warm_up(each, [file] * each.subject.batch, settings.warm_up_s)
            interrupted = False
            try:
                held_back = _rounds(opened, file, settings, say)
                after, end = replace(machine.look(), throttled=held_back), time.perf_counter()
            except KeyboardInterrupt:
                if not _drop_unfinished_round(opened):
                    raise
                after, end, interrupted = machine.look(), time.perf_counter(), True
            try:
                if not interrupted:
                    _sweep(opened, file, settings, say)
                    _layers(opened, settings, say)
                    _energy(opened, file, settings, meter, idle, say)
            except KeyboardInterrupt:
                interrupted = True
        finally:
            for each in opened:
                each.segmenter.close()
    measurements = tuple(_measurement(each, settings) for each in opened)
    found = Profile(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        machine=machine.describe_machine(),
        versions=machine.describe_versions(),
        settings=settings,
        before=before,
        after=after,
        seconds=round(end - start, 1),
        measurements=measurements,
        ratios=tuple(_ratios(measurements, reference)),
        interrupted=interrupted,
    )
    return replace(found, warnings=find_warnings(found))


def draw_picture(path: Path, size: tuple[int, int]) -> None:
    """Writes a JPEG of patches of colour with some noise, the same every time: about as many bytes as a photograph."""
    from PIL import Image

    rng = np.random.default_rng(0)
    height, width = size
    patches = rng.integers(0, 256, (-(-height // 24), -(-width // 24), 3)).repeat(24, 0).repeat(24, 1)
    noisy = patches[:height, :width] + rng.normal(0, 6, (height, width, 3))
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path, "JPEG", quality=90)


def _by_stage(spent: dict[str, float], total: float) -> dict[str, float]:
    copies = [spent[name] for name in ("copy_in", "copy_out") if name in spent]
    found = {name: spent[name] for name in STAGES if name in spent}
    found.setdefault("engine", spent["run"])
    if copies:
        found["copy"] = sum(copies)
    return found | {"end_to_end": total, "call": total - spent["decode"]}


def _open(candidate: Candidate, settings: Settings) -> _Open:
    spent: dict[str, float] = {}

    def observe(stage: Stage, seconds: float) -> None:
        spent[stage] = spent.get(stage, 0.0) + seconds

    gc.collect()
    machine.forget_peak()
    at_first = machine.resident_mib()
    segmenter, subject = candidate.open(RuntimeOptions(threads=settings.threads, observe=observe))
    height, width = usual_size(segmenter.interface) or USUAL_PICTURE
    try:
        segmenter([np.zeros((height, width, 3), np.uint8)] * subject.batch)  # memory is set aside by the first call
    except BaseException:
        segmenter.close()
        raise
    memory = Memory()
    if at_first is not None and (now := machine.resident_mib()) is not None:
        memory = Memory(round(now[0] - at_first[0], 1), round(now[1] - at_first[0], 1))
    engine = segmenter.engine
    if isinstance(engine, HoldsDeviceMemory):
        memory = replace(memory, device_mib=round(engine.device_memory().total / 2**20, 1))
    return _Open(subject, segmenter, spent, memory)


def _warm_up(each: _Open, pictures: Sequence[Any], limit_s: float) -> WarmUp:
    """Until the medians of the last two windows agree, or the time is over. The first window always runs whole."""
    start = time.perf_counter()
    times: list[float] = []
    while True:
        times += [each.call(pictures)["call"] for _ in range(WINDOW)]
        if len(times) >= 2 * WINDOW:
            last, previous = np.median(times[-WINDOW:]), np.median(times[-2 * WINDOW : -WINDOW])
            if abs(last / previous - 1) < TOLERANCE:
                return WarmUp(len(times), round(time.perf_counter() - start, 2), True)
        if time.perf_counter() - start > limit_s:
            return WarmUp(len(times), round(time.perf_counter() - start, 2), False)


def _rounds(opened: Sequence[_Open], file: Path, settings: Settings, say: Progress) -> tuple[str, ...]:
    """Fills `calls` with whole rounds; what held the clocks back between them."""
    held_back: dict[str, None] = {}
    for number in range(settings.rounds):
        turn = number % len(opened)
        kept: list[tuple[_Open, list[dict[str, float]]]] = []
        for each in (*opened[turn:], *opened[:turn]):
            say("measure", f"round {number + 1} of {settings.rounds}, {each.subject.label}", number / settings.rounds)
            pictures = [file] * each.subject.batch
            each.call(pictures)
            kept.append((each, [each.call(pictures) for _ in range(settings.calls)]))
        for each, calls in kept:
            each.calls += calls
        held_back.update(dict.fromkeys(machine.throttled()))
    return tuple(held_back)


def _drop_unfinished_round(opened: Sequence[_Open]) -> int:
    """Leaves the calls of the rounds that all have ended, and says how many of each."""
    whole = min(len(each.calls) for each in opened)
    for each in opened:
        del each.calls[whole:]
    return whole


def _sweep(opened: Sequence[_Open], file: Path, settings: Settings, say: Progress) -> None:
    image = read_image(file)
    for each in opened:
        low, high = each.segmenter.interface.batch_limits
        for size in settings.batches:
            if size < low or (high is not None and size > high):
                continue
            say("sweep", f"{each.subject.label}, batch {size}", None)
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


def _layers(opened: Sequence[_Open], settings: Settings, say: Progress) -> None:
    for each in opened if settings.layers else ():
        engine = each.segmenter.engine
        if isinstance(engine, ProfilesLayers):
            say("layers", each.subject.label, None)
            batch = noise(each.segmenter, each.subject.size, each.subject.batch)
            try:
                each.layers = profile_layers(engine, batch, runs=LAYER_RUNS)
            except TwinsError as error:  # the latencies are worth having without
                log.warning("%s: layers were not timed: %s", each.subject.label, error.cause)


def _energy(
    opened: Sequence[_Open], file: Path, settings: Settings, meter: Meter | None, idle: float | None, say: Progress
) -> None:
    if meter is None or not settings.power_s:
        return
    for each in opened:
        say("energy", each.subject.label, None)
        pictures = [file] * each.subject.batch

        def work(each: _Open = each, pictures: Sequence[Any] = pictures) -> int:
            each.call(pictures)
            return len(pictures)

        try:
            each.energy = measure_energy(meter, work, seconds=settings.power_s, idle_watts=idle)
        except TwinsError as error:  # likewise
            log.warning("%s: %s", each.subject.label, error.cause)


def _measurement(each: _Open, settings: Settings) -> Measurement:
    def latency(name: str) -> Latency:
        return Latency.of([call[name] for call in each.calls])

    return Measurement(
        subject=each.subject,
        warm_up=each.warm_up,
        end_to_end=latency("end_to_end"),
        call=latency("call"),
        stages={name: latency(name) for name in STAGES if name in each.calls[0]},
        calls_per_round=settings.calls,
        batches=tuple(each.batches),
        layers=each.layers,
        memory=each.memory,
        energy=each.energy,
    )


def _ratios(measurements: Sequence[Measurement], baseline: str) -> list[Ratio]:
    """Of each but the baseline: per picture, from the encoded picture to the mask, and of the engine alone."""
    theirs = next(m for m in measurements if m.subject.label == baseline)
    found = []
    for ours in measurements:
        for of in COMPARED if ours is not theirs else ():
            rounds = ours.rounds(of)
            value, low, high = ratio_of_medians(rounds, theirs.rounds(of))
            found.append(Ratio(ours.subject.label, baseline, of, value, low, high, len(rounds)))
    return found

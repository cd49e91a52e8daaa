"""The content of `speed.json`: whether a bundle is faster than another on a device, and all that this follows from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from twins_trt.codec import decode, encode
from twins_trt.errors import ProfileError
from twins_trt.profiling.results import (
    Compared,
    Conditions,
    Latency,
    Machine,
    Measurement,
    Profile,
    ProfileOptions,
    Ratio,
    Settling,
    WarmUp,
)
from twins_trt.profiling.tables import ms
from twins_trt.runtime.bundle import Bundle
from twins_trt.runtime.judged import engine_gone
from twins_trt.runtime.manifest import EngineFile, Manifest

FORMAT_VERSION = 1
SPEED = "speed.json"

DECIDES: Compared = "call"
"""What the verdict goes by: a picture in memory to its mask on the host, which is what a user of a camera waits for.

Not the engine alone, because a stage is timed in calls that wait for each stage. Not from the file: decoding it is the
same work for both, so it would only hide their difference.
"""


@dataclass(frozen=True)
class Summary:
    """Times of one bundle, milliseconds. rounds: the median of every round. Others as in `Latency`, over all calls."""

    calls: int
    mean: float
    p50: float
    p90: float | None
    p95: float | None
    p99: float | None
    jitter: float | None
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, latency: Latency, calls_per_round: int) -> Summary:
        """Summarizes the calls of whole rounds."""
        samples, each = latency.samples, calls_per_round
        rounds = tuple(round(median(samples[i : i + each]), 4) for i in range(0, len(samples), each))
        quantiles = (latency.p50, latency.p90, latency.p95, latency.p99, latency.jitter)
        return cls(len(samples), latency.mean, *quantiles, rounds)


@dataclass(frozen=True)
class TimedBundle:
    """One of the two bundles.

    name: of its folder. precision, gate: its manifest's. graph_sha256: of its graph. engine: what ran it, a kind of
    `runtime.engines.KINDS`. file, file_sha256: the serialized engine that ran; None where the graph itself ran.
    engines: sha256 of all its serialized engines, by file. times: of `call`, `end_to_end` and `engine`.
    """

    name: str
    precision: str
    gate: str
    graph_sha256: str
    engine: str
    file: str | None
    file_sha256: str | None
    engines: Mapping[str, str]
    warm_up: WarmUp
    times: Mapping[str, Summary]

    @classmethod
    def of(cls, bundle: Bundle, measurement: Measurement, *, name: str, file: str | None) -> TimedBundle:
        """name: that the verdict has for it. file: the serialized engine that ran."""
        manifest = bundle.manifest
        digests = _digests(manifest)
        whole, engine = measurement.end_to_end, measurement.stages["engine"]
        latencies = {"call": measurement.call, "end_to_end": whole, "engine": engine}
        return cls(
            name=name,
            precision=manifest.precision,
            gate=manifest.gate,
            graph_sha256=manifest.graph_sha256,
            engine=measurement.subject.engine,
            file=file,
            file_sha256=None if file is None else digests[file],
            engines={each.file: digests[each.file] for each in manifest.engines},
            warm_up=measurement.warm_up,
            times={name: Summary.of(each, measurement.calls_per_round) for name, each in latencies.items()},
        )


@dataclass(frozen=True)
class SpeedVerdict:
    """Whether `ours` is faster than `theirs`, with everything that it follows from.

    reasons: why it failed; empty if it passed. ship: the name of the bundle to ship, None while neither has passed its
    accuracy gate. advice: the same in words, with what to do next. min_speedup: what the lower end of the interval has
    to exceed. ratios: how many times as fast `ours` is, of `call`, which decides, then `end_to_end` and `engine`.
    simulated: a CPU ran the graphs in place of engines, so this says nothing of the device.
    measured_on: the device, in words. versions: of the packages, and of the GPU's driver. before, during, after,
    settled, warnings: as in `Profile`. created: ISO 8601 with a zone.
    """

    passed: bool
    reasons: tuple[str, ...]
    ship: str | None
    advice: str
    min_speedup: float
    ratios: tuple[Ratio, ...]
    simulated: bool
    ours: TimedBundle
    theirs: TimedBundle
    measured_on: str
    machine: Machine
    versions: Mapping[str, str]
    options: ProfileOptions
    before: Conditions
    during: tuple[Conditions, ...]
    after: Conditions
    settled: Settling | None
    warnings: tuple[str, ...]
    created: str
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(
        cls,
        measured: Profile,
        sides: tuple[TimedBundle, TimedBundle],
        *,
        ratios: tuple[Ratio, ...],
        min_speedup: float,
        reasons: tuple[str, ...],
        simulated: bool,
        ship: str | None,
        advice: str,
    ) -> SpeedVerdict:
        """The verdict on the two bundles of a profile, `ours` first. It passed if there are no reasons against it."""
        ours, theirs = sides
        warnings = measured.warnings
        if measured.settled is None:
            warnings += ("nothing waited for steady clocks: the warm-up was given no time",)
        return cls(
            passed=not reasons,
            reasons=reasons,
            ship=ship,
            advice=advice,
            min_speedup=min_speedup,
            ratios=ratios,
            simulated=simulated,
            ours=ours,
            theirs=theirs,
            measured_on=measured.of(ours.name).subject.measured_on,
            machine=measured.machine,
            versions=measured.versions,
            options=measured.settings,
            before=measured.before,
            during=measured.during,
            after=measured.after,
            settled=measured.settled,
            warnings=warnings,
            created=measured.created,
        )

    @property
    def ratio(self) -> Ratio:
        """The ratio that decides."""
        return self.ratios[0]

    @property
    def power_mode(self) -> str | None:
        """nvpmodel of a Jetson, power limit of a GPU; None where neither can be read."""
        return self.after.power_mode or self.before.power_mode

    def to_json(self) -> dict[str, Any]:
        """Plain values for `speed.json`."""
        plain: dict[str, Any] = encode(self)
        return {"format_version": plain.pop("format_version"), **plain}

    @classmethod
    def from_json(cls, values: Any) -> SpeedVerdict:
        """The inverse of `to_json`. Raises ProfileError with the field that is missing, unknown, mistyped or newer."""
        version = values.get("format_version") if isinstance(values, dict) else None
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise ProfileError(
                f"{SPEED}: format_version is {version!r}, this twins-trt reads {FORMAT_VERSION}",
                "time the bundles again, or: pip install --upgrade twins-trt",
            )
        try:
            return decode(cls, values)
        except ValueError as error:
            raise ProfileError(f"{SPEED}: {error}", "time the bundles again") from error

    def table(self) -> str:
        """The verdict in a few lines for a terminal."""
        ours, theirs, ratio = self.ours, self.theirs, self.ratio
        stands_in = " standing in for the engines" if self.simulated else ""
        lines = [
            f"speed         {'passed' if self.passed else 'FAILED'}: {ours.name} against {theirs.name}",
            f"measured on   {self.measured_on}, {_kinds(ours, theirs)}{stands_in}",
            f"times as fast {times_as_fast(ratio)} in {ratio.rounds} rounds, to exceed {self.min_speedup:g}",
            f"latency       {_times(ours)}",
            f"              {_times(theirs)}",
        ]
        lines += [f"{name:<14}{text}" for name, text in state_rows(self)]
        lines += [f"note          {each}" for each in self.warnings]
        lines += [f"reason        {each}" for each in self.reasons]
        return "\n".join([*lines, f"advice        {self.advice}"])


def dump_speed(found: SpeedVerdict) -> bytes:
    """The bytes of `speed.json`."""
    return (json.dumps(found.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def read_speed(bundle: Bundle) -> SpeedVerdict | None:
    """The speed verdict in a bundle; None if it has none. Raises ProfileError as `from_json`, and BundleError."""
    values = bundle.read_json(SPEED)
    return None if values is None else SpeedVerdict.from_json(values)


def outdated(found: SpeedVerdict, manifest: Manifest, *, runs: EngineFile | None = None) -> str | None:
    """Why a speed verdict does not hold for the bundle any longer, or None if it does.

    It holds as long as the graph and the engine that ran are the same. Engines that were added for other GPUs do not
    matter. An engine that was compiled where only the graph had run does. runs: as in `engine_gone`.
    """
    ours = found.ours
    gone = engine_gone(
        manifest, graph_sha256=ours.graph_sha256, file=ours.file, file_sha256=ours.file_sha256, runs=runs
    )
    if gone is not None or ours.file is not None:
        return gone
    added = [each.file for each in manifest.engines if each.file not in ours.engines]
    return f"{added[0]} was compiled since, and was not timed" if added else None


def in_short(found: SpeedVerdict, manifest: Manifest, *, runs: EngineFile | None = None) -> str:
    """The verdict in one line, beginning with whether it still holds. runs: as in `engine_gone`."""
    stale, count = outdated(found, manifest, runs=runs), len(found.warnings)
    words = [
        f"{'passed' if found.passed else 'failed'}: {times_as_fast(found.ratio)} times as fast as {found.theirs.name}",
        f"on {found.measured_on}{'' if found.power_mode is None else f', {found.power_mode}'}",
        *(["simulated"] if found.simulated else []),
        *([f"{count} warning{'s' if count > 1 else ''}"] if count else []),
    ]
    return f"{'' if stale is None else f'counts no more ({stale}), was '}{', '.join(words)}"


def state_rows(found: SpeedVerdict) -> Iterator[tuple[str, str]]:
    """Power mode, driver, clocks and temperatures, each with its name; nothing for what could not be read."""
    if found.power_mode is not None:
        yield "power mode", found.power_mode
    versions = [f"{name} {found.versions[name]}" for name in ("driver", "l4t", "tensorrt") if name in found.versions]
    if versions:
        yield "versions", ", ".join(versions)
    states = found.during or (found.after,)
    clocks = [_clock(states, name) for name in ("gpu", "memory")]
    if shown := [each for each in clocks if each]:
        yield "clocks", ", ".join(shown)
    heat = {name: max(s.temperatures_c[name] for s in states if name in s.temperatures_c) for name in _sensors(states)}
    if heat:
        hottest = max(heat, key=lambda name: heat[name])
        yield "temperature", f"{heat[hottest]:.0f} °C at most ({hottest})"


def times_as_fast(ratio: Ratio) -> str:
    """The ratio and its interval, as in `1.034 (1.001 to 1.062)`: with enough digits to see on which side of 1."""
    interval = "" if ratio.low is None or ratio.high is None else f" ({ratio.low:.3f} to {ratio.high:.3f})"
    return f"{ratio.value:.3f}{interval}"


def _clock(states: Sequence[Conditions], name: str) -> str:
    """`gpu 612 to 918 of 918 MHz`, at work; empty where it could not be read."""
    seen = [state.clocks_mhz[name] for state in states if name in state.clocks_mhz]
    tops = [state.clocks_mhz[f"{name}_max"] for state in states if f"{name}_max" in state.clocks_mhz]
    if not seen:
        return ""
    low, high = min(seen), max(seen)
    span = f"{high:.0f}" if low == high else f"{low:.0f} to {high:.0f}"
    return f"{name} {span}{f' of {max(tops):.0f}' if tops else ''} MHz"


def _sensors(states: Sequence[Conditions]) -> list[str]:
    return list(dict.fromkeys(name for state in states for name in state.temperatures_c))


def _kinds(*sides: TimedBundle) -> str:
    return " and ".join(dict.fromkeys(side.engine for side in sides))


def _times(side: TimedBundle) -> str:
    call, engine = side.times["call"], side.times["engine"]
    late = "" if call.p99 is None else f", p99 {ms(call.p99)} ms"
    return f"{side.name} ({side.precision}) {ms(call.p50)} ms from picture to mask{late}, engine {ms(engine.p50)} ms"


def _digests(manifest: Manifest) -> dict[str, str]:
    return {entry.path: entry.sha256 for entry in manifest.files}

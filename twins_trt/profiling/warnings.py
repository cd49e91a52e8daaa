"""Warnings: what makes the figures of a profile less reliable than they look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from twins_trt.profiling.machine import STOLEN
from twins_trt.profiling.results import Measurement, Profile

BUSY = 0.1  # share of the cores' time that others used before the run
STEAL = 0.01  # share of the cores' time that a hypervisor took
FALLEN = 0.9  # of the clock before the run; under load it should rise
UNEVEN = 0.15  # jitter as a share of the median
SLOW = 0.9  # of a clock's maximum, while it works
DRIFT = 0.05  # of the latency, from the first third of the rounds to the last
DRIFT_ROUNDS = 6  # fewer say more of single hiccups than of a drift


def find_warnings(profile: Profile) -> tuple[str, ...]:
    """The warnings of a profile, one sentence each."""
    warnings = [*_of_machine(profile)]
    for measurement in profile.measurements:
        warnings += _of_measurement(measurement)
    sizes = sorted({"x".join(map(str, m.subject.size)) for m in profile.measurements})
    if len(sizes) > 1:
        warnings.append(f"the candidates work at different sizes: {', '.join(sizes)}")
    if profile.interrupted:
        warnings.append("interrupted: there are fewer rounds than requested, and what comes after them is missing")
    return tuple(warnings)


def _of_machine(profile: Profile) -> Iterator[str]:
    before, after, cores = profile.before, profile.after, profile.machine.cores
    if before.busy is not None and before.busy > BUSY:
        yield f"the machine was busy before the run: {100 * before.busy:.0f} % of {cores} cores"
    if held := dict.fromkeys((*before.throttled, *after.throttled)):
        yield f"clocks were held back: {', '.join(held)}"
    for name, count in after.events.items():
        grown = count - before.events.get(name, count)
        if name == STOLEN:
            share = grown / 1e3 / (profile.seconds * cores) if profile.seconds else 0.0
            if share > STEAL:
                yield f"the hypervisor took {100 * share:.0f} % of the processor time"
        elif grown > 0:
            yield f"{name}: {grown} more at the end of the run"
    for name, clock in after.clocks_mhz.items():
        if clock < FALLEN * before.clocks_mhz.get(name, 0.0):
            yield f"the {name} clock fell from {before.clocks_mhz[name]:.0f} to {clock:.0f} MHz"
    if before.power_mode != after.power_mode:
        yield f"the power mode changed from {before.power_mode} to {after.power_mode}"
    yield from _under_load(profile)
    if profile.settled is not None and not profile.settled.steady:
        yield f"clocks and latencies were not steady after {profile.settled.seconds:.0f} s of warm-up"


def _under_load(profile: Profile) -> Iterator[str]:
    """Clocks of a GPU that worked below their maximum, and temperatures at their limit, in the middle of the work."""
    hint = "; sudo jetson_clocks holds it there" if profile.machine.board else ""
    works = any(m.subject.measured_on != profile.machine.processor for m in profile.measurements)
    for name in ("gpu", "memory") if works else ():
        seen = [state.clocks_mhz for state in profile.during if {name, f"{name}_max"} <= set(state.clocks_mhz)]
        if seen and (low := min(each[name] for each in seen)) < SLOW * (top := max(e[f"{name}_max"] for e in seen)):
            yield f"the {name} clock was down to {low:.0f} MHz at work, its maximum is {top:.0f} MHz{hint}"
    heat: dict[str, tuple[float, float]] = {}
    for state in (profile.before, *profile.during, profile.after):
        for name, limit in state.limits_c.items():
            degrees = state.temperatures_c.get(name)
            if degrees is not None and degrees >= limit:
                heat[name] = max(heat.get(name, (degrees, limit)), (degrees, limit))
    for name, (degrees, limit) in heat.items():
        yield f"{name} reached {degrees:.0f} °C, and is slowed down from {limit:.0f} °C on"


def _of_measurement(measurement: Measurement) -> Iterator[str]:
    label, call = measurement.subject.label, measurement.call
    if measurement.subject.simulated:
        yield f"{label}: {measurement.subject.engine} stands in for the engines in it, which need their GPU"
    if not measurement.warm_up.stable:
        yield f"{label}: still changing after {measurement.warm_up.seconds:.0f} s of warm-up"
    drift = drift_of([median(calls) for calls in measurement.rounds("call")])
    if drift is not None and abs(drift) > DRIFT:
        yield f"{label}: calls became {100 * abs(drift):.0f} % {'slower' if drift > 0 else 'faster'} over the rounds"
    if call.jitter is not None and call.jitter > UNEVEN * call.p50:
        yield f"{label}: calls are uneven, neighbours differ by {100 * call.jitter / call.p50:.0f} % on average"


def drift_of(rounds: Sequence[float]) -> float | None:
    """By what share the last third of the rounds is slower than the first; None for too few rounds.

    rounds: of each the median of its calls.
    """
    if len(rounds) < DRIFT_ROUNDS:
        return None
    third = len(rounds) // 3
    return median(rounds[-third:]) / median(rounds[:third]) - 1

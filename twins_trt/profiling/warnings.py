"""Warnings: what makes the figures of a profile less reliable than they look."""

from __future__ import annotations

from collections.abc import Iterator

from twins_trt.profiling.machine import STOLEN
from twins_trt.profiling.results import Measurement, Profile

BUSY = 0.1  # share of the cores' time that others used before the run
STEAL = 0.01  # share of the cores' time that a hypervisor took
FALLEN = 0.9  # of the clock before the run; under load it should rise
UNEVEN = 0.15  # jitter as a share of the median


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


def _of_measurement(measurement: Measurement) -> Iterator[str]:
    label, call = measurement.subject.label, measurement.call
    if measurement.subject.simulated:
        yield f"{label}: {measurement.subject.engine} stands in for the engines in it, which need their GPU"
    if not measurement.warm_up.stable:
        yield f"{label}: still changing after {measurement.warm_up.seconds:.0f} s of warm-up"
    if call.jitter is not None and call.jitter > UNEVEN * call.p50:
        yield f"{label}: calls are uneven, neighbours differ by {100 * call.jitter / call.p50:.0f} % on average"

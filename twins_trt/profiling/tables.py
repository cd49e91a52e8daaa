"""A profile as tables of text, for a terminal and for Markdown. The first row is the head."""

from __future__ import annotations

from twins_trt.profiling.compare import Change
from twins_trt.profiling.results import STAGES, Measurement, Profile, Ratio

Rows = list[tuple[str, ...]]
_SLOWEST = 12


def latencies(profile: Profile) -> Rows:
    """One row a candidate, in milliseconds: end to end with its quantiles, the engine's median, and the ratio to the
    baseline. Cells without a figure are empty."""
    rows: Rows = [("", "engine", "precision", "p50", "p90", "p95", "p99", "jitter", "engine p50", "times as fast")]
    for m in profile.measurements:
        latency = m.end_to_end
        quantiles = (latency.p50, latency.p90, latency.p95, latency.p99, latency.jitter, m.stages["engine"].p50)
        fast = speed_up(_ratio(profile, m, "end_to_end"))
        rows.append((m.subject.label, m.subject.engine, m.subject.precision or "", *map(ms, quantiles), fast))
    return without_empty_columns(rows)


def stages(profile: Profile) -> Rows:
    """One row a candidate: the median of every stage in milliseconds, the call in which stages are timed and one in
    which nothing is, and the share that the former adds to its engine. A file from before there were two has one."""
    rows: Rows = [("", *STAGES, "observed call", "call", "beside the engine")]
    for m in profile.measurements:
        medians = (m.stages[name].p50 if name in m.stages else None for name in STAGES)
        calls = (None if m.observed_call is None else m.observed_call.p50, m.call.p50)
        rows.append((m.subject.label, *map(ms, medians), *map(ms, calls), f"{100 * m.overhead:.1f} %"))
    return without_empty_columns(rows)


def throughput(profile: Profile) -> Rows:
    """Pictures a second by batch size. Cells are empty where a graph does not take a batch; no rows without a sweep."""
    sizes = sorted({batch.size for m in profile.measurements for batch in m.batches})
    if not sizes:
        return []
    rows: Rows = [("images/s at batch", *map(str, sizes))]
    for m in profile.measurements:
        speeds = {batch.size: f"{batch.images_per_second:.1f}" for batch in m.batches}
        rows.append((m.subject.label, *(speeds.get(size, "") for size in sizes)))
    return rows


def resources(profile: Profile) -> Rows:
    """Memory and energy, without the columns that hold no figure; no rows where no column does."""
    rows: Rows = [("", "host MiB", "host peak MiB", "device MiB", "W", "idle W", "J/image")]
    for m in profile.measurements:
        memory = (_whole(m.memory.host_mib), _whole(m.memory.host_peak_mib), _whole(m.memory.device_mib))
        energy = ("", "", "")
        if m.energy is not None:
            energy = (ms(m.energy.watts), ms(m.energy.idle_watts), f"{m.energy.joules_per_image:.3f}")
        rows.append((m.subject.label, *memory, *energy))
    rows = without_empty_columns(rows)
    return rows if len(rows[0]) > 1 else []


def blocks(measurement: Measurement) -> Rows:
    """The slowest model blocks with their share of the time of all layers; no rows where no layer has a block."""
    milliseconds = measurement.blocks()
    total = sum(milliseconds.values())
    if not total or set(milliseconds) == {"other"}:
        return []
    shown = list(milliseconds.items())[:_SLOWEST]
    rows: Rows = [("block", "ms", "share")]
    rows += [(name, ms(spent), f"{100 * spent / total:.1f} %") for name, spent in shown]
    if others := list(milliseconds.values())[_SLOWEST:]:
        rows.append((f"{len(others)} more", ms(sum(others)), f"{100 * sum(others) / total:.1f} %"))
    return rows


def speed_up(ratio: Ratio | Change | None) -> str:
    """The ratio and its interval, as in `1.23 (1.20 to 1.26)`; `1` for the baseline itself."""
    if ratio is None:
        return "1"
    interval = "" if ratio.low is None or ratio.high is None else f" ({ratio.low:.2f} to {ratio.high:.2f})"
    return f"{ratio.value:.2f}{interval}"


def ms(value: float | None) -> str:
    """Three significant digits, as in `123`, `12.3`, `1.23`; empty for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def without_empty_columns(rows: Rows) -> Rows:
    """The same without the columns that are empty in every row but the head."""
    kept = [i for i in range(len(rows[0])) if i == 0 or any(row[i] for row in rows[1:])]
    return [tuple(row[i] for i in kept) for row in rows]


def _ratio(profile: Profile, measurement: Measurement, of: str) -> Ratio | None:
    label = measurement.subject.label
    return next((ratio for ratio in profile.ratios if ratio.label == label and ratio.of == of), None)


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"

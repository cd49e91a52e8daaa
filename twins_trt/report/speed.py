"""The sections on time: the latency of everything that was measured, and each block under the roof of its device."""

from __future__ import annotations

from twins_trt.profiling.results import Latency, Measurement, Profile
from twins_trt.profiling.speed import SpeedVerdict, outdated, state_rows, times_as_fast
from twins_trt.report.blocks import (
    Block,
    Cell,
    Chart,
    Code,
    Column,
    Facts,
    Note,
    Section,
    Table,
    number,
    text,
    without_empty,
)
from twins_trt.report.charts import Spread, Work, distribution, roofline
from twins_trt.report.inputs import Inputs
from twins_trt.report.roofline import BlockWork, Ceilings, block_work, find_ceilings
from twins_trt.runtime.engines import CPU_KINDS
from twins_trt.runtime.manifest import GRAPH
from twins_trt.runtime.tensorrt.selection import engine_here

_QUANTILES = ("p50", "p90", "p95", "p99")


def speed_section(inputs: Inputs) -> list[Section]:
    """The verdict on its speed beside another bundle; no section for a bundle without one."""
    found = inputs.speed
    if found is None:
        return []
    stale = outdated(found, inputs.bundle.manifest, runs=engine_here(inputs.bundle))
    blocks: list[Block] = []
    if stale is not None:
        again = f"twins-trt gate {inputs.bundle.path} --against OTHER.bundle"
        blocks += [Note(f"This verdict counts no more: {stale}. Time them again:", "bad"), Code(again)]
    blocks.append(Note("Passed.", "good") if found.passed else Note("Failed.", "bad"))
    blocks += [Note(f"{reason}.", "bad") for reason in found.reasons]  # begins with a bundle's name
    if found.simulated:
        blocks.append(Note(f"Simulated: {found.ours.engine} stood in for the engines, so it is about a CPU.", "warn"))
    blocks += [Note(f"{warning}.", "warn") for warning in found.warnings]
    facts = (
        ("Compared with", found.theirs.name),
        ("Times as fast", f"{times_as_fast(found.ratio)}, in {found.ratio.rounds} rounds"),
        ("Asked for", f"more than {found.min_speedup:g}, for the interval's lower end"),
        ("Advice", found.advice),
        ("Measured on", found.measured_on),
        ("When", found.created),
        *((name.capitalize(), value) for name, value in state_rows(found)),
    )
    return [Section("speed", "Speed verdict", (*blocks, Facts(facts), _pair(found)))]


def latency_section(inputs: Inputs) -> Section:
    """Latencies with their distribution, stages, batches and ratios, profile by profile."""
    if not inputs.profiles:
        note = "No profile was given. It is measured on the device that the bundle is for: twins-trt profile."
        return Section("latency", "Latency", (Note(note),))
    blocks: list[Block] = []
    for name, profile in inputs.profiles:
        machine = profile.machine
        where = machine.gpu or machine.board or machine.processor
        blocks.append(Facts((("Profile", name), ("Measured on", where), ("When", profile.created))))
        blocks += [Note(f"{warning[:1].upper()}{warning[1:]}", "warn") for warning in profile.warnings]
        if profile.interrupted:
            blocks.append(Note("Interrupted: only whole rounds are in here.", "warn"))
        blocks += [
            _distribution(profile),
            _latencies(profile),
            *_stages(profile),
            *_batches(profile),
            *_ratios(profile),
        ]
    return Section("latency", "Latency", tuple(blocks))


def blocks_section(inputs: Inputs) -> Section:
    """The time of each block of this bundle's graph, and the roof of the device if it is known."""
    title = "Blocks and roofline"
    own = inputs.own
    if own is None or not own[1].layers:
        gap = "No profile of this bundle was given" if own is None else "The profile timed no layers"
        return Section("blocks", title, (Note(f"{gap}, so there are no times of blocks."),))
    profile, measurement = own
    machine, subject = profile.machine, measurement.subject
    on_cpu = subject.engine in CPU_KINDS or subject.measured_on == machine.processor
    device = None if on_cpu else machine.gpu or machine.board
    ceilings = find_ceilings(device)
    works, why = None, "The graph did not travel with the bundle, so its operations were not counted."
    try:
        if GRAPH in inputs.bundle.files:
            works = block_work(inputs.bundle.graph)
            why = "The graph has a dynamic size, so its blocks have no fixed number of operations."
    except ImportError:
        works, why = None, "onnx is not installed, so operations were not counted: pip install 'twins-trt[build]'."
    blocks: list[Block] = [] if works else [Note(why)]
    if works and ceilings is None:
        gap = f"The ceilings of {device} are not known" if device else "Ceilings of this CPU were not measured"
        blocks.append(Note(f"{gap}, so there is no roofline; the speeds are counted operations over measured time."))
    elif works and ceilings:
        blocks += _roof(measurement, works, ceilings, inputs.bundle.manifest.precision)
    return Section("blocks", title, (*blocks, _block_table(measurement, works or {})))


def _pair(found: SpeedVerdict) -> Table:
    columns = (
        Column("Bundle"),
        Column("Precision"),
        Column("Engine"),
        Column("Picture to mask, ms", numeric=True),
        Column("p99, ms", numeric=True),
        Column("Engine, ms", numeric=True),
        Column("File to mask, ms", numeric=True),
    )
    rows = []
    for each in (found.ours, found.theirs):
        call, engine, whole = (each.times[name] for name in ("call", "engine", "end_to_end"))
        times = map(number, (call.p50, call.p99, engine.p50, whole.p50))
        rows.append((text(each.name), text(each.precision), text(each.file or each.engine), *times))
    return without_empty(Table("Both bundles, timed in turn, medians", columns, tuple(rows)))


def _distribution(profile: Profile) -> Chart:
    rows = []
    for measurement in profile.measurements:
        quantiles = [(name, getattr(measurement.call, name)) for name in ("p50", "p99")]
        marks = [(name, value) for name, value in quantiles if value is not None]
        rows.append(Spread(measurement.subject.label, measurement.call.samples, marks))
    title = "Latency of single calls: a picture in memory to its mask"
    return Chart(distribution(rows, unit="ms"), title, "A dot is a call; the axis is logarithmic.")


def _latencies(profile: Profile) -> Table:
    columns = (
        Column("What"),
        Column("Engine"),
        *(Column(f"{name}, ms", numeric=True) for name in _QUANTILES),
        Column("Jitter, ms", numeric=True),
        Column("File to mask, ms", numeric=True),
        Column("Images/s", numeric=True),
        Column("Host, MiB", numeric=True),
        Column("Device, MiB", numeric=True),
        Column("J/image", numeric=True),
        Column("Simulated"),
    )
    rows = []
    for each in profile.measurements:
        batches = [batch.images_per_second for batch in each.batches]
        energy = each.energy
        rows.append(
            (
                text(each.subject.label),
                text(each.subject.engine),
                *(number(getattr(each.call, name)) for name in _QUANTILES),
                number(each.call.jitter),
                number(each.end_to_end.p50),
                number(max(batches) if batches else None, 1),
                number(each.memory.host_mib, 0),
                number(each.memory.device_mib, 0),
                number(None if energy is None else energy.joules_per_image, 3),
                text("yes" if each.subject.simulated else "no", mood="warn" if each.subject.simulated else "plain"),
            )
        )
    caption = "Latency of a call, throughput of the best batch at its median, memory and energy"
    return without_empty(Table(caption, columns, tuple(rows)))


def _stages(profile: Profile) -> list[Table]:
    names = list(dict.fromkeys(stage for each in profile.measurements for stage in each.stages))
    if not names:
        return []
    columns = (Column("What"), *(Column(f"{name}, ms", numeric=True) for name in names))

    slowest = max(stage.p50 for each in profile.measurements for stage in each.stages.values())

    def cell(stage: Latency | None) -> Cell:
        return number(None) if stage is None else number(stage.p50, 3, share=stage.p50 / slowest)

    rows = tuple(
        (text(each.subject.label), *(cell(each.stages.get(name)) for name in names)) for each in profile.measurements
    )
    return [Table("Where an observed call spends its time, medians", columns, rows)]


def _batches(profile: Profile) -> list[Table]:
    rows = tuple(
        (
            text(each.subject.label),
            number(batch.size, 0),
            number(batch.latency.p50),
            number(batch.images_per_second, 1),
        )
        for each in profile.measurements
        for batch in each.batches
    )
    columns = (
        Column("What"),
        Column("Batch", numeric=True),
        Column("p50, ms", numeric=True),
        Column("Images/s", numeric=True),
    )
    return [Table("Throughput by batch", columns, rows)] if rows else []


def _ratios(profile: Profile) -> list[Table]:
    rows = []
    for ratio in profile.ratios:
        certain = ratio.low is not None and ratio.high is not None
        interval = f"{ratio.low:.2f} to {ratio.high:.2f}" if certain else ""
        row = (text(ratio.label), text(ratio.baseline), text(ratio.of.replace("_", " ")))
        rows.append((*row, number(ratio.value), text(interval)))
    columns = (
        Column("What"),
        Column("Compared with"),
        Column("Of"),
        Column("Times as fast", numeric=True),
        Column("95 % interval", numeric=True),
    )
    return [Table("Paired comparison: both ran in turn, round by round", columns, tuple(rows))] if rows else []


def _roof(measurement: Measurement, works: dict[str, BlockWork], ceilings: Ceilings, precision: str) -> list[Block]:
    peaks = {"fp16": ceilings.float16, "int8": ceilings.int8}
    if precision not in peaks:
        return []
    peak = 1e3 * peaks[precision]
    dots = [
        Work(block, work.flops / work.nbytes, work.flops / (1e6 * milliseconds))
        for block, milliseconds in measurement.blocks().items()
        if milliseconds > 0 and (work := works.get(block)) and work.flops and work.nbytes
    ]
    if not dots:
        return []
    title = f"Blocks under the roof of {ceilings.name}"
    note = (
        f"{peak / 1e3:g} TOP/s dense and {ceilings.gb_s:g} GB/s ({ceilings.source}). FLOP per byte counts the "
        "least that a block has to move: its input, output and weights."
    )
    if precision == "int8":
        note += f" Blocks that stay FP16 have {ceilings.float16:g} TOP/s."
    return [Chart(roofline(dots, peak=peak, bandwidth=ceilings.gb_s), title, note)]


def _block_table(measurement: Measurement, works: dict[str, BlockWork]) -> Table:
    times = measurement.blocks()
    total, slowest = sum(times.values()), max(times.values())
    rows = []
    for block, milliseconds in times.items():
        work = works.get(block)
        speed = work.flops / (1e6 * milliseconds) if work and work.flops and milliseconds > 0 else None
        rows.append(
            (
                text(block),
                number(milliseconds, 3, share=milliseconds / slowest if slowest else None),
                number(100 * milliseconds / total if total else None, 1),
                number(work.flops / 1e6 if work else None, 1),
                number(work.nbytes / 1e6 if work else None, 2),
                number(speed, 1),
            )
        )
    columns = (
        Column("Block"),
        Column("Time, ms", numeric=True),
        Column("Share, %", numeric=True),
        Column("MFLOP", numeric=True),
        Column("Least MB moved", numeric=True),
        Column("GFLOP/s", numeric=True),
    )
    engine = measurement.subject.engine
    return Table(f"Blocks as {engine} ran them, the slowest first", columns, tuple(rows))

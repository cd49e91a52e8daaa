"""The sections on accuracy: the gate with every class, the worst images, and the ladder of precisions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from twins_trt.report.blocks import (
    Block,
    Cell,
    Chart,
    Code,
    Column,
    Facts,
    Mood,
    Note,
    Panel,
    Pictures,
    Section,
    Table,
    number,
    signed_range,
    text,
    without_empty,
)
from twins_trt.report.charts import Interval, intervals
from twins_trt.report.inputs import Inputs, pick, pick_list, pick_number, pick_text
from twins_trt.runtime.judged import gate_outdated, grounds_of, judge_again
from twins_trt.spelling import spelled

PANELS = ("Image", "Label", "Reference", "This bundle", "Where they differ")
_PANEL_WIDTH = 480  # pixels, at most
_JPEG_QUALITY = 82


def gate_section(inputs: Inputs) -> Section:
    """Whether the gate passed and why, the interval of the drop, and every class."""
    gate = inputs.gate
    if gate is None:
        hint = f"twins-trt gate {inputs.bundle.path} --data KIND:PATH --checkpoint FILE"
        note = Note("This bundle has not been judged: it is ungated.", "warn")
        return Section("gate", "Gate", (note, Code(hint)))
    bound = pick_number(gate, "thresholds", "max_drop")
    blocks: list[Block] = []
    if (stale := gate_outdated(inputs.bundle)) is not None:
        blocks.append(Note(f"This verdict counts no more: {stale}. Judge it again, on the device:", "bad"))
        blocks.append(Code(judge_again(inputs.bundle)))
    blocks += [*_outcome(gate), _gate_facts(gate, bound), *_drop_chart(gate, bound), *_class_table(gate)]
    return Section("gate", "Gate", tuple(blocks))


def ladder_section(inputs: Inputs) -> Section:
    """Accuracy, size, kernels and time of each precision."""
    if not inputs.ladder:
        note = "No ladder of precisions was given. It compares fp32, fp16 and the INT8 levels on the same images."
        return Section("ladder", "Precisions", (Note(note),))
    columns = (
        Column("Precision"),
        Column("mIoU", numeric=True),
        Column("Drop, points", numeric=True),
        Column("95 % interval", numeric=True),
        Column("Engine, MB", numeric=True),
        Column("Kernels", numeric=True),
        Column("Fused attentions", numeric=True),
        Column("CPU, ms", numeric=True),
    )
    rows = tuple(map(_ladder_row, inputs.ladder))
    table = without_empty(Table("Every precision on the same images", columns, rows))
    whiskers = [whisker for rung in inputs.ladder if (whisker := _ladder_whisker(rung)) is not None]
    if not whiskers:
        return Section("ladder", "Precisions", (table,))
    title = "mIoU lost against the PyTorch float32 model, with its 95 % interval"
    chart = Chart(intervals(whiskers, unit="points"), title, "Left of 0 is better than the reference.")
    return Section("ladder", "Precisions", (chart, table))


def worst_section(inputs: Inputs) -> Section:
    """The images on which engine and reference agree least."""
    worst = pick_list(inputs.gate, "worst")
    if not worst and not inputs.pictures:
        return Section("worst", "Worst images", (Note("Without a gate there is no image to compare."),))
    blocks: list[Block] = []
    if worst:
        columns = (Column("Image"), Column("Equal pixels, %", numeric=True), Column("mIoU lost, points", numeric=True))
        rows = tuple(
            (
                text(pick_text(each, "name")),
                number(_times(100, pick_number(each, "agreement")), 3),
                number(pick_number(each, "drop"), signed=True),
            )
            for each in worst
        )
        blocks.append(Table("Where bundle and reference agree least", columns, rows))
    if not inputs.pictures:
        hint = f"twins-trt gate {inputs.bundle.path} --data KIND:PATH --checkpoint FILE --pictures DIR"
        return Section("worst", "Worst images", (*blocks, Note("For pictures of them, let the gate draw:"), Code(hint)))
    scores = {pick_text(each, "name"): pick_number(each, "agreement") for each in worst}
    for path in inputs.pictures:
        agreement = scores.get(path.stem)
        score = "" if agreement is None else f", {100 * agreement:.2f} % of the pixels equal"
        blocks.append(Pictures(f"{path.stem}{score}", _panels(path)))
    return Section("worst", "Worst images", tuple(blocks))


def _outcome(gate: Any) -> list[Note]:
    """Whether the gate passed, why it did not, and what limits its result."""
    notes = [Note("Passed.", "good") if _passed(gate) else Note("Failed.", "bad")]
    notes += [Note(f"{str(reason)[:1].upper()}{str(reason)[1:]}.", "bad") for reason in pick_list(gate, "reasons")]
    if pick(gate, "simulated") is True:
        notes.append(Note("Simulated: ONNX Runtime stood in for the TensorRT engine, on the same graph.", "warn"))
    if found := simulation_text(gate):
        differs = pick(gate, "simulation", "passed") is not pick(gate, "passed")
        notes.append(Note(f"In simulation it had {found}.", "warn" if differs else "plain"))
    if _passed(gate) and (grounds := grounds_of(gate)):
        notes.append(Note(f"The reference is doubtful, and was accepted: {', and '.join(grounds)}.", "warn"))
    notes += [Note(f"Likely cause: {cause}.", "plain") for cause in pick_list(gate, "reference_check", "causes")]
    if pick(gate, "seeded") is True:
        notes.append(Note("Random weights: the scores mean nothing.", "warn"))
    return notes


def finding_text(gate: Any) -> str:
    """What a gate found, in one line: `drop +0.210 points, 95% interval +0.050 to +0.410, ...`; the empty text for a
    file without it. gate: the content of `gate.json`."""
    agreement = pick_number(gate, "agreement")
    equal = "" if agreement is None else f"{100 * agreement:.3f} % of the pixels equal"
    drop, engine = _interval_text(gate), pick_text(gate, "engine")
    where = f"{engine} on {pick_text(gate, 'measured_on')}" if engine else ""
    accepted = "a doubtful reference, accepted" if _passed(gate) and grounds_of(gate) else ""
    return ", ".join(part for part in (f"drop {drop}" if drop else "", equal, where, accepted) if part)


def simulation_text(gate: Any) -> str:
    """What a simulation had found before a device judged the engine, in one line; the empty text if none had."""
    found = pick(gate, "simulation")
    if not isinstance(found, dict):
        return ""
    date = pick_text(found, "created")[:10]
    return f"{'passed' if _passed(found) else 'failed'}: {finding_text(found)}{date and f', {date}'}"


def _gate_facts(gate: Any, bound: float | None) -> Facts:
    repeats = {True: "gave the same masks", False: "gave other masks"}
    batches = {True: "equal those of single images", False: "differ from those of single images"}
    return Facts(
        (
            ("Engine", ", ".join(part for part in (pick_text(gate, "engine"), pick_text(gate, "file")) if part)),
            ("Data", f"{pick_text(gate, 'dataset')}, {pick_text(gate, 'split')}"),
            ("Images", pick_text(gate, "images")),
            ("mIoU", _percent(pick_number(gate, "scores", "miou"))),
            ("mIoU of the reference", _percent(pick_number(gate, "reference", "miou"))),
            ("Drop", _interval_text(gate)),
            ("Allowed drop", "" if bound is None else f"{bound:g} points, for the interval's upper end"),
            ("Equal pixels", _percent(_times(100, pick_number(gate, "agreement")), 3)),
            ("Asked of equal pixels", _percent(_times(100, pick_number(gate, "thresholds", "min_agreement")), 1)),
            ("A second run", repeats.get(pick(gate, "repeats"), "")),
            ("Masks of a batch", batches.get(pick(gate, "batch_agrees"), "")),
            ("Measured on", pick_text(gate, "measured_on")),
            ("Pack", pick_text(gate, "pack") and f"sha256 {pick_text(gate, 'pack')}"),
        )
    )


def _passed(gate: Any) -> bool:
    return pick(gate, "passed") is True


def _drop_chart(gate: Any, bound: float | None) -> list[Chart]:
    mean, low, high = (pick_number(gate, "drop", end) for end in ("mean", "low", "high"))
    if mean is None:
        return []
    row = Interval("mIoU lost", mean, low, high, bad=not _passed(gate))
    label = "" if bound is None else f"allowed: {bound:g}"
    svg = intervals([row], unit="points", bound=bound, bound_label=label)
    return [Chart(svg, "mIoU lost against the reference", "The whole interval has to stay left of the broken line.")]


def _drop(rung: Any) -> tuple[float | None, ...]:
    """Mean, low and high end of the mIoU lost, points."""
    return tuple(pick_number(rung, name) for name in ("drop", "drop_low", "drop_high"))


def _ladder_row(rung: Any) -> tuple[Cell, ...]:
    mean, low, high = _drop(rung)
    engine = pick_number(rung, "engine_bytes")
    return (
        text(pick_text(rung, "name")),
        number(pick_number(rung, "miou")),
        number(mean, signed=True, mood="bad" if pick(rung, "passed") is False else "plain"),
        text("" if low is None or high is None else signed_range(low, high)),
        number(None if engine is None else engine / 1e6, 1),
        number(pick_number(rung, "kernels"), 0),
        number(pick_number(rung, "attentions"), 0),
        number(pick_number(rung, "cpu_ms"), 1),
    )


def _ladder_whisker(rung: Any) -> Interval | None:
    mean, low, high = _drop(rung)
    if mean is None:
        return None
    return Interval(pick_text(rung, "name"), mean, low, high, bad=pick(rung, "passed") is False)


def _class_table(gate: Any) -> list[Table]:
    names = pick_list(gate, "classes")
    if not names:
        return []
    rows = []
    for i, name in enumerate(names):
        iou, before = pick_number(gate, "scores", "iou", i), pick_number(gate, "reference", "iou", i)
        drop = pick_number(gate, "class_drops", i)
        mood: Mood = "plain" if drop is None or drop < 1 else "warn" if drop < 5 else "bad"
        share = None if iou is None else iou / 100
        rows.append((text(str(name)), number(iou, share=share), number(before), number(drop, signed=True, mood=mood)))
    columns = (
        Column("Class"),
        Column("IoU, %", numeric=True),
        Column("Reference, %", numeric=True),
        Column("Lost, points", numeric=True),
    )
    return [Table("Every class; empty where none of the images shows it", columns, tuple(rows))]


def _panels(path: Path) -> tuple[Panel, ...]:
    """The panels of a picture that the gate drew. Raises ReportError if it is not a picture."""
    from PIL import Image, UnidentifiedImageError

    from twins_trt.errors import ReportError

    try:
        with Image.open(path) as opened:
            sheet = opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ReportError(
            f"{path} is no picture: {error}", f"let the gate draw it again: {spelled('pictures', 'DIR')}"
        ) from error
    pixels = np.asarray(sheet)
    if pixels.shape[1] % len(PANELS):
        raise ReportError(f"{path} has not the {len(PANELS)} panels of the gate's pictures", "remove it")
    panels = []
    for caption, part in zip(PANELS, np.split(pixels, len(PANELS), axis=1), strict=True):
        picture = Image.fromarray(part)
        picture.thumbnail((_PANEL_WIDTH, 4 * _PANEL_WIDTH))
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=_JPEG_QUALITY)
        panels.append(Panel(caption, out.getvalue(), *picture.size))
    return tuple(panels)


def _interval_text(gate: Any) -> str:
    mean, low, high = (pick_number(gate, "drop", end) for end in ("mean", "low", "high"))
    if mean is None or low is None or high is None:
        return ""
    confidence = pick_number(gate, "drop", "confidence")
    sure = "" if confidence is None else f"{confidence:.0%} "
    return f"{mean:+.3f} points, ".replace("-", "−") + f"{sure}interval {signed_range(low, high, digits=3)}"


def _percent(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f} %"


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value

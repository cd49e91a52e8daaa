"""The report as a whole: the summary on top, and the order of the sections."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from twins_trt.errors import ReportError
from twins_trt.files import whole_file
from twins_trt.report.accuracy import gate_section, ladder_section, worst_section
from twins_trt.report.blocks import Mood, Page, Tile
from twins_trt.report.contents import audit_section, built_section, plan_section, provenance_section
from twins_trt.report.html import render_html
from twins_trt.report.inputs import Inputs, pick, pick_list, pick_number, pick_text, read_inputs
from twins_trt.report.markdown import render_markdown
from twins_trt.report.speed import blocks_section, latency_section, speed_section
from twins_trt.runtime.judged import gate_outdated
from twins_trt.spelling import spelled
from twins_trt.version import __version__

_GATE_WORDS: dict[str, tuple[str, Mood]] = {
    "passed": ("gate passed", "good"),
    "failed": ("gate failed", "bad"),
    "ungated": ("ungated", "warn"),
}


def write_report(
    bundle: str | Path,
    out: str | Path,
    *,
    profiles: Sequence[str | Path] = (),
    ladder: str | Path | None = None,
    pictures: str | Path | None = None,
    markdown: bool = False,
) -> Page:
    """Writes the report on a bundle to `out`, whole or not at all, and returns its content.

    profiles: files of `twins-trt profile`. ladder: a results file of `python -m benchmarks.ladder`, with a row for each
    precision. pictures: the folder that `twins-trt gate --pictures` filled. markdown: instead of an HTML page, without
    charts and pictures.
    Raises as `read_inputs` does, and ReportError where `out` cannot be written.
    """
    page = build_page(read_inputs(bundle, profiles=profiles, ladder=ladder, pictures=pictures))
    content = render_markdown(page) if markdown else render_html(page)
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as file:
            file.write(content.encode("utf-8", "backslashreplace"))  # file names may not be valid text
    except OSError as error:
        raise ReportError(f"{out} cannot be written: {error.strerror}", f"give another {spelled('out')}") from error
    return page


def build_page(inputs: Inputs) -> Page:
    """The report's content, before it is HTML or Markdown."""
    manifest = inputs.bundle.manifest
    gate, mood = _GATE_WORDS[manifest.gate]
    if pick(inputs.gate, "simulated") is True:
        gate += ", simulated"
    if manifest.gate == "failed" and pick(inputs.gate, "simulation", "passed") is True:
        gate += ", passed in simulation"
    if gate_outdated(inputs.bundle) is not None:
        gate, mood = f"{gate}, counts no more", "warn" if mood == "good" else mood
    size = "dynamic size" if manifest.interface.size is None else "×".join(map(str, manifest.interface.size))
    return Page(
        title=inputs.bundle.path.name,
        subtitle=f"{manifest.model}, {manifest.precision}, {size}, {manifest.interface.num_classes} classes",
        gate=gate,
        mood=mood,
        tiles=tuple(_tiles(inputs)),
        sections=(
            built_section(inputs),
            gate_section(inputs),
            worst_section(inputs),
            ladder_section(inputs),
            *speed_section(inputs),
            latency_section(inputs),
            blocks_section(inputs),
            audit_section(inputs),
            *plan_section(inputs),
            provenance_section(inputs),
        ),
        made=f"Made by twins-trt {__version__} on {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC.",
    )


def _tiles(inputs: Inputs) -> list[Tile]:
    """The most important figures, one tile each. A figure that was not measured has no tile."""
    tiles = []
    gate, bundle = inputs.gate, inputs.bundle
    miou, before = pick_number(gate, "scores", "miou"), pick_number(gate, "reference", "miou")
    if miou is not None and before is not None:
        tiles.append(Tile("mIoU", f"{miou:.2f} %", f"PyTorch float32: {before:.2f} %"))
    drop, high = pick_number(gate, "drop", "mean"), pick_number(gate, "drop", "high")
    bound = pick_number(gate, "thresholds", "max_drop")
    if drop is not None and high is not None and bound is not None:
        mood: Mood = "good" if high <= bound else "bad"
        tiles.append(
            Tile("mIoU lost", f"{drop:+.2f}".replace("-", "−"), f"points; at most {high:.2f}, {bound:g} allowed", mood)
        )
    if inputs.own is not None:
        measurement = inputs.own[1]
        detail = f"{measurement.subject.engine} on {measurement.subject.measured_on}"
        simulated: Mood = "warn" if measurement.subject.simulated else "plain"
        tiles.append(Tile("Latency, median", f"{measurement.call.p50:.2f} ms", detail, simulated))
    for engine in pick_list(inputs.audit, "engines")[:1]:
        fused, expected = (
            pick_number(engine, "audit", "attentions"),
            pick_number(engine, "audit", "expected_attentions"),
        )
        kernels = pick_number(engine, "audit", "kernels")
        known = not pick_list(engine, "audit", "opaque")  # else the compiler does not list what it fused
        if known and fused is not None and expected is not None:
            whole: Mood = "good" if fused >= expected else "warn"
            count = "" if kernels is None else f"{kernels:.0f} kernels"
            if pick_list(engine, "stands_for") and not pick_text(engine, "file"):
                count = f"{count} on {', '.join(map(str, pick_list(engine, 'targets')))}, the nearest architecture"
            tiles.append(Tile("Fused attentions", f"{fused:.0f} of {expected:.0f}", count, whole))
    total = sum(entry.size for entry in bundle.manifest.files) / 1e6
    tiles.append(Tile("Bundle", f"{total:.1f} MB", f"{len(bundle.manifest.files)} files, verified"))
    return tiles

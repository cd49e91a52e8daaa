"""The tables of benchmarks/profile_camvid.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import how, table
from benchmarks.results import RESULTS, read_results
from twins_trt.codec import encode
from twins_trt.profiling import tables
from twins_trt.profiling.results import Profile, read_profile


def profile_camvid() -> str:
    """One trained model in all ways in which this CPU can run it, as `twins-trt profile` measures them."""
    profile, checks = _camvid_profile(), read_results("profile_camvid_checks")
    agreement = {row["label"]: f"{100 * row['value']:.2f} %" for row in checks["rows"] if row["what"] == "agreement"}
    (beside,) = (row for row in checks["rows"] if row["what"] == "overhead")
    head, *rows = tables.latencies(profile)
    shown = [(*row, agreement[row[0]]) for row in rows]
    latencies = table((*head, "pixels as PyTorch"), shown, align="ll" + "r" * (len(head) - 1))
    settings = profile.settings
    note = (
        f"`{checks['settings']['model']}` trained on CamVid, {settings.picture}, milliseconds from file to mask: "
        f"{settings.rounds} rounds of {settings.calls} calls with {settings.threads} threads; before the run "
        f"{100 * (profile.before.busy or 0.0):.0f} % of the processors' time went to other programs. mmsegmentation's "
        "export stops at logits: resizing them and the argmax are done for it in numpy, which the engine's column "
        "leaves out."
    )
    whole = (
        f"A Segmenter's call on a picture in memory takes {beside['value']:.3f} times what the bare session does (95 % "
        f"interval {beside['low']:.3f} to {beside['high']:.3f}, {beside['rounds']} rounds of {beside['calls']} calls; "
        f"{beside['whole_ms']:.1f} and {beside['bare_ms']:.1f} ms)."
    )
    warnings = "".join(f"- {warning}\n" for warning in profile.warnings)
    warned = f"The run's own warnings:\n\n{warnings}" if warnings else "The run had no warnings."
    parts = (latencies, _markdown(tables.stages(profile)), note, whole, warned.rstrip())
    return "\n\n".join([*parts, how(_results_of(profile))])


def profile_blocks() -> str:
    """The time of each of our graphs, by part of the model."""
    profile = _camvid_profile()
    ours = [m for m in profile.measurements if m.subject.kind == "bundle"]
    spent = [_parts(m.blocks()) for m in ours]
    rows = [(f"`{part}`", *(f"{each.get(part, 0.0):.1f}" for each in spent)) for part in spent[0]]
    rows.append(("sum", *(f"{sum(each.values()):.1f}" for each in spent)))
    return f"{table(('part', *(m.subject.label for m in ours)), rows)}\n\n{how(_results_of(profile))}"


def _camvid_profile() -> Profile:
    return read_profile(RESULTS / "profile_camvid.json")


def _parts(blocks: Mapping[str, float]) -> dict[str, float]:
    """The blocks of each stage added up by kind, as in `stages.2 attn`."""
    total: dict[str, float] = {}
    for name, spent in sorted(blocks.items()):
        words = name.split(".")
        part = f"stages.{words[1]} {words[-1]}" if words[0] == "stages" else name
        total[part] = total.get(part, 0.0) + spent
    return total


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return table(rows[0], rows[1:])


def _results_of(profile: Profile) -> Mapping[str, Any]:
    """What `how` needs of a results file."""
    return {
        "command": profile.command,
        "machine": encode(profile.machine),
        "versions": profile.versions,
        "date": profile.created[:10],
    }

"""`twins-trt profile`: how fast, how large and how hungry bundles, plain ONNX files and a PyTorch model are."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from twins_trt.cli.console import Console, table
from twins_trt.errors import UsageError
from twins_trt.verbs.profile import FLAGS, ProfileRequest, measure, resolve_profile

if TYPE_CHECKING:
    from twins_trt.profiling.compare import ProfileComparison
    from twins_trt.profiling.results import Profile

EXAMPLE = (
    "twins-trt profile fp16.bundle int8.bundle --out profile.json\n"
    "  twins-trt profile x.bundle --onnx plain.onnx --torch twins_svt-s_fpn --checkpoint F.pth --threads 2\n"
    "  twins-trt profile --compare before.json after.json\n\n"
    "All candidates are measured in one run, in rounds in which each has its turn; ratios are taken within rounds\n"
    "and come with their 95 % interval. End to end is from the picture's file to its mask in host memory. Ctrl-C\n"
    "ends the measuring: the whole rounds so far are shown and written, and the exit code is 130."
)
INTERRUPTED = 130


def configure(parser: argparse.ArgumentParser) -> None:
    """What to measure, how, and where the results go; or what to compare."""
    FLAGS.add_to(parser)
    parser.add_argument(
        "--compare", nargs=2, metavar=("A.json", "B.json"), help="measure nothing: compare two results files"
    )
    parser.add_argument("--dry-run", action="store_true", help="open everything and say what would be measured")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Measure, or compare two results."""
    request = FLAGS.read(arguments)
    if arguments.compare is not None:
        return _compare(request, arguments.compare, console)
    job = resolve_profile(request)
    if arguments.dry_run:
        labels = [each.label for each in job.candidates]
        text = "\n".join(["would be measured in turn:", *(f"  {label}" for label in labels)])
        console.result({"dry_run": True, "candidates": labels}, text)
        return 0
    measured = measure(job, progress=console.progress)
    console.result(measured.to_json(), text_of(measured))
    return INTERRUPTED if measured.interrupted else 0


def text_of(profile: Profile) -> str:
    """All tables, one under another, and the warnings."""
    from twins_trt.profiling import tables

    picture, rounds = profile.settings.picture, profile.measurements[0].rounds("end_to_end")
    head = f"milliseconds end to end, from file to mask; {len(rounds)} rounds of {len(rounds[0])} calls; {picture}"
    parts = [f"{head}\n{_table(tables.latencies(profile))}"]
    parts.append(f"median of each stage, in observed calls\n{_table(tables.stages(profile))}")
    for rows in (tables.throughput(profile), tables.resources(profile)):
        if rows:
            parts.append(_table(rows))
    for measurement in profile.measurements:
        if rows := tables.blocks(measurement):
            parts.append(f"{measurement.subject.label}: layers by block\n{_table(rows)}")
    parts.append("\n".join(f"note: {each}" for each in profile.warnings))
    return "\n\n".join(filter(None, parts))


def _compare(request: ProfileRequest, files: list[str], console: Console) -> int:
    from twins_trt.profiling.compare import compare
    from twins_trt.profiling.results import read_profile

    if request.bundles or request.onnx or request.torch:
        raise UsageError("--compare measures nothing", "leave the candidates out, or leave --compare out")
    before, after = map(read_profile, files)
    comparison = compare(before, after)
    console.result(comparison.to_json(), _comparison_text(comparison))
    return 0


def _comparison_text(comparison: ProfileComparison) -> str:
    from twins_trt.profiling.tables import ms, speed_up

    rows: list[tuple[str, ...]] = [("", "first, ms", "second, ms", "times as fast")]
    rows += [(each.label, ms(each.before_ms), ms(each.after_ms), speed_up(each)) for each in comparison.changes]
    lines = [_table(rows), ""]
    if not comparison.comparable:
        lines += ["no comparison: these are not the same in both", *(f"  {each}" for each in comparison.differences)]
    return "\n".join([*lines, *(f"note: {each}" for each in comparison.notes)])


def _table(rows: Any) -> str:
    return table(rows, right=frozenset(range(1, len(rows[0]))))

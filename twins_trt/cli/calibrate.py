"""`twins-trt calibrate`: the ranges of a graph's activations over images, for INT8."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from twins_trt.cli.console import Console, table
from twins_trt.verbs.calibrate import FLAGS, CalibrationJob, collect_ranges, resolve_calibration

if TYPE_CHECKING:
    from twins_trt.calib import Ranges

EXAMPLE = (
    "twins-trt calibrate graph.onnx --data camvid:PATH --split train --images 64 --out calibration.json\n"
    "  twins-trt calibrate twins_svt-s_fpn --checkpoint F.pth --size 360x480 --data folder:PATH --out x.json\n"
    "\n"
    "Takes an FP32 graph (twins-trt export --precision fp32), or exports the model itself. Images go into it as\n"
    "they do when a bundle runs. All observers are read off one pass; the first is the one used. The file holds\n"
    "for this graph, these images and these options, and is refused with others. What was done so far is kept in\n"
    "FILE.partial: the same command goes on after a kill."
)
_SHOWN = 5  # tensors that the chosen range clips most


def configure(parser: argparse.ArgumentParser) -> None:
    """GRAPH|MODEL, --data, --split, --images, --observer and its options, --out, how to run; weights and graph."""
    FLAGS.add_to(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be done")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Collect and write one range file."""
    plan = resolve_calibration(FLAGS.read(arguments))
    if arguments.dry_run:
        console.result(*_plan(plan))
        return 0
    if plan.state is not None and plan.state.exists():
        console.note(f"going on from {plan.state}")
    started = time.perf_counter()
    ranges = collect_ranges(plan, progress=console.progress)
    seconds = round(time.perf_counter() - started, 3)
    value = {key: part for key, part in ranges.to_json().items() if key != "ranges"}
    value |= {"out": str(plan.out), "tensors": len(ranges.ranges), "seconds": seconds, "dataset": plan.dataset.source}
    text = f"{plan.out}: {len(ranges.ranges)} tensors over {ranges.images} images, {seconds:.1f} s"
    console.result(value, f"{text}, key {ranges.key[:12]}\n{_clipped(ranges)}")
    return 0


def _plan(plan: CalibrationJob) -> tuple[dict[str, Any], str]:
    from twins_trt.codec import encode

    what, dataset, images = plan.request.what, plan.dataset, len(plan.dataset)
    value: dict[str, Any] = {"dry_run": True, "name": what, "out": str(plan.out), "dataset": dataset.source}
    value |= {"split": dataset.split, "images": images, "tensors": plan.tensors, "settings": encode(plan.settings)}
    text = f"{plan.out} would hold the ranges of {what} over {images} images of {dataset.source}"
    return value, f"{text} ({dataset.split}): {', '.join(plan.settings.observers)}"


def _clipped(ranges: Ranges) -> str:
    """The tensors whose chosen range leaves out most of what was seen."""
    observer = ranges.observers[0]
    rows = [
        (each.amax[observer] / largest, name, each.amax[observer], largest)
        for name, each in ranges.ranges.items()
        if (largest := max(-each.min, each.max))
    ]
    header = ("most clipped", observer, "largest value", "kept")
    lines = [(name, f"{amax:.4g}", f"{top:.4g}", f"{share:.0%}") for share, name, amax, top in sorted(rows)[:_SHOWN]]
    return table([header, *lines], right=frozenset({1, 2, 3}))

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
    "they do when a bundle runs. One pass serves all observers; the first one is used. The file is good for this\n"
    "graph, these images and these options, and is refused with others. Unfinished work is kept in FILE.partial:\n"
    "the same command continues it after a kill."
)
_SHOWN = 5  # tensors that the chosen range clips most


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's flags, and --dry-run."""
    FLAGS.add_to(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be done")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Collect and write one range file."""
    job = resolve_calibration(FLAGS.read(arguments))
    if arguments.dry_run:
        console.result(*_dry_run(job))
        return 0
    if job.state is not None and job.state.exists():
        console.note(f"continuing from {job.state}")
    started = time.perf_counter()
    ranges = collect_ranges(job, progress=console.progress)
    seconds = round(time.perf_counter() - started, 3)
    value = {key: part for key, part in ranges.to_json().items() if key != "ranges"}
    value |= {"out": str(job.out), "tensors": len(ranges.ranges), "seconds": seconds, "dataset": job.dataset.source}
    text = f"{job.out}: {len(ranges.ranges)} tensors over {ranges.images} images, {seconds:.1f} s"
    console.result(value, f"{text}, key {ranges.key[:12]}\n{_clipped(ranges)}")
    return 0


def _dry_run(job: CalibrationJob) -> tuple[dict[str, Any], str]:
    from twins_trt.codec import encode

    what, dataset, images = job.request.what, job.dataset, len(job.dataset)
    value: dict[str, Any] = {"dry_run": True, "name": what, "out": str(job.out), "dataset": dataset.source}
    value |= {"split": dataset.split, "images": images, "tensors": job.tensors, "settings": encode(job.options)}
    text = f"{job.out} would hold the ranges of {what} over {images} images of {dataset.source}"
    return value, f"{text} ({dataset.split}): {', '.join(job.options.observers)}"


def _clipped(ranges: Ranges) -> str:
    """A table of the tensors whose chosen range leaves out most of their largest value."""
    observer = ranges.observers[0]
    rows = [
        (each.amax[observer] / largest, name, each.amax[observer], largest)
        for name, each in ranges.ranges.items()
        if (largest := max(-each.min, each.max))
    ]
    header = ("most clipped", observer, "largest value", "kept")
    lines = [(name, f"{amax:.4g}", f"{top:.4g}", f"{share:.0%}") for share, name, amax, top in sorted(rows)[:_SHOWN]]
    return table([header, *lines], right=frozenset({1, 2, 3}))

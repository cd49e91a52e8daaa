"""`twins-trt report`: what is known of a bundle on one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from twins_trt.cli.console import Console, megabytes
from twins_trt.verbs.report import FLAGS

EXAMPLE = (
    "twins-trt report x.bundle --profile profile.json --pictures worst/ --out report.html\n\n"
    "One page that works offline: what was built, the gate's verdict, latency, blocks, audit, the worst images, and\n"
    "where everything came from. What was not measured is named as missing. The gate draws the pictures:\n"
    "  twins-trt gate x.bundle --data camvid:PATH --checkpoint F.pth --pictures worst/"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    FLAGS.add_to(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Write one report."""
    from twins_trt.report import write_report

    request = FLAGS.read(arguments)
    out = Path(request.out)
    console.progress("report", request.bundle)
    page = write_report(
        request.bundle,
        out,
        profiles=request.profiles,
        ladder=request.ladder,
        pictures=request.pictures,
        markdown=request.markdown,
    )
    size = out.stat().st_size
    sections = [section.title for section in page.sections]
    value = {"out": str(out), "size": size, "verdict": page.gate, "sections": sections}
    console.result(value, f"{out}  {megabytes(size)}, {page.gate}")
    return 0

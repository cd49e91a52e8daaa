"""`twins-trt report`: what is known of a bundle on one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from twins_trt.cli.console import Console, megabytes

EXAMPLE = (
    "twins-trt report x.bundle --profile profile.json --pictures worst/ --out report.html\n\n"
    "One page that works offline: what was built, the gate's verdict, latency, blocks, audit, the worst images, and\n"
    "where everything came from. What was not measured is said to be missing. The gate draws the pictures:\n"
    "  twins-trt gate x.bundle --data camvid:PATH --checkpoint F.pth --pictures worst/"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """BUNDLE, --profile, --ladder, --pictures, --out, --markdown."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle to report on")
    parser.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="FILE",
        help="of twins-trt profile, beside the bundle's own; repeatable",
    )
    parser.add_argument("--ladder", metavar="FILE", help="results of several precisions on the same images")
    parser.add_argument("--pictures", metavar="DIR", help="the folder that twins-trt gate --pictures filled")
    parser.add_argument("--out", required=True, metavar="FILE", help="the page to write, such as report.html")
    parser.add_argument("--markdown", action="store_true", help="Markdown for a README, without charts and pictures")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Write one report."""
    from twins_trt.report import write_report

    out = Path(arguments.out)
    console.progress("report", arguments.bundle)
    page = write_report(
        arguments.bundle,
        out,
        profiles=arguments.profile,
        ladder=arguments.ladder,
        pictures=arguments.pictures,
        markdown=arguments.markdown,
    )
    size = out.stat().st_size
    sections = [section.title for section in page.sections]
    value = {"out": str(out), "size": size, "verdict": page.verdict, "sections": sections}
    console.result(value, f"{out}  {megabytes(size)}, {page.verdict}")
    return 0

"""`twins-trt demo`: the whole way once, with the model of the package."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from twins_trt.cli.console import Console, table
from twins_trt.verbs.demo import FLAGS

if TYPE_CHECKING:
    from twins_trt.demo.run import DemoResult

EXAMPLE = (
    "twins-trt demo --out demo\n\n"
    "Needs no GPU, no network and no data: a small model comes with the package, and drawn streets calibrate it\n"
    "and judge its INT8 graph against PyTorch. Where TensorRT-RTX is installed, an engine for SM86, SM89\n"
    "and SM120 is compiled and audited. Look at demo/report.html and demo/overlay.png."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    FLAGS.add_to(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run the demo."""
    from twins_trt.demo.run import run_demo

    result = run_demo(FLAGS.read(arguments), progress=console.progress)
    console.result({**asdict(result), "total_seconds": round(result.total, 1)}, _text(result))
    return 0


def _text(result: DemoResult) -> str:
    stood_in = " (ONNX Runtime stood in for the engine, which needs its GPU)" if result.simulated else ""
    if result.compiler:
        fused = f"{result.fused_attentions} of {result.attentions} attentions fused"
        engine = f"{result.compiler}, {fused}"
    else:
        engine = "none: TensorRT-RTX is not installed, so the graph runs on ONNX Runtime"
    outcome = "passed" if result.passed else "FAILED"
    rows = [
        ("gate", f"{outcome}{stood_in}"),
        ("mIoU", f"{result.miou:.2f}, {result.drop:+.3f} points lost, at most {result.drop_high:.3f}"),
        ("engine", engine),
        ("bundle", result.bundle),
        ("overlay", result.overlay),
        ("report", result.report),
        ("seconds", f"{result.total:.0f}: " + ", ".join(f"{name} {s:.0f}" for name, s in result.seconds.items())),
    ]
    return table(rows)

"""`twins-trt export`: a model as a precision-complete ONNX graph."""

from __future__ import annotations

import argparse
import time

from twins_trt.cli.console import Console, megabytes
from twins_trt.verbs.export import FLAGS, export, resolve_export

EXAMPLE = "twins-trt export twins_svt-s_fpn --seeded --size 512x512 --precision fp16 --out graph.onnx"


def configure(parser: argparse.ArgumentParser) -> None:
    """MODEL, --out, the options of weights and graph, --target, --overwrite, --dry-run."""
    FLAGS.add_to(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be written")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Export one graph."""
    from twins_trt.codec import encode

    job = resolve_export(FLAGS.read(arguments))
    model, out, options = job.model.name, job.out, job.options
    if arguments.dry_run:
        weights = None if job.model.weights is None else str(job.model.weights)
        origin = "seeded weights" if weights is None else f"the weights of {weights}"
        text = f"{out} would hold {model} with {origin}, {options.precision}, opset {options.opset}"
        facts = {"model": model, "out": str(out), "weights": weights, "options": encode(options)}
        console.result({"dry_run": True, **facts}, text)
        return 0
    started = time.perf_counter()
    info, source = export(job, progress=console.progress)
    size, seconds = out.stat().st_size, round(time.perf_counter() - started, 3)
    value = {"out": str(out), "size": size, "seconds": seconds, "source": encode(source), "info": encode(info)}
    text = f"{out}: {model}, {info.num_classes} classes, {options.precision}, {megabytes(size)}, {seconds:.1f} s"
    console.result(value, text)
    return 0

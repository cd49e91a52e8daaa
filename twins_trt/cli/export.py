"""`twins-trt export`: a model as a precision-complete ONNX graph."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from twins_trt.cli.console import Console, megabytes
from twins_trt.cli.parsing import add_graph_options, add_weights_options, graph_options
from twins_trt.errors import ExportError
from twins_trt.models.zoo import get_spec

EXAMPLE = "twins-trt export twins_svt-s_fpn --seeded --size 512x512 --precision fp16 --out graph.onnx"


def configure(parser: argparse.ArgumentParser) -> None:
    """MODEL, --out, the options of weights and graph, --forms, --overwrite, --dry-run."""
    parser.add_argument("model", metavar="MODEL", help="a name that twins-trt models lists")
    parser.add_argument("--out", required=True, metavar="FILE", help="the graph to write")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it is there")
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be written")
    add_weights_options(parser)
    add_graph_options(parser)
    parser.add_argument(
        "--forms",
        default="gpu",
        metavar="{gpu,cpu}",
        help="exact rewritings for the fewest kernels (gpu, default) or the fewest operations (cpu)",
    )


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Export one graph."""
    spec = get_spec(arguments.model)
    from twins_trt.builders.export import export_graph
    from twins_trt.builders.weights import find_weights, load_weights
    from twins_trt.runtime.codec import encode

    precision = "fp32" if arguments.forms == "cpu" else "fp16"
    options = graph_options(arguments, forms=arguments.forms, precision=precision, crop_size=spec.crop_size)
    weights = find_weights(spec.name, checkpoint=arguments.checkpoint, seeded=arguments.seeded)
    out = Path(arguments.out)
    _check_out(out, overwrite=arguments.overwrite)
    if arguments.dry_run:
        plan = {"model": spec.name, "out": str(out), "weights": None if weights is None else str(weights)}
        origin = "seeded weights" if weights is None else f"the weights of {weights}"
        text = f"{out} would hold {spec.name} with {origin}, {options.precision}, opset {options.opset}"
        console.result({"dry_run": True, **plan, "options": encode(options)}, text)
        return 0
    started = time.perf_counter()
    console.progress("[1/2] weights", "seeded" if weights is None else str(weights))
    model, facts = load_weights(
        spec.name,
        checkpoint=arguments.checkpoint,
        seeded=arguments.seeded,
        num_classes=arguments.num_classes,
        padding=arguments.padding,
    )
    console.progress("[2/2] graph", str(out))
    info = export_graph(model, out, options)
    size, seconds = out.stat().st_size, round(time.perf_counter() - started, 3)
    value = {
        "out": str(out),
        "size": size,
        "seconds": seconds,
        "source": encode(facts.source),
        "info": encode(info),
    }
    text = f"{out}: {spec.name}, {info.num_classes} classes, {options.precision}, {megabytes(size)}, {seconds:.1f} s"
    console.result(value, text)
    return 0


def _check_out(out: Path, *, overwrite: bool) -> None:
    if out.is_dir():
        raise ExportError(f"{out} is a folder", "name the file to write in it, such as graph.onnx")
    if out.exists() and not overwrite:
        raise ExportError(f"{out} exists", "choose another name, or replace it: --overwrite")
    if not out.absolute().parent.is_dir():
        raise ExportError(f"there is no folder {out.absolute().parent}", f"mkdir -p {out.parent}")

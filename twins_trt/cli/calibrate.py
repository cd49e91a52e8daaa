"""`twins-trt calibrate`: the ranges of a graph's activations over images, for INT8."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twins_trt.cli.console import Console, table
from twins_trt.cli.parsing import (
    DATA_KINDS,
    add_calibration_options,
    add_graph_options,
    add_weights_options,
    calibration_settings,
    graph_options,
    nearest,
    parse_test_scale,
)
from twins_trt.errors import DataError, UsageError
from twins_trt.models.zoo import get_spec, is_model, list_models

if TYPE_CHECKING:
    from twins_trt.calib import CalibrationSettings, CalibrationStep, Ranges
    from twins_trt.data import Dataset

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
    parser.add_argument("what", metavar="GRAPH|MODEL", help="an FP32 graph, or a name that twins-trt models lists")
    parser.add_argument("--data", required=True, metavar="KIND:PATH", help=DATA_KINDS)
    parser.add_argument("--split", default="train", help="default: train")
    parser.add_argument(
        "--images", type=int, default=64, metavar="N", help="how many, spread over the set; default: 64, 0: all"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the range file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it is there")
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be done")
    parser.add_argument(
        "--forms", default="gpu", metavar="{gpu,cpu}", help="of a model's graph: what it is built for; default: gpu"
    )
    add_calibration_options(parser)
    parser.add_argument(
        "--test-scale", metavar="LONGxSHORT", help="for a graph of dynamic size; default: 2048x512 for ade20k"
    )
    group = parser.add_argument_group("how it runs")
    group.add_argument("--device", default="auto", metavar="{auto,cpu,cuda}", help="of ONNX Runtime")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: every core")
    group.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images ahead")
    group.add_argument("--memory", type=int, default=1024, metavar="MIB", help="activations at once; default: 1024")
    add_weights_options(parser)
    add_graph_options(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Collect and write one range file."""
    from twins_trt.calib import observed_tensors
    from twins_trt.runtime.codec import encode

    settings = _settings(arguments)
    graph = _graph(arguments)
    dataset = _spread(arguments)
    out = Path(arguments.out)
    _check_out(out, overwrite=arguments.overwrite)
    if arguments.dry_run:
        tensors = None if graph is None else len(observed_tensors(graph))
        plan: dict[str, Any] = {
            "name": arguments.what,
            "out": str(out),
            "dataset": dataset.source,
            "split": dataset.split,
        }
        plan |= {"images": len(dataset), "tensors": tensors, "settings": encode(settings)}
        text = f"{out} would hold the ranges of {arguments.what} over {len(dataset)} images of {dataset.source}"
        console.result({"dry_run": True, **plan}, f"{text} ({dataset.split}): {', '.join(settings.observers)}")
        return 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="twins-trt-") as folder:
        if graph is None:
            graph = _export(arguments, console, Path(folder))
        ranges = _calibrate(arguments, console, graph, dataset, settings, out)
    seconds = round(time.perf_counter() - started, 3)
    value = {key: part for key, part in ranges.to_json().items() if key != "ranges"}
    value |= {"out": str(out), "tensors": len(ranges.ranges), "seconds": seconds, "dataset": dataset.source}
    text = f"{out}: {len(ranges.ranges)} tensors over {ranges.images} images, {seconds:.1f} s, key {ranges.key[:12]}"
    console.result(value, f"{text}\n{_clipped(ranges)}")
    return 0


def _calibrate(
    arguments: argparse.Namespace,
    console: Console,
    graph: Path,
    dataset: Dataset,
    settings: CalibrationSettings,
    out: Path,
) -> Ranges:
    from twins_trt.calib import CollectOptions, calibrate, save_ranges

    state = out.with_name(f"{out.name}.partial")
    if state.exists():
        console.note(f"going on from {state}")

    def progress(step: CalibrationStep) -> None:
        left = "" if step.eta is None else f", {step.eta:.0f} s left"
        console.progress("calibrate", f"{step.done} of {len(dataset)} images{left}", step.done / len(dataset))

    def images() -> Iterator[Any]:
        for sample in dataset.load(workers=arguments.workers):
            yield sample.image

    options = CollectOptions(
        state=state,
        progress=progress,
        total=len(dataset),
        names=[str(item.image) for item in dataset.items],
        device=arguments.device,
        threads=arguments.threads,
        memory_mib=arguments.memory,
    )
    ranges = calibrate(graph, images(), settings=settings, options=options)
    save_ranges(ranges, out)
    state.unlink(missing_ok=True)
    return ranges


def _settings(arguments: argparse.Namespace) -> CalibrationSettings:
    from twins_trt.data import ADE20K_TEST

    test_scale = ADE20K_TEST.test_scale if arguments.data.startswith("ade20k:") else None
    if arguments.test_scale is not None:
        test_scale = parse_test_scale(arguments.test_scale)
    return calibration_settings(arguments, test_scale=test_scale)


def _spread(arguments: argparse.Namespace) -> Dataset:
    """The data set, thinned to the number of images that was asked for; without labels, which nobody reads."""
    from twins_trt.data import open_dataset

    if arguments.images < 0:
        raise UsageError(f"--images is {arguments.images}", "give how many, or 0 for all")
    dataset = open_dataset(arguments.data, split=arguments.split).spread(arguments.images)
    return replace(dataset, items=tuple(replace(item, label=None) for item in dataset.items))


def _graph(arguments: argparse.Namespace) -> Path | None:
    """The graph's file; None for a model, whose weights are there."""
    path = Path(arguments.what)
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "name an FP32 graph: twins-trt export MODEL --precision fp32")
    if path.is_file():
        if arguments.checkpoint is not None or arguments.seeded or arguments.num_classes is not None:
            raise UsageError("a graph has its weights inside", "leave --checkpoint, --seeded and --num-classes out")
        return path
    if not is_model(arguments.what):
        near = nearest(arguments.what, list_models())
        fix = f"use one of: {', '.join(near)}" if near else "twins-trt models lists the models"
        raise UsageError(f"there is no graph and no model called {arguments.what!r}", fix)
    from twins_trt.builders.weights import find_weights

    find_weights(arguments.what, checkpoint=arguments.checkpoint, seeded=arguments.seeded)
    return None


def _export(arguments: argparse.Namespace, console: Console, folder: Path) -> Path:
    """The model's FP32 graph, byte for byte what an INT8 build with the same options quantises."""
    from twins_trt.builders.build_options import default_opset
    from twins_trt.builders.export import export_graph
    from twins_trt.builders.weights import load_weights

    spec = get_spec(arguments.what)
    options = graph_options(
        arguments, forms=arguments.forms, precision="fp32", crop_size=spec.crop_size, opset=default_opset("int8")
    )
    if options.precision != "fp32":
        raise UsageError(f"--precision is {options.precision}; ranges are collected on the FP32 graph", "leave it out")
    console.progress("export", spec.name)
    model, _ = load_weights(
        spec.name,
        checkpoint=arguments.checkpoint,
        seeded=arguments.seeded,
        num_classes=arguments.num_classes,
        padding=arguments.padding,
    )
    if arguments.seeded:
        console.note("note: random weights: the ranges mean nothing")
    path = folder / "graph.onnx"
    export_graph(model, path, options, to_quantise=True)
    return path


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


def _check_out(out: Path, *, overwrite: bool) -> None:
    if out.is_dir():
        raise DataError(f"{out} is a folder", "name the file to write in it, such as calibration.json")
    if out.exists() and not overwrite:
        raise DataError(f"{out} exists", "choose another name, or replace it: --overwrite")
    if not out.absolute().parent.is_dir():
        raise DataError(f"there is no folder {out.absolute().parent}", f"mkdir -p {out.parent}")

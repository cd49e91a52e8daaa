"""`twins-trt gate`: judge a bundle's engine against the PyTorch model it was built from."""

from __future__ import annotations

import argparse
from pathlib import Path

from twins_trt.cli.console import Console
from twins_trt.cli.parsing import (
    add_checkpoint_options,
    add_data_options,
    add_running_options,
    check_engine,
    open_data,
)
from twins_trt.errors import GateError

EXAMPLE = (
    "twins-trt gate x.bundle --data camvid:PATH --checkpoint F.pth\n\n"
    "The mIoU of the bundle's engine may lie at most --max-drop points below that of the PyTorch float32 model on\n"
    "the same images, and it is the upper end of the drop's 95 % interval that counts: too few images fail rather\n"
    "than pass by luck. The verdict goes into the bundle (gate.json); a failure ends with exit code 3. Where ONNX\n"
    "Runtime stands in for a TensorRT engine, which needs its GPU, the verdict says simulated."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """BUNDLE, --data, thresholds, where pictures go, and the weights of the reference."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle to judge")
    add_data_options(parser)
    parser.add_argument(
        "--max-drop", type=float, metavar="POINTS", help="of mIoU; default: 0.1 for fp32 and fp16, 0.5 for int8"
    )
    parser.add_argument("--min-images", type=int, default=30, metavar="N", help="fewer fail; default: 30")
    parser.add_argument(
        "--min-agreement", type=float, metavar="SHARE", help="of pixels that must equal the reference's"
    )
    add_running_options(parser)
    parser.add_argument("--pictures", metavar="DIR", help="overlays and difference maps of the worst images go here")
    parser.add_argument("--dry-run", action="store_true", help="open everything and say what would be judged")
    add_checkpoint_options(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Judge one bundle and write the verdict into it."""
    from twins_trt.builders.gate import Gallery, Thresholds, gate_bundle, load_reference, record
    from twins_trt.runtime import EngineSettings, open_bundle

    check_engine(arguments.engine)
    bundle = open_bundle(arguments.bundle)
    precision = bundle.manifest.precision
    thresholds = Thresholds.of(
        precision,
        max_drop=arguments.max_drop,
        min_images=arguments.min_images,
        min_agreement=arguments.min_agreement,
    )
    dataset = open_data(arguments)
    if arguments.dry_run:
        what = f"{len(dataset)} images of {dataset.source} ({dataset.split})"
        text = f"{bundle.path} ({precision}) would be judged on {what}"
        console.result({"dry_run": True, "bundle": str(bundle.path), "images": len(dataset)}, text)
        return 0
    console.progress("load", "the reference")
    model = load_reference(bundle, checkpoint=arguments.checkpoint, seeded=arguments.seeded)
    gallery = Gallery(Path(arguments.pictures), bundle.manifest.palette) if arguments.pictures else None
    result = gate_bundle(
        bundle,
        model,
        dataset,
        thresholds=thresholds,
        engine=arguments.engine,
        settings=EngineSettings(threads=arguments.threads),
        progress=lambda done, total, drop: console.progress(
            "gate", f"{done} of {total} images, drop {drop:+.3f}", done / total
        ),
        look=gallery,
    )
    record(bundle, result)
    console.result(result.to_json(), result.table())
    return 0 if result.passed else GateError.exit_code

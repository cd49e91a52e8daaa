"""`twins-trt gate`: judge a bundle's engine against the PyTorch model it was built from."""

from __future__ import annotations

import argparse

from twins_trt.cli.console import Console
from twins_trt.errors import GateError
from twins_trt.verbs.gate import FLAGS, judge, resolve_gate

EXAMPLE = (
    "twins-trt gate x.bundle --data camvid:PATH --checkpoint F.pth --pack x.pack\n"
    "  twins-trt gate x.bundle --pack x.pack\n\n"
    "The mIoU of the bundle's engine may lie at most --max-drop points below that of the PyTorch float32 model on\n"
    "the same images. The upper end of the drop's 95 % interval counts: too few images fail rather than pass by\n"
    "luck. The verdict goes into the bundle (gate.json); a failure ends with exit code 3. Where ONNX\n"
    "Runtime stands in for a TensorRT engine, which needs its GPU, the verdict says simulated.\n"
    "A pack holds the images and the reference's masks: with it a device judges its engine without torch."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's flags, and --dry-run."""
    FLAGS.add_to(parser)
    parser.add_argument("--dry-run", action="store_true", help="open everything and say what would be judged")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Judge one bundle and write the verdict into it."""
    job = resolve_gate(FLAGS.read(arguments))
    bundle, images = job.bundle, len(job.images)
    if arguments.dry_run:
        text = f"{bundle.path} ({bundle.manifest.precision}) would be judged on {images} images of {job.source}"
        console.result({"dry_run": True, "bundle": str(bundle.path), "images": images}, text)
        return 0
    result = judge(job, progress=console.progress)
    console.result(result.to_json(), result.table())
    return 0 if result.passed else GateError.exit_code

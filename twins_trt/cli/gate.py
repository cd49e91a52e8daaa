"""`twins-trt gate`: judge a bundle, its accuracy beside the PyTorch model and its speed beside another bundle."""

from __future__ import annotations

import argparse
from typing import Any

from twins_trt.cli.console import Console
from twins_trt.errors import GateError, UsageError
from twins_trt.spelling import spelled
from twins_trt.verbs import speed
from twins_trt.verbs.gate import FLAGS, GateJob, judge, resolve_gate

EXAMPLE = (
    "twins-trt gate x.bundle --data camvid:PATH --checkpoint F.pth --pack x.pack\n"
    "  twins-trt gate x.bundle --pack x.pack\n"
    "  twins-trt gate int8.bundle --against fp16.bundle\n\n"
    "The mIoU of the bundle's engine may lie at most --max-drop points below that of the PyTorch float32 model on\n"
    "the same images. The upper end of the drop's 95 % interval counts: too few images fail rather than pass by\n"
    "luck. At least --min-agreement of the pixels must equal the reference's. A reference that scores far below what\n"
    "was recorded of its weights, or no better than chance, is doubtful and fails, save with --accept-reference.\n"
    "The verdict goes into the bundle (gate.json); a failure ends with exit code 3. Where ONNX\n"
    "Runtime stands in for a TensorRT engine, which needs its GPU, the verdict says simulated.\n"
    "A pack holds the images and the reference's masks: with it a device judges its engine without torch.\n"
    "With --against both bundles are timed in turn. The lower end of the ratio's 95 % interval has to exceed\n"
    "--min-speedup. The verdict goes into the bundle (speed.json), and its advice says which one to ship."
)

_ACCURACY = (
    "split",
    "limit",
    "max_drop",
    "min_images",
    "min_agreement",
    "accept_reference",
    "pictures",
    "checkpoint",
    "seeded",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """The flags of both verdicts, and --dry-run."""
    FLAGS.add_to(parser)
    speed.OWN_FLAGS.add_to(parser)
    parser.add_argument("--dry-run", action="store_true", help="open everything and say what would be judged")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Judge one bundle and write each verdict into it."""
    judges, times = _verdicts_of(vars(arguments))
    job = resolve_gate(FLAGS.read(arguments)) if judges else None
    timing = speed.resolve_speed(speed.FLAGS.read(arguments)) if times else None
    if arguments.dry_run:
        _say_what_would_be_done(job, timing, console)
        return 0
    value: dict[str, Any] = {}
    texts, passed = [], True
    if job is not None:
        result = judge(job, progress=console.progress)
        value, texts, passed = result.to_json(), [result.table()], result.passed
        if job.new_pack is not None:
            texts = [f"{result.table()}\npack          {job.new_pack}"]
    if timing is not None:
        if job is not None:  # the advice goes by the gate's status, which has just been written
            timing = speed.resolve_speed(timing.request)
        found = speed.time_both(timing, progress=console.progress)
        value["speed"] = found.to_json()
        texts.append(found.table())
        passed = passed and found.passed
    console.result(value, "\n\n".join(texts))
    return 0 if passed else GateError.exit_code


def _verdicts_of(given: dict[str, Any]) -> tuple[bool, bool]:
    """Whether accuracy is judged, and whether speed is. Raises UsageError for flags of a verdict that is not."""
    times = "against" in given
    judges = not times or "data" in given or "pack" in given
    own = [flag.field for flag in speed.OWN if flag.field in given]
    if own and not times:
        raise UsageError(
            f"{spelled(own[0])} is of the comparison with another bundle",
            f"name it: {spelled('against', 'OTHER.bundle')}",
        )
    if not judges and (others := [name for name in _ACCURACY if name in given]):
        raise UsageError(
            f"{spelled(others[0])} is of the verdict on accuracy, which nothing is named for",
            f"name images, {spelled('data', 'KIND:PATH')} or {spelled('pack', 'FILE')}, "
            f"or leave {spelled(others[0])} out",
        )
    return judges, times


def _say_what_would_be_done(job: GateJob | None, timing: speed.SpeedJob | None, console: Console) -> None:
    value: dict[str, Any] = {"dry_run": True}
    texts = []
    if job is not None:
        bundle, images = job.bundle, len(job.images)
        value |= {"bundle": str(bundle.path), "images": images}
        texts.append(f"{bundle.path} ({bundle.manifest.precision}) would be judged on {images} images of {job.source}")
    if timing is not None:
        value["speed"] = timing.to_json()
        texts.append(timing.text)
    console.result(value, "\n".join(texts))

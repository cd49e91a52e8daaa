"""`twins-trt predict`: masks and overlays of images."""

from __future__ import annotations

import argparse

from twins_trt.cli.console import Console
from twins_trt.errors import TwinsError
from twins_trt.verbs.predict import FLAGS, predict, resolve_prediction

EXAMPLE = (
    "twins-trt predict x.bundle street.jpg frames/ 'more/*.png' --out masks\n\n"
    "For every image NAME it writes NAME_mask.png, indexed, whose values are class indices and whose palette colours\n"
    "them, and NAME_overlay.png. Images may have any size; masks have the image's own. Images of one name from\n"
    "different folders keep their folders. An image that fails is reported, and the others are segmented (exit code 1)."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """BUNDLE, IMAGES, --out and how to run."""
    FLAGS.add_to(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Segment all images; 1 if one of them failed."""
    job = resolve_prediction(FLAGS.read(arguments))
    done = []
    for each in predict(job, progress=console.progress):
        if each.error is not None:
            _report(console, each.image, each.error)
        done.append(each)
    failed = sum(each.error is not None for each in done)
    manifest, out = job.bundle.manifest, job.request.out
    value = {
        "bundle": str(job.bundle.path),
        "model": manifest.model,
        "seeded": manifest.source.seeded,
        "engine": done[-1].engine,
        "out": out,
        "images": [each.to_json() for each in done],
        "failed": failed,
    }
    text = f"{len(done) - failed} images segmented into {out}" + (f", {failed} failed" if failed else "")
    console.result(value, text)
    return 1 if failed else 0


def _report(console: Console, image: str, error: TwinsError) -> None:
    console.note(f"error: {error}" if image in error.cause else f"error: {image}: {error}")

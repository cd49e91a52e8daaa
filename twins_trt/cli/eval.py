"""`twins-trt eval`: scores of a bundle, or of a PyTorch model, on a data set."""

from __future__ import annotations

import argparse
from typing import Any

from twins_trt.cli.console import Console
from twins_trt.models.source import FoundModel
from twins_trt.verbs.evaluate import FLAGS, EvaluationJob, resolve_evaluation, score

EXAMPLE = (
    "twins-trt eval x.bundle --data camvid:PATH --split val --json\n"
    "  twins-trt eval twins_svt-s_fpn --checkpoint F.pth --data ade20k:ADEChallengeData2016\n\n"
    "Images run as the checkpoint says that it is tested, whole or in sliding windows, at its test scale or their\n"
    "own size. Where it says nothing, ade20k is fitted into 2048x512 (--test-scale). A bundle of fixed size runs\n"
    "images of that size as they are and resizes others to it; one\n"
    "of dynamic size follows the test scale. Wherever an image is resized, only a bundle with --outputs logits\n"
    "scores as mmsegmentation does, which resizes logits; a mask can only be resized to the nearest pixel. Notes\n"
    "under the scores say what was done (in the JSON: exact, resized_images, notes). --mode runs both in windows, at\n"
    "several sizes and mirrored, or bundles in tiles."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """BUNDLE|MODEL, --data, --split, how to run, and the options of weights."""
    FLAGS.add_to(parser)
    parser.add_argument("--dry-run", action="store_true", help="open everything and say what would be scored")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Score one bundle or model."""
    job = resolve_evaluation(FLAGS.read(arguments))
    if arguments.dry_run:
        console.result(*_dry_run(job))
        return 0
    evaluation = score(job, progress=console.progress)
    console.result(evaluation.to_json(), evaluation.table())
    return 0


def _dry_run(job: EvaluationJob) -> tuple[dict[str, Any], str]:
    request, dataset = job.request, job.dataset
    runs = "PyTorch" if isinstance(job.scored, FoundModel) else request.engine
    value: dict[str, Any] = {"dry_run": True, "name": request.what, "dataset": dataset.source, "split": dataset.split}
    value |= {"images": len(dataset), "classes": list(dataset.classes), "mode": job.mode_name, "engine": runs}
    value["weights"] = None if job.weights is None else str(job.weights)
    where = f"{len(dataset)} images of {dataset.source} ({dataset.split})"
    return value, f"{request.what} would be scored on {where} with {runs}"

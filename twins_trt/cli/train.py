"""`twins-trt train`: fine-tune a model on a data set."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from twins_trt.cli.console import Console
from twins_trt.verbs.train import FLAGS, resume_request

if TYPE_CHECKING:
    from twins_trt.models.conventions import Conventions
    from twins_trt.training import TrainJob, TrainReport

EXAMPLE = (
    "twins-trt train twins_svt-s_fpn --data camvid:PATH --checkpoint F.pth --iterations 4000 --out runs/camvid\n"
    "  twins-trt train --resume runs/camvid\n"
    "  torchrun --nproc-per-node 4 -m twins_trt train twins_svt-b_fpn --data ade20k:PATH --amp bf16 --out runs/ade\n\n"
    "Starts from --checkpoint (a whole model's, or a backbone's alone), by default from the published weights, and\n"
    "treats images as it says; a classifier of another number of classes starts at random. The folder gets\n"
    "last.pth and best.pth, which every other command takes as --checkpoint, log.csv and validation.csv, and\n"
    "TensorBoard's curves. Ctrl-C saves the state, and --resume continues from it to the same losses."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """MODEL, --data, --out or --resume, the options of a training, --dry-run."""
    FLAGS.add_to(parser)
    parser.add_argument("--resume", metavar="DIR", help="continue the run in DIR, with its own options")
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be done")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Train, or resume a training."""
    request = FLAGS.read(arguments)
    resume = arguments.resume is not None
    if resume:
        request = resume_request(request, arguments.resume)
    from twins_trt.training import resolve_training, train

    if arguments.dry_run:
        job = resolve_training(request, resume=resume)
        console.result({"dry_run": True, **job.to_json()}, _job_text(job))
        return 0
    report = train(request, resume=resume, progress=console.progress)
    from twins_trt.training.step.distributed import process_rank

    if process_rank() == 0:
        console.result(report.to_json(), _report_text(report))
    return 0


def _job_text(job: TrainJob) -> str:
    options, told = job.options, job.model.conventions
    normal = told.preprocessing
    device = f"{job.processes} processes on {job.device}" if job.processes > 1 else job.device
    rows = {
        "model": f"{options.model}, {len(job.classes)} classes, from {job.weights or job.start}",
        "head": "softmax"
        if told.threshold is None
        else f"one logit, foreground where its sigmoid is above {told.threshold:g}",
        "data": f"{options.data}: {job.images} images to train on, {job.val_images} to validate on",
        "pixels": f"{normal.channels.upper()}, mean {_numbers(normal.mean)}, std {_numbers(normal.std)}{_origin(told)}",
        "padding": told.padding,
        "schedule": f"{options.iterations} iterations of {options.batch} images ({job.epochs:.1f} epochs)",
        "optimizer": f"AdamW, lr {options.lr:g} after {options.warmup} iterations of warm-up, power {options.power:g}, "
        f"weight decay {options.weight_decay:g}",
        "runs on": f"{device}, amp {options.amp}",
        "out": options.out,
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def _numbers(values: Iterable[float]) -> str:
    return "/".join(f"{value:g}" for value in values)


def _origin(told: Conventions) -> str:
    """Where the normalization comes from, in brackets."""
    fact = told.fact("mean")
    return "" if fact is None else f" ({fact.where})"


def _report_text(report: TrainReport) -> str:
    from twins_trt.training.run.report import duration

    lines = [f"{report.out}: {report.iterations} iterations, {duration(report.seconds)}"]
    if report.first_loss is not None:
        lines.append(f"loss {report.first_loss:.4f} at first, {report.last_loss:.4f} at last")
    if report.miou is not None:
        lines.append(f"mIoU {report.miou:.2f} of {report.last}, {report.best_miou:.2f} of {report.best}")
    return "\n".join(lines)

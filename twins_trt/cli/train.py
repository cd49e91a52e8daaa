"""`twins-trt train`: fine-tune a model on a data set."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from twins_trt.cli.console import Console
from twins_trt.verbs.train import FLAGS, going_on

if TYPE_CHECKING:
    from twins_trt.training import TrainJob, TrainReport, TrainStep

EXAMPLE = (
    "twins-trt train twins_svt-s_fpn --data camvid:PATH --checkpoint F.pth --iterations 4000 --out runs/camvid\n"
    "  twins-trt train --resume runs/camvid\n"
    "  torchrun --nproc-per-node 4 -m twins_trt train twins_svt-b_fpn --data ade20k:PATH --amp bf16 --out runs/ade\n\n"
    "Starts from --checkpoint (a whole model's, or a backbone's alone), by default from the published weights; a\n"
    "classifier of another number of classes starts anew. The folder gets last.pth and best.pth, which every other\n"
    "command takes as --checkpoint, log.csv and validation.csv, and TensorBoard's curves. Ctrl-C saves what --resume\n"
    "goes on from, to the same losses."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """MODEL, --data, --out or --resume, and what else a training can be asked to be."""
    FLAGS.add_to(parser)
    parser.add_argument("--resume", metavar="DIR", help="go on with the run in DIR, with its own options")
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be done")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Train, or go on training."""
    request = FLAGS.read(arguments)
    resume = arguments.resume is not None
    if resume:
        request = going_on(request, arguments.resume)
    from twins_trt.training import resolve_training, train

    plan = resolve_training(request, resume=resume)
    if arguments.dry_run:
        console.result({"dry_run": True, **plan.to_json()}, _plan_text(plan))
        return 0

    def progress(step: TrainStep) -> None:
        console.progress(*_progress(step), step.share)

    report = train(request, resume=resume, progress=progress)
    if plan.rank == 0:
        console.result(report.to_json(), _report_text(report))
    return 0


def _progress(step: TrainStep) -> tuple[str, str]:
    parts = [f"iteration {step.iteration} of {step.iterations}"]
    if step.loss is not None:
        parts.append(f"loss {step.loss:.4f}")
    if step.miou is not None:
        parts.append(f"mIoU {step.miou:.2f}")
    if step.seconds_left is not None:
        parts.append(f"{_duration(step.seconds_left)} left")
    return step.phase, ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def _plan_text(plan: TrainJob) -> str:
    options = plan.options
    on = f"{plan.processes} processes on {plan.device}" if plan.processes > 1 else plan.device
    rows = {
        "model": f"{options.model}, {len(plan.classes)} classes, from {plan.weights or plan.start}",
        "data": f"{options.data}: {plan.images} images to train on, {plan.val_images} to validate on",
        "schedule": f"{options.iterations} iterations of {options.batch} images ({plan.epochs:.1f} epochs)",
        "optimizer": f"AdamW, lr {options.lr:g} after {options.warmup} iterations of warm-up, power {options.power:g}, "
        f"weight decay {options.weight_decay:g}",
        "runs on": f"{on}, amp {options.amp}",
        "out": options.out,
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def _report_text(report: TrainReport) -> str:
    lines = [f"{report.out}: {report.iterations} iterations, {_duration(report.seconds)}"]
    if report.first_loss is not None:
        lines.append(f"loss {report.first_loss:.4f} at first, {report.last_loss:.4f} at last")
    if report.miou is not None:
        lines.append(f"mIoU {report.miou:.2f} of {report.last}, {report.best_miou:.2f} of {report.best}")
    return "\n".join(lines)

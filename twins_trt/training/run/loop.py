"""The training loop: it reads, steps, logs, validates and saves, and stops so that it can be resumed."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from twins_trt.codec import decode, encode
from twins_trt.data.loading import load_in_order
from twins_trt.evaluation import EvaluationOptions, Scores, evaluate_model
from twins_trt.models.segmentor import Segmentor
from twins_trt.progress import Progress, silent
from twins_trt.training.data.augment import Augmentation
from twins_trt.training.data.batches import Batch, BatchReader, Draws
from twins_trt.training.options import TrainOptions
from twins_trt.training.qat import FakeQuantized, attach, read_amax, read_plan
from twins_trt.training.run.folder import (
    BEST,
    LAST,
    MODEL,
    OPTIONS,
    PLAN,
    Log,
    load_state,
    save_checkpoint,
    save_state,
    save_text,
)
from twins_trt.training.run.job import TrainJob, job_with_weights, open_datasets
from twins_trt.training.run.report import TrainReport, TrainStep
from twins_trt.training.run.start import Start, StartFile, start_weights
from twins_trt.training.run.stopping import StopRequest
from twins_trt.training.step.distributed import World, joined
from twins_trt.training.step.trainer import Trainer, on_device
from twins_trt.verbs.train import TrainRequest

log = logging.getLogger("twins_trt")

OnTrainStep = Callable[[TrainStep], None]

OBSERVED_IMAGES = 64  # a quantized run without a range file takes its ranges from these
_SPEED_STEPS = 50  # the time that is left is estimated from the last so many steps


def train(
    request: TrainRequest,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    observe: OnTrainStep | None = None,
) -> TrainReport:
    """Trains a model and keeps everything in the folder `request.out`.

        report = train(TrainRequest("twins_svt-s_fpn", "camvid:PATH", "runs/camvid", iterations=4000))
        report = train(TrainRequest(out="runs/camvid"), resume=True)

    resume: continue the run in that folder, bit for bit as if it had not stopped (on a CPU; some CUDA kernels add in
    no fixed order). Fields that the request leaves out are the run's own; others may differ in `CHANGEABLE` only.
    progress: called with `train` or `validate`, a detail in words and the share of it that is done, after every step
    and every validated image, in the first process. observe: called beside it with the numbers;
    its mIoU is that of the last finished validation.
    Under `torchrun` every process calls this function; the first one writes, validates and reports.
    Ctrl-C and SIGTERM let the running step end and the state be saved before they take effect.

    Raises `UsageError` for a request that cannot be or is not the run's, `DataError` and `ImageError` for data that
    does not fit its layout, `CheckpointError` for weights that do not fit the model, `TrainingError` where the loss is
    no longer finite, the folder cannot be written, or holds another run, `MissingDependencyError` without OpenCV.
    """
    job, file = job_with_weights(request, resume=resume)
    options, started = job.options, time.perf_counter()
    with StopRequest() as stop, joined(options.device) as world, _own_randomness(options, world):
        run = _Run(job, file, world, stop, progress or silent, observe, resume=resume)
        del file  # its tensors are in the model
        finished = run.finish()
    if not finished:
        if world.first:
            where = f"{run.iteration} of {options.iterations}"
            log.warning("stopped after iteration %s; resume it: twins-trt train --resume %s", where, options.out)
        stop.follow()
    tenth = max(1, len(run.losses) // 10)
    return TrainReport(
        out=options.out,
        last=str(Path(options.out) / LAST),
        best=None if run.best is None else str(Path(options.out) / BEST),
        start=run.start,
        iterations=run.iteration,
        resumed=run.resumed,
        first_loss=_mean(run.losses[:tenth]),
        last_loss=_mean(run.losses[-tenth:]),
        miou=run.miou,
        best_miou=run.best,
        seconds=round(time.perf_counter() - started, 3),
    )


class _Stopped(Exception):
    """Ends a validation early."""


class _Run:
    """One call of `train`: the trainer, and what was reached so far."""

    def __init__(
        self,
        job: TrainJob,
        file: StartFile | None,
        world: World,
        stop: StopRequest,
        progress: Progress,
        observe: OnTrainStep | None,
        *,
        resume: bool,
    ) -> None:
        self.options = options = job.options
        self.folder = Path(options.out)
        self._world, self._stop, self._progress, self._observe = world, stop, progress, observe
        dataset, val = open_datasets(options)
        self._dataset = job.model.conventions.labels_of(dataset)
        self._val = None if val is None else job.model.conventions.labels_of(val)
        self._model = job.model
        model = job.model.build()
        self.miou: float | None = None
        self.best: float | None = None
        self._validated = 0  # the iteration of the last validation
        self.losses: list[float] = []
        self._seconds: deque[float] = deque(maxlen=_SPEED_STEPS)
        self._quantized: FakeQuantized | None = None
        if resume:
            state = load_state(self.folder)
            self.start = decode(Start, state["start"])
            self.miou, self.best, self._validated = state["miou"], state["best"], state["validated"]
            self._quantize(model, self.folder / PLAN, amax=state["amax"])
            self._trainer = Trainer(model, options, world)
            self._trainer.load_state_dict(state["trainer"])
        else:
            self.start = start_weights(model, file)
            amax = None if options.calibration is None else read_amax(options.calibration)
            self._quantize(model, options.plan, amax=amax)
            self._trainer = Trainer(model, options, world)
        self.resumed = self.iteration
        if world.first and not resume:
            save_text(self.folder / MODEL, job.model.to_json())
            if options.plan is not None:
                save_text(self.folder / PLAN, Path(options.plan).read_text(encoding="utf-8"))
            self._save()
        if world.first:  # last, so that a folder with options holds everything that they name
            save_text(self.folder / OPTIONS, options.to_json())

    @property
    def iteration(self) -> int:
        return self._trainer.iteration

    def finish(self) -> bool:
        """Trains to the end; False where a signal asked to stop, with the state saved."""
        with closing(Log(self.folder, iteration=self.iteration) if self._world.first else _NoLog()) as self._log:
            batches = self._batches(self.iteration, self.options.iterations)
            try:
                while True:
                    due = self._is_due(self.options.validate_every)
                    validating = bool(self._val) and due and self._validated < self.iteration
                    if validating:
                        self._validate()
                    stopping = self._wants_to_stop()
                    ended = self.iteration == self.options.iterations
                    saving = validating or stopping or ended or self._is_due(self.options.save_every)
                    if self._world.first and saving:
                        self._log.flush()
                        self._save()
                    if stopping or ended:
                        return ended
                    self._step(batches)
            finally:
                self._trainer.leave()
                if hasattr(batches, "close"):  # ends the reading processes now
                    batches.close()

    def _quantize(self, model: Segmentor, path: str | Path | None, *, amax: Mapping[str, float] | None) -> None:
        """Makes the model round as the plan at `path`. amax: ranges by tensor; None observes the first pictures."""
        options = self.options
        if options.plan is None or path is None:
            return
        plan = read_plan(path, model=options.model)
        quantized = attach(model, plan, size=options.crop, amax=amax)
        if quantized.observing:
            model.to(self._world.device).eval()
            count = -(-OBSERVED_IMAGES // options.batch)
            # Every process sees the same pictures, so that all find the same ranges.
            for batch in self._batches(0, count, share=False):
                with torch.inference_mode():
                    model(on_device(batch, self._world.device, model.conventions.preprocessing)[0])
            quantized.choose_ranges()
        log.info("%d places of the plan run in INT8", len(quantized.sites))
        self._quantized = quantized

    def _step(self, batches: Iterator[Batch]) -> None:
        started, rate = time.perf_counter(), self._trainer.rate
        losses = self._trainer.step(next(batches))
        seconds = time.perf_counter() - started
        self.losses.append(losses.loss)
        self._seconds.append(seconds)
        point = self.iteration % self.options.log_every == 0 or self.iteration == self.options.iterations
        self._log.step(self.iteration, {**asdict(losses), "lr": rate, "seconds": round(seconds, 4)}, point=point)
        self._tell("train", self.iteration / self.options.iterations)

    def _validate(self) -> None:
        if self._world.first:
            assert self._val is not None  # without one, nothing is due
            try:
                with self._trainer.weights_to_use() as model:
                    scores = evaluate_model(
                        model,
                        self._val.first(self.options.val_limit),
                        mode=self._model.inference_mode,
                        preprocessing=self._model.conventions.preprocessing,
                        options=EvaluationOptions(progress=self._validating),
                    ).scores
            except _Stopped:
                pass  # the resumed run validates
            else:
                self._keep(scores)
        self._world.wait()

    def _keep(self, scores: Scores) -> None:
        """Writes the best weights before the state that names them: a run that is killed in between validates
        again."""
        self.miou, self._validated = scores.miou, self.iteration
        self._log.validation(self.iteration, {"miou": scores.miou, "aacc": scores.aacc, "macc": scores.macc})
        if self.best is None or scores.miou > self.best:
            self.best = scores.miou
            self._save_weights(BEST)

    def _validating(self, step: str, detail: str, share: float | None) -> None:
        self._tell("validate", share or 0.0, scored=detail)
        if self._stop.wanted is not None:
            raise _Stopped

    def _save(self) -> None:
        """Saves the state before the last weights: a run that is killed in between resumes from it and writes them."""
        state = {
            "trainer": self._trainer.state_dict(),
            "start": encode(self.start),
            "miou": self.miou,
            "best": self.best,
            "validated": self._validated,
            "amax": None if self._quantized is None else self._quantized.amax(),
        }
        save_state(self.folder, state)
        if self.iteration:
            self._save_weights(LAST)

    def _save_weights(self, name: str) -> None:
        with self._trainer.weights_to_use() as model:
            save_checkpoint(
                self.folder / name,
                model.state_dict(),
                model=self._model,
                options=self.options,
                iteration=self.iteration,
                miou=self.miou if self._validated == self.iteration else None,
            )

    def _batches(self, start: int, stop: int, *, share: bool = True) -> Iterator[Batch]:
        """The batches of iterations from `start` to `stop`; this process's share of each, or all of it."""
        options = self.options
        draws = Draws(
            self._dataset.items,
            seed=options.seed,
            batch=options.batch,
            start=start,
            stop=stop,
            rank=self._world.rank if share else 0,
            world=self._world.size if share else 1,
        )
        augmentation = Augmentation(
            crop=options.crop,
            scale=options.scale,
            ratios=options.ratios,
            cat_max_ratio=options.cat_max_ratio,
            flip=options.flip,
            distort=options.distort,
        )
        # The workers get the reader with every batch: without the list of items it is a few kilobytes.
        read = replace(self._dataset, items=()).read
        return load_in_order(BatchReader(read, augmentation, options.seed), draws, workers=options.workers)

    def _is_due(self, every: int) -> bool:
        """Whether something that happens every `every` iterations, and at the end, happens now."""
        now, last = self.iteration, self.options.iterations
        return now > 0 and (now == last or now % every == 0)

    def _wants_to_stop(self) -> bool:
        """Whether any process was asked to stop: all stop after the same iteration."""
        wanted = torch.tensor(float(self._stop.wanted is not None), device=self._world.device)
        return bool(self._world.total(wanted))

    def _tell(self, phase: str, share: float, *, scored: str | None = None) -> None:
        """Reports the progress of a phase. scored: the scores of the running validation, in words."""
        if not self._world.first:
            return
        iterations = self.options.iterations
        left = None
        if self._seconds:
            left = (iterations - self.iteration) * sum(self._seconds) / len(self._seconds)
        step = TrainStep(
            phase=phase,
            iteration=self.iteration,
            iterations=iterations,
            share=share,
            loss=self.losses[-1] if self.losses else None,
            miou=self.miou,
            seconds_left=left,
        )
        self._progress(phase, step.in_words(scored), share)
        if self._observe is not None:
            self._observe(step)


class _NoLog:
    """The log of a process that does not write one."""

    def step(self, iteration: int, values: dict[str, float], *, point: bool) -> None: ...

    def validation(self, iteration: int, values: dict[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


@contextmanager
def _own_randomness(options: TrainOptions, world: World) -> Iterator[None]:
    """Sets torch's generators and threads for the run, and puts them back after it."""
    threads = torch.get_num_threads()
    devices = [world.device] if world.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(options.seed)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None

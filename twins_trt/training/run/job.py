"""What a training run will do, checked before any step of it: model, data, device, and the file that it starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twins_trt.codec import encode
from twins_trt.data import Dataset, open_dataset
from twins_trt.errors import DataError, UsageError
from twins_trt.models.telling import named
from twins_trt.models.zoo import is_model
from twins_trt.spelling import spelled
from twins_trt.training.options import TrainOptions, resolve_options
from twins_trt.training.qat import read_plan
from twins_trt.training.run.folder import check_new, load_model, resumed
from twins_trt.training.run.start import StartFile, read_start, told_start, weights_file
from twins_trt.training.run.trained import (
    TrainedModel,
    check_learnable,
    decide_model,
    earlier_model,
)
from twins_trt.training.step.distributed import choose_device, process_rank, world_size
from twins_trt.verbs.train import TrainRequest


@dataclass(frozen=True)
class TrainJob:
    """What a run will do.

    start: `checkpoint`, `scratch` or `resumed`. weights: the file of `checkpoint`; None for the others. model: what is
    trained, and by which conventions. images, val_images: how many there are. processes: that train together. rank: of
    this process, counted from 0.
    """

    options: TrainOptions
    start: str
    weights: Path | None
    model: TrainedModel
    images: int
    val_images: int
    classes: tuple[str, ...]
    processes: int
    rank: int
    device: str

    @property
    def epochs(self) -> float:
        """How often each image is seen."""
        return self.options.iterations * self.options.batch / self.images

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        told = self.model.conventions
        return {
            **encode(replace(self, weights=None)),
            "weights": None if self.weights is None else str(self.weights),
            "model": self.model.spec.name,
            "conventions": {**encode(told), "preprocessing": told.preprocessing.to_json()},
            "epochs": round(self.epochs, 2),
        }


def resolve_training(request: TrainRequest, *, resume: bool = False) -> TrainJob:
    """The job of a request: the file that it starts from is read and checked, and the data is opened.

    Raises as `train` does for every error that shows beforehand.
    """
    return job_with_weights(request, resume=resume)[0]


def job_with_weights(request: TrainRequest, *, resume: bool) -> tuple[TrainJob, StartFile | None]:
    """The job of a request, and the file that it starts from: None from scratch, and for a resumed run."""
    file = None
    if resume:
        options = resumed(request)
    else:
        file = _told(request)
        options = resolve_options(request, spec=None if file is None else file.spec)
        check_new(options.out)
    dataset, val = open_datasets(options)
    if resume:
        model = load_model(options.out) or earlier_model(options, dataset)
    else:
        path = weights_file(options)
        if file is None and path is not None:
            file = read_start(
                path,
                model=options.model,
                padding=options.padding,
                weights=options.weights,
                conventions=options.conventions,
            )
        if file is not None and request.crop is None:
            options = replace(options, crop=file.spec.crop_size)
        model = decide_model(options, file, dataset)
        options = _decided(options, request, model)
        if options.plan is not None:
            read_plan(options.plan, model=options.model)
    told = model.conventions
    dataset, val = told.labels_of(dataset), None if val is None else told.labels_of(val)
    processes = world_size()
    if options.batch % processes:
        raise UsageError(f"a batch of {options.batch} over {processes} processes", "give a multiple of their number")
    device = choose_device(options.device).type
    if options.amp == "fp16" and device != "cuda":
        raise UsageError("float16 trains on CUDA only", f"use {spelled('amp', 'bf16')}, or off")
    if not resume:
        check_learnable(dataset)
    job = TrainJob(
        options=options,
        start="resumed" if resume else "checkpoint" if file else "scratch",
        weights=None if file is None else file.path,
        model=model,
        images=len(dataset),
        val_images=0 if val is None else len(val.first(options.val_limit)),
        classes=dataset.classes,
        processes=processes,
        rank=process_rank(),
        device=device,
    )
    return job, file


def open_datasets(options: TrainOptions) -> tuple[Dataset, Dataset | None]:
    """The images to train on, and the images to validate on, None without a split for them.

    Raises `DataError` where classes or labels are missing.
    """
    dataset = open_dataset(options.data, split=options.split)
    if not dataset.classes:
        raise DataError(f"{options.data} does not name its classes", "add classes.txt, one name a line in label order")
    for each in (dataset, val := open_dataset(options.data, split=options.val_split) if options.val_split else None):
        if each is not None and not each.labelled:
            raise DataError(f"{options.data} ({each.split}) has no labels", "add a labels/ folder")
    return dataset, val


def _told(request: TrainRequest) -> StartFile | None:
    """The checkpoint, where it alone tells the model."""
    if request.model is None and request.checkpoint is None:
        return None  # an error that `resolve_options` words
    model, checkpoint = named(request.model, request.checkpoint)
    if checkpoint is None or request.scratch or (model is not None and is_model(model)):
        return None
    return told_start(checkpoint, request, model=model)


def _decided(options: TrainOptions, request: TrainRequest, model: TrainedModel) -> TrainOptions:
    """The options, with what the file that the run starts from decides of them."""
    told = model.conventions
    scale = told.preprocessing.test_scale if request.scale is None else options.scale
    return replace(options, padding=told.padding, binary=told.threshold is not None, scale=scale)

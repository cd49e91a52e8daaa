"""What a training run will do, checked before any weight or picture is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twins_trt.codec import encode
from twins_trt.data import Dataset, open_dataset
from twins_trt.errors import DataError, UsageError
from twins_trt.spelling import spelled
from twins_trt.training.options import TrainOptions, resolve_options
from twins_trt.training.qat import read_plan
from twins_trt.training.run.folder import check_new, resumed
from twins_trt.training.run.start import weights_file
from twins_trt.training.step.distributed import choose_device, process_rank, world_size
from twins_trt.verbs.train import TrainRequest


@dataclass(frozen=True)
class TrainJob:
    """What a run will do.

    start: `checkpoint`, `scratch` or `resumed`. weights: the file of `checkpoint`; None for the others. images,
    val_images: how many there are. processes: that train together. rank: of this process, counted from 0.
    """

    options: TrainOptions
    start: str
    weights: Path | None
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
        weights = None if self.weights is None else str(self.weights)
        return {**encode(self), "weights": weights, "epochs": round(self.epochs, 2)}


def resolve_training(request: TrainRequest, *, resume: bool = False) -> TrainJob:
    """The job of a request. Neither weights nor pictures are read.

    Raises as `train` does for every error that shows beforehand.
    """
    if resume:
        options = resumed(request)
    else:
        options = resolve_options(request)
        check_new(options.out)
    weights = None if resume else weights_file(options)
    if options.plan is not None and not resume:
        read_plan(options.plan, model=options.model)
    dataset, val = open_datasets(options)
    processes = world_size()
    if options.batch % processes:
        raise UsageError(f"a batch of {options.batch} over {processes} processes", "give a multiple of their number")
    device = choose_device(options.device).type
    if options.amp == "fp16" and device != "cuda":
        raise UsageError("float16 trains on CUDA only", f"use {spelled('amp', 'bf16')}, or off")
    return TrainJob(
        options=options,
        start="resumed" if resume else "checkpoint" if weights else "scratch",
        weights=weights,
        images=len(dataset),
        val_images=0 if val is None else len(val.first(options.val_limit)),
        classes=dataset.classes,
        processes=processes,
        rank=process_rank(),
        device=device,
    )


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

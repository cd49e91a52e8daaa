"""What a run trains and by which conventions: decided from the file that it starts from, its flags and its data."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from twins_trt.codec import decode, encode
from twins_trt.data.datasets import Dataset
from twins_trt.errors import DataError, TrainingError, UsageError
from twins_trt.inference.modes import InferenceMode
from twins_trt.models.convention_flags import read_flags
from twins_trt.models.conventions import Conventions, Fact, Origin, TestMode
from twins_trt.models.mmseg_model import THRESHOLD
from twins_trt.models.read_conventions import read_conventions
from twins_trt.models.segmentor import Segmentor
from twins_trt.models.widths import check_heads
from twins_trt.models.zoo import ModelSpec, get_spec
from twins_trt.spelling import spelled
from twins_trt.training.options import TrainOptions
from twins_trt.training.run.start import StartFile
from twins_trt.verbs.groups.images import scale_of

log = logging.getLogger("twins_trt")

_OF_THE_LABELS = ("reduce_zero_label", "ignore_index", "test_scale", "keep_ratio", "test_mode")
"""Conventions that belong to a data set: those of other classes say nothing of this one."""


@dataclass(frozen=True)
class TrainedModel:
    """The model of a run, kept in its folder.

    num_classes: how many values a mask has. conventions: of its images, labels and scores; they go into every
    checkpoint of the run.
    """

    spec: ModelSpec
    num_classes: int
    conventions: Conventions

    @property
    def inference_mode(self) -> InferenceMode:
        """How the model is validated: as its conventions say that it is tested."""
        mode = self.conventions.test_mode
        if mode.crop is None or mode.stride is None:
            return InferenceMode()
        return InferenceMode(mode.name, crop=mode.crop, stride=mode.stride)

    def build(self) -> Segmentor:
        """The model with PyTorch's initial weights."""
        told = self.conventions
        model = Segmentor(self.spec, self.num_classes, padding=told.padding, threshold=told.threshold)
        model.conventions = told
        return model

    def to_json(self) -> str:
        """As indented JSON text."""
        return json.dumps(encode(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> TrainedModel:
        """The inverse of `to_json`. where: the file's name, for errors. Raises `TrainingError`."""
        try:
            return decode(cls, json.loads(text))
        except (ValueError, UsageError) as error:
            raise TrainingError(f"{where} cannot be read: {error}", "start the run again") from error


def earlier_model(options: TrainOptions, dataset: Dataset) -> TrainedModel:
    """The model of a run that an earlier version started: the zoo's, with the conventions that it assumed."""
    told, _ = read_conventions(
        {}, origin="", padding=options.padding or "parity", num_logits=len(dataset.classes), flags={}
    )
    shown = replace(told.preprocessing, test_scale=scale_of(options.data, None))
    told = replace(told, preprocessing=shown, train_size=options.crop, classes=dataset.classes, palette=dataset.palette)
    return TrainedModel(get_spec(options.model), len(dataset.classes), told)


def decide_model(options: TrainOptions, file: StartFile | None, dataset: Dataset) -> TrainedModel:
    """The model of a new run. dataset: as it was opened, with its own classes.

    Raises `UsageError` for a head that cannot learn these classes, and for a threshold that is none.
    """
    threshold, origin = _threshold(options, file, dataset)
    named = dataset if threshold is None else dataset.with_background()
    count = len(named.classes)
    flags = {name: value for name, value in options.conventions.items() if name != "threshold"}
    if file is None:
        told, numbers = read_conventions(
            {}, origin="", padding=options.padding or "parity", num_logits=count, flags=flags
        )
        spec = replace(get_spec(options.model), **numbers.spec_changes)
        check_heads(spec, options.model)
    else:
        told, spec = file.conventions, file.spec
    told = _of_this_data(told, named, options, same=file is not None and _same_classes(file, named.classes))
    facts = tuple(fact for fact in told.facts if fact.name not in ("threshold", "classes", "palette", "train_size"))
    if threshold is not None:
        facts = (*facts, Fact("threshold", f"{threshold:g}", origin))
    told = replace(
        told,
        threshold=threshold,
        train_size=options.crop,
        classes=named.classes,
        palette=named.palette,
        miou=None,
        facts=facts,
    )
    return TrainedModel(spec, count, told)


def check_learnable(dataset: Dataset) -> None:
    """Raises `DataError` where all labels together hold a single class: the loss falls to 0, and nothing is learned.

    Reads labels until two classes were seen, mostly those of one image.
    """
    seen: set[int] = set()
    for item in dataset.items:
        label = dataset.read(item).label
        assert label is not None  # `open_datasets` looked
        seen |= set(np.unique(label).tolist()) - {Dataset.ignore_index}
        if len(seen) > 1:
            return
    what = f"only pixels of {dataset.classes[min(seen)]} ({min(seen)})" if seen else "no pixel of any class"
    raise DataError(
        f"the labels of {dataset.source} ({dataset.split}) hold {what}: nothing is to be learned from them",
        f"label pixels {_numbered(dataset.classes)}; {Dataset.ignore_index} means that a pixel does not count",
    )


def _numbered(classes: tuple[str, ...]) -> str:
    shown = [f"{index} for {name}" for index, name in enumerate(classes[:3])]
    return ", ".join(shown) + (", ..." if len(classes) > 3 else "")


def _threshold(options: TrainOptions, file: StartFile | None, dataset: Dataset) -> tuple[float | None, Origin]:
    """The threshold of a head with one logit, and where it comes from; None for softmax."""
    asked: float | None = read_flags(options.conventions).get("threshold")
    told = None if file is None else file.conventions.threshold
    count = len(dataset.classes)
    if not (options.binary or asked is not None or (told is not None and count <= 2)):
        if count == 1:
            raise UsageError(
                f"{options.data} names one class, {dataset.classes[0]}: with softmax its probability is 1 everywhere, "
                "the loss is 0, and nothing is learned",
                f"{spelled('binary', True)}, with labels 0 for the rest and 1 for {dataset.classes[0]}; or name a "
                "second class in classes.txt",
            )
        return None, "default"
    if count > 2:
        raise UsageError(
            f"a head with one logit tells 2 classes apart, {options.data} has {count}",
            f"leave {spelled('binary') if options.binary else 'the threshold'} out",
        )
    if asked is not None:
        return asked, "flag"
    # mmseg's default, so that a configuration that is silent means the same. It is also nearer to what mIoU wants than
    # a half: with calibrated probabilities the IoU is largest at the threshold IoU / (1 + IoU).
    return (THRESHOLD, "default") if told is None else (told, "file")


def _same_classes(file: StartFile, classes: tuple[str, ...]) -> bool:
    """Whether the file's classes are these, as far as it names them."""
    if file.num_classes != len(classes):
        return False
    named = file.conventions.classes
    return named is None or _letters(named) == _letters(classes)


def _letters(names: Iterable[str]) -> list[str]:
    return ["".join(letter for letter in name.lower() if letter.isalnum()) for name in names]


def _of_this_data(told: Conventions, dataset: Dataset, options: TrainOptions, *, same: bool) -> Conventions:
    """The conventions, without what the file says of the labels and images of other classes.

    same: whether the file's classes are those of the data. Only `folder:` data takes label conventions: CamVid and
    ADE20K have their own.
    """

    def holds(name: str) -> bool:
        return same or name in options.conventions

    own = not options.data.startswith("folder:")
    reduced = dataset.reduce_zero if own else bool(told.reduce_zero_label)
    ignored = told.ignore_index
    if own:
        if holds("reduce_zero_label"):
            dataset.with_conventions(reduce_zero_label=told.reduce_zero_label)  # says a contradiction
        ignored = Dataset.ignore_index if dataset.void is None else dataset.void
    elif not holds("ignore_index"):
        ignored = Dataset.ignore_index
    if not own and reduced and not holds("reduce_zero_label"):
        reduced = False
        log.warning(
            "the checkpoint counts labels from 1 (reduce_zero_label), but has other classes than %s, whose labels "
            "count from 0 unless you say otherwise: %s",
            options.data,
            spelled("conventions", "reduce_zero_label=true"),
        )
    stated = told.fact("test_scale")
    scaled = holds("test_scale") and stated is not None and stated.origin in ("file", "flag")
    shown = replace(
        told.preprocessing,
        test_scale=told.preprocessing.test_scale if scaled else scale_of(options.data, None),
        keep_ratio=told.preprocessing.keep_ratio if scaled else True,
    )
    return replace(
        told,
        preprocessing=shown,
        reduce_zero_label=reduced,
        ignore_index=ignored,
        test_mode=told.test_mode if holds("test_mode") else TestMode(),
        facts=tuple(fact for fact in told.facts if fact.name not in _OF_THE_LABELS or holds(fact.name)),
    )

"""Scoring a PyTorch model, a network that returns logits, or anything that returns masks, over a data set."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twins_trt.data.datasets import Dataset, Sample
from twins_trt.data.images import UInt8Array
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.errors import DataError, EngineError, missing
from twins_trt.evaluation.metrics import ConfusionMatrix, Scores
from twins_trt.inference.modes import InferenceMode, Logits, PredictLogits, inference_mode, predict_mask
from twins_trt.progress import Progress, silent
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("twins_trt")

# observe(sample, mask, matrix): after every image, with its mask and the confusion matrix of this image alone.
OnImage = Callable[[Sample, UInt8Array, ConfusionMatrix], None]


@dataclass(frozen=True)
class EvaluationOptions:
    """How a data set is evaluated; nothing here changes the scores.

    workers: processes that read images ahead. progress, observe: called after every image.
    """

    workers: int = 0
    progress: Progress = silent
    observe: OnImage | None = None


@dataclass(frozen=True)
class EvalResult:
    """The scores of one evaluation, and what they are of.

    name: of the model or engine. dataset, split: as opened. classes: names, empty if the data set has none.
    mode: how the masks came about. images: how many. seconds: wall time of the whole evaluation, reading included.
    preprocessing: what was done to the images; None where the predictor prepares them itself.
    """

    name: str
    dataset: str
    split: str
    classes: tuple[str, ...]
    mode: str
    images: int
    seconds: float
    scores: Scores
    preprocessing: Preprocessing | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {
            "name": self.name,
            "dataset": self.dataset,
            "split": self.split,
            "classes": list(self.classes),
            "mode": self.mode,
            "images": self.images,
            "seconds": self.seconds,
            "scores": self.scores.to_json(),
            "preprocessing": None if self.preprocessing is None else self.preprocessing.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EvalResult:
        """The inverse of `to_json`."""
        plain = dict(values)
        plain["classes"] = tuple(plain["classes"])
        plain["scores"] = Scores.from_json(plain["scores"])
        if plain["preprocessing"] is not None:
            plain["preprocessing"] = Preprocessing.from_json(plain["preprocessing"])
        return cls(**plain)

    def table(self) -> str:
        """The scores of every class under one line that says what they are of."""
        head = f"{self.name} on {self.dataset} ({self.split}), {self.mode}, {self.images} images, {self.seconds:.1f} s"
        return f"{head}\n{self.scores.table(self.classes)}"


def evaluate_model(
    model: nn.Module,
    dataset: Dataset,
    *,
    mode: str | InferenceMode = "whole",
    preprocessing: Preprocessing | None = None,
    name: str | None = None,
    options: EvaluationOptions | None = None,
) -> EvalResult:
    """Scores a PyTorch model with mmsegmentation's test pipeline, one image at a time, on the device it lies on.

    model: as `build_model` makes it (float32 [N, 3, H, W] -> logits). mode: `whole`, `slide`, `ms_flip`,
    `slide_ms_flip` or an InferenceMode. preprocessing: by default the checkpoint's own, or mmseg's normalization at the
    image's own size where it says nothing; ADE20K is scored with `ADE20K_TEST`.
    Raises DataError if the data set has no labels or other classes than the model, ImageError on a broken image.
    """
    try:
        import torch
    except ImportError as error:
        raise missing("torch", extra="build", purpose="evaluating a PyTorch model") from error

    num_classes = getattr(model, "num_classes", None)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    warn_of_other_classes(tuple(getattr(getattr(model, "meta", None), "classes", None) or ()), dataset)
    spec = getattr(model, "spec", None)

    told = getattr(model, "conventions", None)
    class_logits = getattr(model, "class_logits", lambda logits: logits)

    def predict(pixels: npt.NDArray[np.float32]) -> Logits:
        with torch.inference_mode():
            return class_logits(model(torch.from_numpy(pixels).to(device)))

    was_training = model.training
    model.eval()
    try:
        return evaluate_logits(
            predict,
            dataset,
            mode=mode,
            preprocessing=preprocessing or (None if told is None else told.preprocessing),
            threshold=getattr(model, "threshold", None),
            name=name or (spec.name if spec is not None else type(model).__name__),
            num_classes=num_classes,
            options=options,
        )
    finally:
        model.train(was_training)


def evaluate_logits(
    predict: PredictLogits,
    dataset: Dataset,
    *,
    mode: str | InferenceMode = "whole",
    preprocessing: Preprocessing | None = None,
    threshold: float | None = None,
    name: str = "logits",
    num_classes: int | None = None,
    options: EvaluationOptions | None = None,
) -> EvalResult:
    """Scores a network: float32 [1, 3, H, W], normalized RGB -> logits [1, C, h, w] (NumPy or torch).

    num_classes: C; by default as many as the data set names. threshold: as `predict_mask` takes it. The other arguments
    are those of `evaluate_model`.
    """
    mode = inference_mode(mode)
    preprocessing = preprocessing or Preprocessing()

    def predict_whole(image: UInt8Array) -> UInt8Array:
        return predict_mask(predict, image, preprocessing=preprocessing, mode=mode, threshold=threshold)

    result = evaluate_masks(predict_whole, dataset, name=name, mode=mode.name, num_classes=num_classes, options=options)
    return replace(result, preprocessing=preprocessing)


def evaluate_masks(
    predict: Callable[[UInt8Array], npt.ArrayLike],
    dataset: Dataset,
    *,
    name: str = "masks",
    mode: str = "whole",
    num_classes: int | None = None,
    options: EvaluationOptions | None = None,
) -> EvalResult:
    """Scores anything that segments an image: uint8 [H, W, 3], RGB -> class indices [H, W]: a bundle, an engine.

    name, mode: only written into the result. num_classes: by default as many as the data set names.
    Raises DataError as `evaluate_model` does, EngineError if a mask has another size than its image or a class that the
    data set does not have.
    """
    options = options or EvaluationOptions()
    total = ConfusionMatrix(_class_count(dataset, num_classes))
    start = time.perf_counter()
    samples = dataset.load(workers=options.workers)
    done = 0
    try:
        for sample in samples:
            mask = _checked_mask(predict(sample.image), sample, total.num_classes)
            matrix = ConfusionMatrix.of(mask, _checked_label(sample, total.num_classes), num_classes=total.num_classes)
            total.counts += matrix.counts
            done += 1
            if options.observe is not None:
                options.observe(sample, mask, matrix)
            miou = total.scores().miou  # of what has been counted so far
            options.progress("evaluate", f"{done} of {len(dataset)} images, mIoU {miou:.2f}", done / len(dataset))
    finally:
        # Ends the reading processes now when a prediction fails, not when the generator is collected.
        if hasattr(samples, "close"):
            samples.close()
    if not total.pixels:
        raise DataError(f"no pixel of {dataset.source} ({dataset.split}) is labelled", "check the label files")
    return EvalResult(
        name=name,
        dataset=dataset.source,
        split=dataset.split,
        classes=dataset.classes,
        mode=mode,
        images=done,
        seconds=time.perf_counter() - start,
        scores=total.scores(),
    )


def _class_count(dataset: Dataset, num_classes: int | None) -> int:
    if not dataset.labelled:
        raise DataError(f"{dataset.source} ({dataset.split}) has no labels to score against", "add a labels/ folder")
    named = len(dataset.classes)
    if num_classes is None and not named:
        raise DataError(f"{dataset.source} does not say how many classes it has", "add classes.txt, one name a line")
    if num_classes is not None and named and num_classes != named:
        raise DataError(
            f"the model has {num_classes} classes, {dataset.source} has {named}",
            f"use a model trained on these classes ({spelled('num_classes', named)})",
        )
    return num_classes or named


def _checked_mask(mask: npt.ArrayLike, sample: Sample, num_classes: int) -> UInt8Array:
    values = np.asarray(mask)
    if values.shape != sample.image.shape[:2] or values.dtype.kind not in "ui":
        raise EngineError(
            f"the mask of {sample.name} is {values.dtype} {list(values.shape)}, not integers of the image's size "
            f"{list(sample.image.shape[:2])}"
        )
    if values.size and (values.min() < 0 or values.max() >= num_classes):
        wrong = values.min() if values.min() < 0 else values.max()
        raise EngineError(f"the mask of {sample.name} has class {wrong}, there are {num_classes} classes")
    return values.astype(np.uint8, copy=False)


def _checked_label(sample: Sample, num_classes: int) -> UInt8Array:
    label = sample.label
    if label is None:
        raise DataError(f"{sample.name} has no label", "add it to the labels/ folder")
    present = label[label != Dataset.ignore_index]
    if present.size and present.max() >= num_classes:
        raise DataError(
            f"the label of {sample.name} has the value {present.max()}, the model has {num_classes} classes",
            "mark pixels of no class 255, or use a model of these classes",
        )
    return label


def warn_of_other_classes(trained: tuple[str, ...], dataset: Dataset) -> None:
    """Logs a warning where as many classes have other names in the model than in the data set.

    Classes in another order would pass every check and score as nonsense. trained: the model's class names; none, and
    names that are only numbers (`class 0`), are not compared.
    """

    def plain(names: tuple[str, ...]) -> list[str]:
        return ["".join(letter for letter in name.lower() if letter.isalnum()) for name in names]

    generic = all(name == f"class {index}" for index, name in enumerate(trained))
    if len(trained) == len(dataset.classes) and not generic and plain(trained) != plain(dataset.classes):
        log.warning("the model's classes %s are not %s's %s", trained, dataset.source, dataset.classes)

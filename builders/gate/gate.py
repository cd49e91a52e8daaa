"""Compares a bundle's engine with the PyTorch float32 model on the same images, and judges."""

from __future__ import annotations

import dataclasses
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twins_trt.builders.gate.reference import Mask, ReferenceMasks
from twins_trt.builders.gate.statistics import Drop, bootstrap_drop
from twins_trt.data import Dataset
from twins_trt.data.resizing import resize_image, resize_mask
from twins_trt.device import current_device
from twins_trt.errors import DataError, UsageError
from twins_trt.evaluation import ConfusionMatrix, Scores
from twins_trt.runtime import Bundle, Segmenter
from twins_trt.runtime.engines import CPU_KINDS, EngineSettings
from twins_trt.runtime.manifest import GRAPH
from twins_trt.verbs.gate import MAX_DROP, MIN_IMAGES

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor

# progress(done, total, mIoU drop so far in points): after every image.
Progress = Callable[[int, int, float], None]
# look(name, image, label, reference, engine): after every image, for pictures.
Look = Callable[[str, npt.NDArray[np.uint8], Mask, Mask, Mask], None]

WORST = 8  # images listed
REPEATED = 3  # images run twice, to see that a run repeats


@dataclass(frozen=True)
class Thresholds:
    """What a bundle must keep. max_drop: points of mIoU, held against the upper end of the interval, not the mean.

    min_images: fewer fail. min_agreement: share of pixels that must equal the reference's, or None.
    """

    max_drop: float
    min_images: int = MIN_IMAGES
    min_agreement: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < math.inf:  # nor NaN
            raise UsageError(f"a drop of {self.max_drop} points cannot be demanded", "give 0 or more")
        if self.min_images < 1:
            raise UsageError(f"at least {self.min_images} images is no bound", "give 1 or more")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise UsageError(f"an agreement of {self.min_agreement} is no share", "give 0 to 1")

    @classmethod
    def of(
        cls,
        precision: str,
        *,
        max_drop: float | None = None,
        min_images: int = MIN_IMAGES,
        min_agreement: float | None = None,
    ) -> Thresholds:
        """Those of a precision (`MAX_DROP`), save what is given."""
        return cls(MAX_DROP[precision] if max_drop is None else max_drop, min_images, min_agreement)


@dataclass(frozen=True)
class ImageResult:
    """One image: the share of pixels on which both agree, and the change of its own mIoU in points."""

    name: str
    agreement: float
    drop: float


@dataclass(frozen=True)
class GateResult:
    """The verdict and everything it rests on.

    model, graph_sha256: what was judged. reasons: why it failed; empty when it passed. simulated: ONNX Runtime stood in
    for the engine that ships. class_drops: points of IoU per class, NaN where a class does not occur. repeats: a second
    run gave the same masks. batch_agrees: masks of a batch equal those of single images; None where the graph takes one
    image at a time. seconds: wall time of the engine over all images, and of the model where all its masks had to be
    computed; on a shared machine no benchmark. created: ISO 8601 with a zone.
    """

    model: str
    graph_sha256: str
    passed: bool
    reasons: tuple[str, ...]
    engine: str
    simulated: bool
    precision: str
    dataset: str
    split: str
    images: int
    thresholds: Thresholds
    drop: Drop
    reference: Scores
    scores: Scores
    classes: tuple[str, ...]
    class_drops: tuple[float, ...]
    agreement: float
    worst: tuple[ImageResult, ...]
    repeats: bool
    batch_agrees: bool | None
    seconds: dict[str, float]
    measured_on: str
    seeded: bool
    created: str

    def to_json(self) -> dict[str, Any]:
        """Plain values for `gate.json`; NaN becomes None."""
        plain = dataclasses.asdict(dataclasses.replace(self, reference=None, scores=None))  # type: ignore[arg-type]
        plain["reference"], plain["scores"] = self.reference.to_json(), self.scores.to_json()
        plain["class_drops"] = [None if np.isnan(each) else each for each in self.class_drops]
        return plain

    def table(self) -> str:
        """The verdict in a few lines for a terminal."""
        drop, bound = self.drop, self.thresholds.max_drop
        what = f"{self.engine}{' standing in for the engine' if self.simulated else ''}, {self.precision}"
        lines = [
            f"gate          {'passed' if self.passed else 'FAILED'}: {what}",
            f"data          {self.dataset} ({self.split}), {self.images} images",
            f"mIoU          {self.scores.miou:.3f} against {self.reference.miou:.3f}",
            f"drop          {drop.mean:+.3f} points, {drop.confidence:.0%} interval "
            f"{drop.low:+.3f} to {drop.high:+.3f}, at most {bound:g} allowed",
            f"pixels equal  {100 * self.agreement:.3f} %",
            f"repeatable    {'yes' if self.repeats else 'NO'}",
        ]
        if self.batch_agrees is not None:
            lines.append(f"batch = one   {'yes' if self.batch_agrees else 'NO'}")
        ranked = sorted(zip(self.class_drops, self.classes, strict=True), key=lambda each: -np.nan_to_num(each[0]))
        lines.append("worst classes " + ", ".join(f"{name} {value:+.2f}" for value, name in ranked[:3]))
        lines.append(
            "worst images  " + ", ".join(f"{each.name} {100 * each.agreement:.2f} %" for each in self.worst[:3])
        )
        return "\n".join([*lines, *(f"reason        {reason}" for reason in self.reasons)])


def gate_bundle(
    bundle: Bundle,
    model: Segmentor,
    dataset: Dataset,
    *,
    thresholds: Thresholds | None = None,
    engine: str = "auto",
    settings: EngineSettings | None = None,
    limit: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    look: Look | None = None,
) -> GateResult:
    """Runs the bundle's engine and the float32 model over a labelled data set and judges the difference.

    model: the reference, with the weights the bundle was built from. thresholds: by default those of the bundle's
    precision (`MAX_DROP`). engine, settings: as `Segmenter` takes them. limit: only the first images. cache: a folder
    that keeps the reference's masks, so that they are computed once for several bundles (`ReferenceMasks`).
    Both see an image as the bundle does: a graph of fixed size resizes an image of another size, and the reference is
    given the same resized image, so that only the engine is judged.
    Raises `UsageError` where the model is another than the bundle's, `DataError` where images have no labels.
    """
    manifest = bundle.manifest
    if (model.spec.name, model.num_classes) != (manifest.model, manifest.num_classes):
        raise UsageError(
            f"the reference is {model.spec.name} with {model.num_classes} classes, the bundle {manifest.model} "
            f"with {manifest.num_classes}",
            "give the checkpoint that the bundle was built from",
        )
    if engine == "torch":
        raise UsageError("the torch engine runs the weights, not the graph that is judged", "name another engine")
    if not dataset.labelled:
        raise DataError(f"{dataset.source} has no labels to score against", "use a data set with labels")
    thresholds = thresholds or Thresholds.of(manifest.precision)
    dataset = dataset.first(limit)
    kept: list[npt.NDArray[np.uint8]] = []
    kept_masks: list[Mask] = []
    matrices: tuple[list[ConfusionMatrix], list[ConfusionMatrix]] = ([], [])
    rows: list[ImageResult] = []
    equal = pixels = 0
    clock = {"reference": 0.0, "engine": 0.0}
    totals = [ConfusionMatrix(manifest.num_classes) for _ in range(2)]
    references = ReferenceMasks(
        model, preprocessing=manifest.preprocessing if manifest.size is None else None, folder=cache
    )
    # In memory alone: a Segmenter warns of what is not judged, and this is the judging.
    judged = dataclasses.replace(bundle, manifest=dataclasses.replace(manifest, gate="passed"))
    with Segmenter(judged, engine, settings=settings) as segmenter:
        for done, (name, image, label) in enumerate(_images(dataset, manifest.size), start=1):
            started = time.perf_counter()
            expected = references(image)
            between = time.perf_counter()
            mask = segmenter(image).mask
            clock["reference"] += between - started
            clock["engine"] += time.perf_counter() - between
            pair = [ConfusionMatrix.of(each, label, num_classes=manifest.num_classes) for each in (expected, mask)]
            for matrix, into, total in zip(pair, matrices, totals, strict=True):
                into.append(matrix)
                total.counts += matrix.counts
            same = int((mask == expected).sum())
            equal, pixels = equal + same, pixels + mask.size
            rows.append(ImageResult(name, same / mask.size, pair[0].scores().miou - pair[1].scores().miou))
            if len(kept) < REPEATED:
                kept.append(image)
                kept_masks.append(mask)
            if look is not None:
                look(name, image, label, expected, mask)
            if progress is not None:
                progress(done, len(dataset), totals[0].scores().miou - totals[1].scores().miou)
        repeats = all(np.array_equal(segmenter(image).mask, mask) for image, mask in zip(kept, kept_masks, strict=True))
        batch_agrees = _batch_agrees(segmenter, manifest.batch_limits, kept, kept_masks)
        ran = segmenter.engine.name
    if references.computed < len(rows):
        del clock["reference"]  # the time of reading files says nothing about the model
    reference, scores = (total.scores() for total in totals)
    drop = bootstrap_drop(*matrices)
    agreement = equal / pixels
    reasons = _reasons(thresholds, drop, len(rows), agreement, repeats, batch_agrees)
    return GateResult(
        model=manifest.model,
        graph_sha256=next(entry.sha256 for entry in manifest.files if entry.path == GRAPH),
        passed=not reasons,
        reasons=reasons,
        engine=ran,
        simulated=ran in CPU_KINDS and bool(manifest.engines),
        precision=manifest.precision,
        dataset=dataset.source,
        split=dataset.split,
        images=len(rows),
        thresholds=thresholds,
        drop=drop,
        reference=reference,
        scores=scores,
        classes=manifest.classes,
        class_drops=tuple(a - b for a, b in zip(reference.iou, scores.iou, strict=True)),
        agreement=agreement,
        worst=tuple(sorted(rows, key=lambda row: row.agreement)[:WORST]),
        repeats=repeats,
        batch_agrees=batch_agrees,
        seconds=clock,
        measured_on=_measured_on(ran),
        seeded=manifest.source.seeded,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _measured_on(engine: str) -> str:
    device = None if engine in CPU_KINDS else current_device()
    return f"{platform.machine()} CPU, {platform.system()}" if device is None else f"{device.name} ({device.target})"


def _images(dataset: Dataset, size: tuple[int, int] | None) -> Iterator[tuple[str, npt.NDArray[np.uint8], Mask]]:
    """Name, image and label of every sample, both at the graph's size where that is fixed."""
    for sample in dataset.load():
        if sample.label is None:
            raise DataError(f"{sample.name} of {dataset.source} has no label", "use a data set with labels")
        if size is None or sample.image.shape[:2] == size:
            yield sample.name, sample.image, sample.label
        else:
            yield sample.name, resize_image(sample.image, size), resize_mask(sample.label, size)


def _batch_agrees(
    segmenter: Segmenter, limits: tuple[int, int | None], images: list[npt.NDArray[np.uint8]], masks: list[Mask]
) -> bool | None:
    if limits[1] == 1 or len(images) < 2:
        return None
    together = segmenter(images)
    return all(np.array_equal(each.mask, mask) for each, mask in zip(together, masks, strict=True))


def _reasons(
    thresholds: Thresholds, drop: Drop, images: int, agreement: float, repeats: bool, batch_agrees: bool | None
) -> tuple[str, ...]:
    reasons = []
    if images < thresholds.min_images:
        reasons.append(f"{images} images are too few to judge by, at least {thresholds.min_images} are asked for")
    if not drop.high <= thresholds.max_drop:
        reasons.append(f"the mIoU may drop by {drop.high:.3f} points, at most {thresholds.max_drop:g} are allowed")
    if thresholds.min_agreement is not None and agreement < thresholds.min_agreement:
        reasons.append(
            f"{100 * agreement:.3f} % of the pixels agree, {100 * thresholds.min_agreement:g} % are asked for"
        )
    if not repeats:
        reasons.append("a second run gave other masks")
    if batch_agrees is False:
        reasons.append("images in a batch get other masks than alone")
    return tuple(reasons)

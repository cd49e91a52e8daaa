"""Compares an engine with the PyTorch float32 model on the same images, and judges."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from twins_trt.builders.gate.comparison import Compared, Comparison, Mask
from twins_trt.builders.gate.options import Thresholds
from twins_trt.builders.gate.reference import ReferenceMasks
from twins_trt.builders.gate.result import GateResult
from twins_trt.data import Dataset
from twins_trt.data.resizing import resize_image, resize_mask
from twins_trt.device import current_device
from twins_trt.errors import BundleError, DataError, UsageError
from twins_trt.progress import Progress, silent
from twins_trt.runtime import Bundle, Segmenter
from twins_trt.runtime.engines import CPU_KINDS, Engine, EngineSource, RuntimeOptions, open_engine

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor

Image = npt.NDArray[np.uint8]
# look(name, image, label, reference, engine): after every image, for pictures.
Look = Callable[[str, Image, Mask, Mask, Mask], None]

REPEATED = 3  # images run twice, to see that a run repeats


@dataclass(frozen=True)
class Subject:
    """What is judged. source: what its engine is opened from. graph_sha256: of the source's graph. seeded: whether its
    weights are random."""

    source: EngineSource
    graph_sha256: str
    seeded: bool


def gate_bundle(
    bundle: Bundle,
    model: Segmentor,
    dataset: Dataset,
    *,
    thresholds: Thresholds | None = None,
    engine: str = "auto",
    options: RuntimeOptions | None = None,
    limit: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    look: Look | None = None,
) -> GateResult:
    """Runs the bundle's engine and the float32 model over a labelled data set and judges the difference.

    model: the reference, with the weights the bundle was built from. thresholds: by default those of the bundle's
    precision (`MAX_DROP`). engine, options: as `Segmenter` takes them. limit: only the first images. cache: a folder
    that keeps the reference's masks, so that they are computed once for several bundles (`ReferenceMasks`).
    Both see an image as the bundle does: a graph of fixed size resizes an image of another size, and the reference is
    given the same resized image, so that only the engine is judged.
    Raises `UsageError` where the model is another than the bundle's, `DataError` where images have no labels.
    """
    manifest = bundle.manifest
    if (model.spec.name, model.num_classes) != (manifest.model, manifest.interface.num_classes):
        raise UsageError(
            f"the reference is {model.spec.name} with {model.num_classes} classes, the bundle {manifest.model} "
            f"with {manifest.interface.num_classes}",
            "give the checkpoint that the bundle was built from",
        )
    return gate(
        Subject(bundle, manifest.graph_sha256, manifest.source.seeded),
        model,
        dataset.first(limit),
        thresholds=thresholds or Thresholds.of(manifest.precision),
        engine=engine,
        options=options,
        cache=cache,
        progress=progress,
        look=look,
    )


def gate(
    subject: Subject,
    model: Segmentor,
    dataset: Dataset,
    *,
    thresholds: Thresholds,
    engine: str = "auto",
    options: RuntimeOptions | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    look: Look | None = None,
) -> GateResult:
    """The verdict on any source of an engine. The arguments are those of `gate_bundle`, and so are the errors."""
    if engine == "torch":
        raise UsageError("the torch engine runs the weights, not the graph that is judged", "name another engine")
    if not dataset.labelled:
        raise DataError(f"{dataset.source} has no labels to score against", "use a data set with labels")
    source, interface, say = subject.source, subject.source.interface, progress or silent
    comparison = Comparison(interface.num_classes)
    first: list[tuple[Image, Mask]] = []
    clock = {"reference": 0.0, "engine": 0.0}
    preprocessing = interface.preprocessing if interface.size is None else None
    references = ReferenceMasks(model, preprocessing=preprocessing, folder=cache)
    # Not the bundle itself: a Segmenter warns of one that nobody has judged, and this is the judging.
    with Segmenter(interface, _opened(source, engine, options), options=options) as segmenter:
        for name, image, label in _images(dataset, interface.size):
            started = time.perf_counter()
            expected = references(image)
            between = time.perf_counter()
            mask = segmenter(image).mask
            clock["reference"] += between - started
            clock["engine"] += time.perf_counter() - between
            comparison.add(name, label, expected, mask)
            if len(first) < REPEATED:
                first.append((image, mask))
            if look is not None:
                look(name, image, label, expected, mask)
            done, total = comparison.images, len(dataset)
            say("gate", f"{done} of {total} images, drop {comparison.drop:+.3f}", done / total)
        repeats = all(np.array_equal(segmenter(image).mask, mask) for image, mask in first)
        batch_agrees = _batch_agrees(segmenter, interface.batch_limits, first)
        ran = segmenter.engine.name
    if references.computed < comparison.images:
        del clock["reference"]  # the time of reading files says nothing about the model
    found = comparison.result()
    reasons = _reasons(thresholds, found, repeats, batch_agrees)
    return GateResult(
        model=model.spec.name,
        graph_sha256=subject.graph_sha256,
        passed=not reasons,
        reasons=reasons,
        engine=ran,
        simulated=ran in CPU_KINDS and bool(source.engines),
        precision=source.precision,
        dataset=dataset.source,
        split=dataset.split,
        images=found.images,
        thresholds=thresholds,
        drop=found.drop,
        reference=found.reference,
        scores=found.scores,
        classes=interface.classes,
        class_drops=found.class_drops,
        agreement=found.agreement,
        worst=found.worst,
        repeats=repeats,
        batch_agrees=batch_agrees,
        seconds=clock,
        measured_on=_measured_on(ran),
        seeded=subject.seeded,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _opened(source: EngineSource, kind: str, options: RuntimeOptions | None) -> Engine:
    """The engine, of this very source: another bundle may take a bundle's place meanwhile."""
    engine = open_engine(source, kind, options=options)
    try:
        if isinstance(source, Bundle):
            source.refuse_replaced()
    except BundleError:
        engine.close()
        raise
    return engine


def _measured_on(engine: str) -> str:
    device = None if engine in CPU_KINDS else current_device()
    return f"{platform.machine()} CPU, {platform.system()}" if device is None else f"{device.name} ({device.target})"


def _images(dataset: Dataset, size: tuple[int, int] | None) -> Iterator[tuple[str, Image, Mask]]:
    """Name, image and label of every sample, both at the graph's size where that is fixed."""
    for sample in dataset.load():
        if sample.label is None:
            raise DataError(f"{sample.name} of {dataset.source} has no label", "use a data set with labels")
        if size is None or sample.image.shape[:2] == size:
            yield sample.name, sample.image, sample.label
        else:
            yield sample.name, resize_image(sample.image, size), resize_mask(sample.label, size)


def _batch_agrees(segmenter: Segmenter, limits: tuple[int, int | None], first: list[tuple[Image, Mask]]) -> bool | None:
    if limits[1] == 1 or len(first) < 2:
        return None
    together = segmenter([image for image, _ in first])
    return all(np.array_equal(each.mask, mask) for each, (_, mask) in zip(together, first, strict=True))


def _reasons(thresholds: Thresholds, found: Compared, repeats: bool, batch_agrees: bool | None) -> tuple[str, ...]:
    reasons = []
    if found.images < thresholds.min_images:
        reasons.append(f"{found.images} images are too few to judge by, at least {thresholds.min_images} are asked for")
    if not found.drop.high <= thresholds.max_drop:
        reasons.append(
            f"the mIoU may drop by {found.drop.high:.3f} points, at most {thresholds.max_drop:g} are allowed"
        )
    if thresholds.min_agreement is not None and found.agreement < thresholds.min_agreement:
        reasons.append(
            f"{100 * found.agreement:.3f} % of the pixels agree, {100 * thresholds.min_agreement:g} % are asked for"
        )
    if not repeats:
        reasons.append("a second run gave other masks")
    if batch_agrees is False:
        reasons.append("images in a batch get other masks than alone")
    return tuple(reasons)

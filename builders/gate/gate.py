"""Judges an engine: compares it with the PyTorch float32 model on the same images."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from twins_trt.builders.gate.comparison import Comparison, ComparisonResult, Mask
from twins_trt.builders.gate.options import Thresholds
from twins_trt.builders.gate.reference import ReferenceMasks
from twins_trt.builders.gate.result import GateResult
from twins_trt.data import Dataset
from twins_trt.data.resizing import resize_image, resize_mask
from twins_trt.device import current_device
from twins_trt.errors import DataError, UsageError
from twins_trt.models.source import warn_of_random_weights
from twins_trt.progress import Progress, silent
from twins_trt.runtime import Bundle, Segmenter
from twins_trt.runtime.bundle import replaced_error
from twins_trt.runtime.engines import CPU_KINDS, Engine, EngineSource, RuntimeOptions, open_current_engine, open_engine

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor

Image = npt.NDArray[np.uint8]
# look(name, image, label, reference, engine): is called after every image, to keep pictures.
Look = Callable[[str, Image, Mask, Mask, Mask], None]

REPEATED = 3  # images that run twice, to check that the masks repeat


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
    """Judges a bundle: runs its engine and the float32 model over a labelled data set.

    model: the reference, with the weights that the bundle was built from. thresholds: by default those of the bundle's
    precision (`MAX_DROP`). engine, options: as `Segmenter` takes them. limit: only the first so many images. cache: a
    folder that keeps the reference's masks for other bundles (`ReferenceMasks`). progress, look: called after every
    image.
    The reference gets each image as the engine does: if a graph of fixed size resizes it, the reference gets the
    resized image. So only the engine is judged.
    Raises `UsageError` for a model other than the bundle's, `DataError` for images without labels.
    """
    manifest = bundle.manifest
    if (model.spec.name, model.num_classes) != (manifest.model, manifest.interface.num_classes):
        raise UsageError(
            f"the reference is {model.spec.name} with {model.num_classes} classes, the bundle {manifest.model} "
            f"with {manifest.interface.num_classes}",
            "give the checkpoint that the bundle was built from",
        )
    if manifest.source.seeded:
        warn_of_random_weights(bundle.path)
    return gate(
        bundle,
        model,
        dataset.first(limit),
        graph_sha256=manifest.graph_sha256,
        ships=bool(manifest.engines),
        seeded=manifest.source.seeded,
        thresholds=thresholds or Thresholds.of(manifest.precision),
        engine=engine,
        options=options,
        cache=cache,
        progress=progress,
        look=look,
    )


def gate(
    source: EngineSource,
    model: Segmentor,
    dataset: Dataset,
    *,
    graph_sha256: str,
    ships: bool,
    seeded: bool,
    thresholds: Thresholds,
    engine: str = "auto",
    options: RuntimeOptions | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    look: Look | None = None,
) -> GateResult:
    """Judges what an engine can be opened from.

    graph_sha256: of the source's graph. ships: whether the bundle has an engine, or will have one; if ONNX Runtime runs
    the graph then, the result is a simulation. seeded: whether the weights are random. Other arguments and the errors
    are those of `gate_bundle`.
    """
    if engine == "torch":
        raise UsageError("the torch engine runs the weights, not the graph that is judged", "name another engine")
    if not dataset.labelled:
        raise DataError(f"{dataset.source} has no labels to score against", "use a data set with labels")
    interface, progress = source.interface, progress or silent
    comparison = Comparison(interface.num_classes)
    repeated: list[tuple[Image, Mask]] = []
    seconds = {"reference": 0.0, "engine": 0.0}
    preprocessing = interface.preprocessing if interface.size is None else None
    references = ReferenceMasks(model, preprocessing=preprocessing, folder=cache)
    # Not Segmenter(bundle), which warns that the bundle has not been judged.
    with Segmenter(interface, _opened(source, engine, options), options=options) as segmenter:
        for name, image, label in _images(dataset, interface.size):
            started = time.perf_counter()
            expected = references(image)
            between = time.perf_counter()
            mask = segmenter(image).mask
            seconds["reference"] += between - started
            seconds["engine"] += time.perf_counter() - between
            comparison.add(name, label, expected, mask)
            if len(repeated) < REPEATED:
                repeated.append((image, mask))
            if look is not None:
                look(name, image, label, expected, mask)
            images, total = comparison.images, len(dataset)
            progress("gate", f"{images} of {total} images, drop {comparison.drop:+.3f}", images / total)
        repeats = all(np.array_equal(segmenter(image).mask, mask) for image, mask in repeated)
        batch_agrees = _batch_agrees(segmenter, interface.batch_limits, repeated)
        engine_name = segmenter.engine.name
    if references.computed < comparison.images:
        del seconds["reference"]  # masks came from the cache, so this is not the model's time
    compared = comparison.result()
    reasons = _reasons(thresholds, compared, repeats, batch_agrees)
    return GateResult(
        model=model.spec.name,
        graph_sha256=graph_sha256,
        passed=not reasons,
        reasons=reasons,
        engine=engine_name,
        simulated=engine_name in CPU_KINDS and ships,
        precision=source.precision,
        dataset=dataset.source,
        split=dataset.split,
        images=compared.images,
        thresholds=thresholds,
        drop=compared.drop,
        reference=compared.reference,
        scores=compared.scores,
        classes=interface.classes,
        class_drops=compared.class_drops,
        agreement=compared.agreement,
        worst=compared.worst,
        repeats=repeats,
        batch_agrees=batch_agrees,
        seconds=seconds,
        measured_on=_measured_on(engine_name),
        seeded=seeded,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _opened(source: EngineSource, kind: str, options: RuntimeOptions | None) -> Engine:
    """Opens the engine. Raises `BundleError` if another bundle has replaced the source meanwhile."""
    if not isinstance(source, Bundle):
        return open_engine(source, kind, options=options)
    engine = open_current_engine(source, kind, options=options)
    if engine is None:
        raise replaced_error(source.path)
    return engine


def _measured_on(engine: str) -> str:
    device = None if engine in CPU_KINDS else current_device()
    return f"{platform.machine()} CPU, {platform.system()}" if device is None else f"{device.name} ({device.target})"


def _images(dataset: Dataset, size: tuple[int, int] | None) -> Iterator[tuple[str, Image, Mask]]:
    """Name, image and label of every sample, resized to `size` if the graph has a fixed one."""
    for sample in dataset.load():
        if sample.label is None:
            raise DataError(f"{sample.name} of {dataset.source} has no label", "use a data set with labels")
        if size is None or sample.image.shape[:2] == size:
            yield sample.name, sample.image, sample.label
        else:
            yield sample.name, resize_image(sample.image, size), resize_mask(sample.label, size)


def _batch_agrees(
    segmenter: Segmenter, limits: tuple[int, int | None], single: list[tuple[Image, Mask]]
) -> bool | None:
    """Whether images in a batch get the masks that they got alone; None if that cannot be tried."""
    if limits[1] == 1 or len(single) < 2:
        return None
    together = segmenter([image for image, _ in single])
    return all(np.array_equal(each.mask, mask) for each, (_, mask) in zip(together, single, strict=True))


def _reasons(
    thresholds: Thresholds, compared: ComparisonResult, repeats: bool, batch_agrees: bool | None
) -> tuple[str, ...]:
    """Why the gate fails; empty if it passes."""
    reasons = []
    if compared.images < thresholds.min_images:
        reasons.append(
            f"{compared.images} images are too few to judge by, at least {thresholds.min_images} are asked for"
        )
    if not compared.drop.high <= thresholds.max_drop:
        reasons.append(
            f"the mIoU may drop by {compared.drop.high:.3f} points, at most {thresholds.max_drop:g} are allowed"
        )
    if thresholds.min_agreement is not None and compared.agreement < thresholds.min_agreement:
        reasons.append(
            f"{100 * compared.agreement:.3f} % of the pixels agree, {100 * thresholds.min_agreement:g} % are asked for"
        )
    if not repeats:
        reasons.append("a second run gave other masks")
    if batch_agrees is False:
        reasons.append("images in a batch get other masks than alone")
    return tuple(reasons)

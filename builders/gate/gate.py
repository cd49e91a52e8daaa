"""Judges an engine: compares its masks with those of the PyTorch float32 model on the same images."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable
from datetime import datetime, timezone

import numpy as np
import numpy.typing as npt

from twins_trt.builders.gate.chance import Tally
from twins_trt.builders.gate.comparison import Comparison, ComparisonResult, Mask
from twins_trt.builders.gate.doubt import ReferenceCheck, check_reference, recorded_miou
from twins_trt.builders.gate.images import GateImages
from twins_trt.builders.gate.options import MIN_AGREEMENT, PROVISIONAL, Thresholds
from twins_trt.builders.gate.result import GateResult
from twins_trt.device import current_device
from twins_trt.errors import UsageError
from twins_trt.models.source import warn_of_random_weights
from twins_trt.progress import Progress, silent
from twins_trt.runtime import Bundle, Segmenter
from twins_trt.runtime.advice import for_gpus
from twins_trt.runtime.bundle import replaced_error
from twins_trt.runtime.engines import CPU_KINDS, Engine, EngineSource, RuntimeOptions, open_current_engine, open_engine
from twins_trt.runtime.tensorrt.selection import engine_of

Image = npt.NDArray[np.uint8]
# look(name, image, label, reference, engine): is called after every image, to keep pictures.
Look = Callable[[str, Image, Mask, Mask, Mask], None]

REPEATED = 3  # images that run twice, to check that the masks repeat


def gate_bundle(
    bundle: Bundle,
    images: GateImages,
    *,
    thresholds: Thresholds | None = None,
    engine: str = "auto",
    options: RuntimeOptions | None = None,
    progress: Progress | None = None,
    look: Look | None = None,
) -> GateResult:
    """Judges a bundle: runs its engine over images whose reference masks are known.

    images: `ModelImages` of the model that the bundle was built from, or a `Pack` that fits the bundle (`check_fits`).
    thresholds: by default those of the bundle's precision (`MAX_DROP`). engine, options: as `Segmenter` takes them.
    progress, look: called after every image.
    Raises as `gate` does, and `BundleError` if another bundle has replaced this one meanwhile.
    """
    manifest = bundle.manifest
    if manifest.source.seeded:
        warn_of_random_weights(bundle.path)
    told = recorded_miou(
        manifest.miou, model=manifest.model, source=manifest.source, classes=manifest.interface.classes
    )
    return gate(
        bundle,
        images,
        model=manifest.model,
        graph_sha256=manifest.graph_sha256,
        ships=for_gpus(bundle),
        seeded=manifest.source.seeded,
        miou=told if images.miou is None else images.miou,
        thresholds=thresholds or Thresholds.of(manifest.precision),
        engine=engine,
        options=options,
        progress=progress,
        look=look,
    )


def gate(
    source: EngineSource,
    images: GateImages,
    *,
    model: str,
    graph_sha256: str,
    ships: bool,
    seeded: bool,
    miou: float | None,
    thresholds: Thresholds,
    engine: str = "auto",
    options: RuntimeOptions | None = None,
    progress: Progress | None = None,
    look: Look | None = None,
) -> GateResult:
    """Judges what an engine can be opened from.

    model: its name. graph_sha256: of the source's graph. ships: whether the bundle has an engine, or will have one; if
    ONNX Runtime runs the graph then, the result is a simulation. seeded: whether the weights are random. miou: percent,
    as it was recorded of the weights (`recorded_miou`). Other arguments are those of `gate_bundle`.
    Raises `UsageError` for the engine torch, and as the images and the engine do.
    """
    if engine == "torch":
        raise UsageError("the torch engine runs the weights, not the graph that is judged", "name another engine")
    interface, progress = source.interface, progress or silent
    comparison, tally = Comparison(interface.num_classes), Tally(interface.num_classes, len(images))
    repeated: list[tuple[Image, Mask]] = []
    engine_seconds = 0.0
    # Not Segmenter(bundle), which warns that the bundle has not been judged.
    with Segmenter(interface, _opened(source, engine, options), options=options) as segmenter:
        for judged in images:
            started = time.perf_counter()
            mask = segmenter(judged.image).mask
            engine_seconds += time.perf_counter() - started
            comparison.add(judged, mask)
            tally.add(judged)
            if len(repeated) < REPEATED:
                repeated.append((judged.image, mask))
            if look is not None:
                look(judged.name, judged.image, judged.label, judged.reference, mask)
            done, total = comparison.images, len(images)
            progress("gate", f"{done} of {total} images, drop {comparison.drop:+.3f}", done / total)
        repeats = all(np.array_equal(segmenter(image).mask, mask) for image, mask in repeated)
        batch_agrees = _batch_agrees(segmenter, interface.batch_limits, repeated)
        engine_name = segmenter.engine.name
    file = engine_of(source, engine_name)
    reference_seconds = {} if images.seconds is None else {"reference": images.seconds}
    compared = comparison.result()
    check = check_reference(tally, recorded=miou, seeded=seeded)
    reasons = _reasons(source.precision, thresholds, check, compared, repeats, batch_agrees)
    return GateResult(
        model=model,
        graph_sha256=graph_sha256,
        passed=not reasons,
        reasons=reasons,
        engine=engine_name,
        simulated=engine_name in CPU_KINDS and ships,
        precision=source.precision,
        dataset=images.dataset,
        split=images.split,
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
        seconds={**reference_seconds, "engine": engine_seconds},
        measured_on=_measured_on(engine_name),
        seeded=seeded,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        pack=images.pack,
        file=None if file is None else file.file,
        file_sha256=None if file is None else hashlib.sha256(source.read(file)).hexdigest(),
        reference_check=check,
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


def _batch_agrees(
    segmenter: Segmenter, limits: tuple[int, int | None], single: list[tuple[Image, Mask]]
) -> bool | None:
    """Whether images in a batch get the masks that they got alone; None if that cannot be tried."""
    if limits[1] == 1 or len(single) < 2:
        return None
    together = segmenter([image for image, _ in single])
    return all(np.array_equal(each.mask, mask) for each, (_, mask) in zip(together, single, strict=True))


def _reasons(
    precision: str,
    thresholds: Thresholds,
    check: ReferenceCheck,
    compared: ComparisonResult,
    repeats: bool,
    batch_agrees: bool | None,
) -> tuple[str, ...]:
    """Why the gate fails; empty if it passes."""
    reasons = []
    if check.doubtful and not thresholds.accept_reference:
        reasons.append(check.reason)
    if compared.images < thresholds.min_images:
        reasons.append(
            f"{compared.images} images are too few to judge by, at least {thresholds.min_images} are asked for"
        )
    if not compared.drop.high <= thresholds.max_drop:
        reasons.append(
            f"the mIoU may drop by {compared.drop.high:.3f} points, at most {thresholds.max_drop:g} are allowed"
        )
    if thresholds.min_agreement and compared.agreement < thresholds.min_agreement:
        provisional = f" {PROVISIONAL}" if thresholds.min_agreement == MIN_AGREEMENT[precision] else ""
        wanted = f"{100 * thresholds.min_agreement:g} % are asked for{provisional}"
        reasons.append(f"{100 * compared.agreement:.3f} % of the pixels agree, {wanted}")
    if compared.impossible:
        reasons.append(f"{100 * compared.impossible:.3g} % of the pixels have a class that the model does not have")
    if not repeats:
        reasons.append("a second run gave other masks")
    if batch_agrees is False:
        reasons.append("images in a batch get other masks than alone")
    return tuple(reasons)

"""`gate`: the verdict on a bundle's accuracy: request, defaults, flags and call."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.builders.gate.options import MAX_DROP, MIN_IMAGES
from twins_trt.errors import BundleError
from twins_trt.progress import Progress, silent
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.groups.images import data_flags, labelled_images
from twins_trt.verbs.groups.running import ENGINE_FLAG, THREADS_FLAG, bundle_path
from twins_trt.verbs.groups.weights import WEIGHTS_GROUP, checkpoint_flags
from twins_trt.verbs.kinds import NUMBER, WHOLE

if TYPE_CHECKING:
    from twins_trt.builders.gate import GateResult, Thresholds
    from twins_trt.data import Dataset
    from twins_trt.runtime import Bundle

log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class GateRequest:
    """A gate.

    bundle: the folder to judge. data: labelled images, `camvid:PATH`, `ade20k:PATH` or `folder:PATH`. split, limit:
    which of them; limit None for all. max_drop: points of mIoU that may be lost; None takes `MAX_DROP`'s of the
    bundle's precision. min_images: fewer fail. min_agreement: share of pixels that must equal the reference's, or None.

    engine: what runs the bundle, of `runtime.engines.KINDS` but torch, or `auto`. threads: of the CPU. pictures: the
    folder for overlays and difference maps of the worst images. checkpoint, seeded: the reference's weights, which must
    be those that the bundle was built from.
    Raises `UsageError` for a value of the wrong kind.
    """

    bundle: str = ""
    data: str = ""
    split: str = "val"
    limit: int | None = None
    max_drop: float | None = None
    min_images: int = MIN_IMAGES
    min_agreement: float | None = None
    engine: str = "auto"
    threads: int | None = None
    pictures: str | None = None
    checkpoint: str | None = None
    seeded: bool = False

    def __post_init__(self) -> None:
        settle(self, TABLE)


def threshold_flags(group: str = "") -> tuple[Flag, ...]:
    """The limits that decide."""
    drops = ", ".join(f"{points:g} for {precision}" for precision, points in MAX_DROP.items())
    return (
        Flag("--max-drop", "max_drop", f"of mIoU; default: {drops}", NUMBER, "POINTS", group=group),
        Flag("--min-images", "min_images", "fewer fail; default: {default}", WHOLE, "N", group=group),
        Flag(
            "--min-agreement",
            "min_agreement",
            "of pixels that must equal the reference's",
            NUMBER,
            "SHARE",
            group=group,
        ),
    )


TABLE: tuple[Flag, ...] = (
    Flag("BUNDLE", "bundle", "the bundle to judge"),
    *data_flags(),
    *threshold_flags(),
    ENGINE_FLAG,
    THREADS_FLAG,
    Flag("--pictures", "pictures", "overlays and difference maps of the worst images go here", metavar="DIR"),
    *checkpoint_flags("weights"),
)

FLAGS = FlagTable(GateRequest, TABLE, groups=WEIGHTS_GROUP)


def gate(
    bundle: str | PathLike[str] | Bundle,
    data: str,
    *,
    checkpoint: str | PathLike[str] | None = None,
    seeded: bool | None = None,
    split: str | None = None,
    limit: int | None = None,
    max_drop: float | None = None,
    engine: str | None = None,
    threads: int | None = None,
    pictures: str | PathLike[str] | None = None,
    record: bool = True,
    more: GateRequest | None = None,
    progress: Progress | None = None,
) -> GateResult:
    """Judges a bundle's engine against the PyTorch float32 model that it was built from, on the same labelled images.

        passed = twins_trt.gate("x.bundle", "camvid:PATH", checkpoint="F.pth").passed

    bundle: its folder, or an opened one. record: write the verdict into it (`gate.json`, and its manifest), before any
    picture, so that a disk that pictures fill cannot lose it. `GateRequest` describes the other parameters. more:
    further fields of that request, such as `GateRequest(min_agreement=0.99)`; a field may be given only once.
    progress: called at every step, and after every image.
    Returns the verdict, passed or not, and every number behind it.
    Raises `UsageError` for fields that exclude each other, `BundleError` for a bundle that is damaged or was replaced
    meanwhile, `CheckpointError` for weights that are not the bundle's, `DataError` for images without labels,
    `ImageError` for one that cannot be decoded or written, `EngineError` where an engine refuses the bundle,
    `MissingDependencyError` where no engine can run here.
    """
    opened = None if isinstance(bundle, (str, PathLike)) else bundle
    request = FLAGS.ask(
        more,
        bundle=bundle_path(bundle),
        data=data,
        checkpoint=checkpoint,
        seeded=seeded,
        split=split,
        limit=limit,
        max_drop=max_drop,
        engine=engine,
        threads=threads,
        pictures=pictures,
    )
    return judge(resolve_gate(request, opened), record=record, progress=progress)


@dataclass(frozen=True)
class GateJob:
    """What a gate will do, checked as far as possible without the weights."""

    request: GateRequest
    bundle: Bundle
    thresholds: Thresholds
    dataset: Dataset


def resolve_gate(request: GateRequest, bundle: Bundle | None = None) -> GateJob:
    """The job of a request. bundle: the bundle that the request names, if it is already open. Raises as `gate` does."""
    from twins_trt.builders.gate import Thresholds
    from twins_trt.runtime import open_bundle
    from twins_trt.runtime.engines import check_kind

    check_kind(request.engine)
    bundle = bundle or open_bundle(request.bundle)
    thresholds = Thresholds.of(
        bundle.manifest.precision,
        max_drop=request.max_drop,
        min_images=request.min_images,
        min_agreement=request.min_agreement,
    )
    dataset = labelled_images(request.data, split=request.split, limit=request.limit)
    return GateJob(request, bundle, thresholds, dataset)


def judge(job: GateJob, *, record: bool = True, progress: Progress | None = None) -> GateResult:
    """Does the job. record: write the verdict into the bundle. Raises as `gate` does."""
    from twins_trt.builders import gate as gates
    from twins_trt.runtime import RuntimeOptions

    request, bundle = job.request, job.bundle
    progress = progress or silent
    progress("load", "the reference", None)
    model = gates.load_reference(bundle, checkpoint=request.checkpoint, seeded=request.seeded)
    gallery = gates.Gallery(Path(request.pictures), bundle.interface.palette) if request.pictures else None
    result = gates.gate_bundle(
        bundle,
        model,
        job.dataset,
        thresholds=job.thresholds,
        engine=request.engine,
        options=RuntimeOptions(threads=request.threads),
        progress=progress,
        look=gallery,
    )
    if record:
        try:
            gates.record_gate(bundle, result)
        except BundleError:
            log.warning("verdict that could not be written:\n%s", result.table())
            raise
    if gallery is not None:
        gallery.save()
    return result

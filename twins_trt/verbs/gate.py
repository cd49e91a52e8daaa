"""`gate`: the verdict on a bundle's accuracy: request, defaults, flags and call."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.builders.gate.options import MAX_DROP, MIN_AGREEMENT, MIN_IMAGES, PROVISIONAL, SPLIT
from twins_trt.errors import BundleError, PackError, UsageError
from twins_trt.progress import Progress, silent
from twins_trt.spelling import spelled
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.groups.images import check_limit, data_flags, labelled_images
from twins_trt.verbs.groups.running import ENGINE_FLAG, THREADS_FLAG, bundle_path
from twins_trt.verbs.groups.weights import WEIGHTS_GROUP, checkpoint_flags
from twins_trt.verbs.kinds import NUMBER, SWITCH, WHOLE

if TYPE_CHECKING:
    from twins_trt.builders.gate import GateResult, Pack, Thresholds
    from twins_trt.builders.gate.images import GateImages
    from twins_trt.data import Dataset
    from twins_trt.runtime import Bundle

log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class GateRequest:
    """A gate.

    bundle: the folder to judge. data: labelled images, `camvid:PATH`, `ade20k:PATH` or `folder:PATH`. split: of `data`,
    by default `val`. limit: only the first so many images; None for all. pack: with `data`, the file to write images
    and reference masks into; without, the file to read them from, by default the bundle's own `gate.pack`.
    max_drop: points of mIoU that may be lost; None takes `MAX_DROP`'s of the bundle's precision. min_images: fewer
    fail. min_agreement: share of pixels that must equal the reference's, 0 for none; None takes `MIN_AGREEMENT`'s.
    accept_reference: judge by a reference that is doubtful too (`ReferenceCheck`).

    engine: what runs the bundle, of `runtime.engines.KINDS` but torch, or `auto`. threads: of the CPU. pictures: the
    folder for overlays and difference maps of the worst images. checkpoint, seeded: the reference's weights, which must
    be those that the bundle was built from. A pack that is read holds what they gave, and needs neither.
    Raises `UsageError` for a value of the wrong kind.
    """

    bundle: str = ""
    data: str | None = None
    split: str | None = None
    limit: int | None = None
    pack: str | None = None
    max_drop: float | None = None
    min_images: int = MIN_IMAGES
    min_agreement: float | None = None
    accept_reference: bool = False
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
    floors = ", ".join(f"{share:g} for {precision}" for precision, share in MIN_AGREEMENT.items())
    return (
        Flag("--max-drop", "max_drop", f"of mIoU; default: {drops}", NUMBER, "POINTS", group=group),
        Flag("--min-images", "min_images", "fewer fail; default: {default}", WHOLE, "N", group=group),
        Flag(
            "--min-agreement",
            "min_agreement",
            f"of pixels that must equal the reference's, 0: none; default, {PROVISIONAL}: {floors}",
            NUMBER,
            "SHARE",
            group=group,
        ),
        Flag(
            "--accept-reference",
            "accept_reference",
            "pass also if the reference's own score is doubtful",
            SWITCH,
            sets=True,
            group=group,
        ),
    )


def _data_flags() -> tuple[Flag, ...]:
    """Those of every verb, but none is required, and the split is of data alone: a pack holds one split."""
    data, split, limit = data_flags()
    return replace(data, required=False), replace(split, help=f"of --data; default: {SPLIT}"), limit


TABLE: tuple[Flag, ...] = (
    Flag("BUNDLE", "bundle", "the bundle to judge"),
    *_data_flags(),
    Flag(
        "--pack",
        "pack",
        "with --data: write images and reference masks into this file; without: judge on them, with no torch; "
        "default: the bundle's own gate.pack",
        metavar="FILE",
    ),
    *threshold_flags(),
    ENGINE_FLAG,
    THREADS_FLAG,
    Flag("--pictures", "pictures", "overlays and difference maps of the worst images go here", metavar="DIR"),
    *checkpoint_flags("weights"),
)

FLAGS = FlagTable(GateRequest, TABLE, groups=WEIGHTS_GROUP)


def gate(
    bundle: str | PathLike[str] | Bundle,
    data: str | None = None,
    *,
    pack: str | PathLike[str] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    seeded: bool | None = None,
    split: str | None = None,
    limit: int | None = None,
    max_drop: float | None = None,
    accept_reference: bool | None = None,
    engine: str | None = None,
    threads: int | None = None,
    pictures: str | PathLike[str] | None = None,
    record: bool = True,
    more: GateRequest | None = None,
    progress: Progress | None = None,
) -> GateResult:
    """Judges a bundle's engine against the PyTorch float32 model that it was built from, on the same labelled images.

        twins_trt.gate("x.bundle", "camvid:PATH", checkpoint="F.pth", pack="x.pack")  # also writes x.pack
        passed = twins_trt.gate("x.bundle", pack="x.pack").passed                     # on the device, without torch

    bundle: its folder, or an opened one. record: write the verdict into it (`gate.json`, and its manifest), before any
    picture, so that a disk that pictures fill cannot lose it. `GateRequest` describes the other parameters. more:
    further fields of that request, such as `GateRequest(min_agreement=0.99)`; a field may be given only once.
    progress: called at every step, and after every image.
    Returns the verdict, passed or not, and every number behind it. It fails also where the reference is doubtful: its
    mIoU lies far below what was recorded of its weights, or is no better than chance.
    Raises `UsageError` for fields that exclude each other, `BundleError` for a bundle that is damaged or was replaced
    meanwhile, `CheckpointError` for weights that are not the bundle's or that contradict it, `DataError` for images
    without labels, `PackError` for a pack that is damaged, of another bundle, or cannot be written, `ImageError` for
    an image that cannot be decoded or written, `EngineError` where an engine refuses the bundle,
    `MissingDependencyError` where no engine can run here.
    """
    opened = None if isinstance(bundle, (str, PathLike)) else bundle
    request = FLAGS.ask(
        more,
        bundle=bundle_path(bundle),
        data=data,
        pack=pack,
        checkpoint=checkpoint,
        seeded=seeded,
        split=split,
        limit=limit,
        max_drop=max_drop,
        accept_reference=accept_reference,
        engine=engine,
        threads=threads,
        pictures=pictures,
    )
    return judge(resolve_gate(request, opened), record=record, progress=progress)


@dataclass(frozen=True)
class GateJob:
    """What a gate will do, checked as far as possible without the weights.

    images: the data set, whose reference masks a model computes, or the pack that has them.
    """

    request: GateRequest
    bundle: Bundle
    thresholds: Thresholds
    images: Dataset | Pack

    @property
    def source(self) -> str:
        """What the images are from, in words."""
        from twins_trt.data import Dataset

        images = self.images
        if isinstance(images, Dataset):
            return f"{images.source} ({images.split})"
        return f"{images.path}, which was made from {images.dataset} ({images.split})"

    @property
    def new_pack(self) -> str | None:
        """The pack that is written, or is there already; None if none is asked for."""
        return self.request.pack if self.request.data is not None else None


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
        accept_reference=request.accept_reference,
    )
    return GateJob(request, bundle, thresholds, _images(request, bundle))


def _images(request: GateRequest, bundle: Bundle) -> Dataset | Pack:
    """What to judge on. Raises as `gate` does."""
    from twins_trt.builders.gate import PackKey, check_fits, check_new_pack, open_pack
    from twins_trt.runtime.manifest import PACK

    if request.data is not None:
        if request.pack is not None:
            check_new_pack(Path(request.pack), PackKey.of_bundle(bundle), outside=bundle.path)
        return labelled_images(request.data, split=request.split or SPLIT, limit=request.limit)
    if request.pack is None and PACK not in bundle.files:
        raise UsageError(
            f"nothing is named to judge {bundle.path} on, and it holds no {PACK}",
            f"name labelled images and the checkpoint: {spelled('data', 'KIND:PATH')} {spelled('checkpoint', 'FILE')}, "
            f"or a pack that was made of them: {spelled('pack', 'FILE')}",
        )
    pack = open_pack(bundle.file(PACK) if request.pack is None else request.pack)
    for name, given in (
        ("checkpoint", request.checkpoint is not None),
        ("seeded", request.seeded),
        ("split", request.split is not None),
    ):
        if given:
            raise UsageError(
                f"{spelled(name)} is of {spelled('data')}, and {pack.path} holds images and reference masks already",
                f"leave {spelled(name)} out, or name images: {spelled('data', 'KIND:PATH')}",
            )
    check_fits(pack, bundle)
    check_limit(request.limit)
    return pack.first(request.limit)


def judge(job: GateJob, *, record: bool = True, progress: Progress | None = None) -> GateResult:
    """Does the job. record: write the verdict into the bundle. Raises as `gate` does."""
    from twins_trt.builders import gate as gates
    from twins_trt.runtime import RuntimeOptions

    request, bundle = job.request, job.bundle
    progress = progress or silent
    gallery = gates.Gallery(Path(request.pictures), bundle.interface.palette) if request.pictures else None
    unwritten: PackError | None = None
    with ExitStack() as packing:
        result = gates.gate_bundle(
            bundle,
            _judged_images(job, packing, progress),
            thresholds=job.thresholds,
            engine=request.engine,
            options=RuntimeOptions(threads=request.threads),
            progress=progress,
            look=gallery,
        )
        try:
            packing.close()  # the pack is whole now
        except PackError as error:
            unwritten = error  # raised once the verdict is safe
    try:
        result = gates.with_simulation(bundle, result)
        if result.contradiction is not None:
            log.warning("%s: %s", bundle.path, result.contradiction)
        if record:
            gates.record_gate(bundle, result)
    except BundleError:
        log.warning("verdict that could not be written:\n%s", result.table())
        raise
    if gallery is not None:
        gallery.save()
    if unwritten is not None:
        raise unwritten
    return result


def _judged_images(job: GateJob, packing: ExitStack, progress: Progress) -> GateImages:
    """The images with the masks of the reference. packing: finishes the pack that is written, if one is asked for."""
    from twins_trt.builders import gate as gates
    from twins_trt.data import Dataset

    request, bundle = job.request, job.bundle
    if not isinstance(job.images, Dataset):
        return job.images
    progress("load", "the reference", None)
    model = gates.load_reference(bundle, checkpoint=request.checkpoint, seeded=request.seeded)
    images = gates.reference_images(bundle, model, job.images)
    if job.new_pack is None:
        return images
    path, key = Path(job.new_pack), gates.PackKey.of_bundle(bundle)
    return packing.enter_context(gates.packing(path, images, key, limit=request.limit))

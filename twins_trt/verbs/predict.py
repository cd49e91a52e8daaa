"""`predict`: masks and overlays of images as files; what is asked of it, its defaults and flags, and how it is done."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twins_trt.errors import ImageError, TwinsError, UsageError
from twins_trt.progress import Progress, silent
from twins_trt.spelling import spelled
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.groups import ENGINE_FLAG, MODES_GROUP, THREADS_FLAG, mode_flags
from twins_trt.verbs.kinds import NUMBER, SWITCH, WHOLE
from twins_trt.verbs.meanings import fit_of, mode_of

if TYPE_CHECKING:
    from twins_trt.inference.tiling import Tiles
    from twins_trt.runtime import Bundle, Frame


@dataclass(frozen=True)
class PredictRequest:
    """What is asked of a prediction.

    bundle: a folder. images: files, folders or patterns. out: the folder for the results; files in it are replaced.
    masks, overlays: which to write. alpha: weight of an overlay's colours, 0 to 1. fit: how images meet a bundle of
    fixed size, `stretch` or `letterbox`. batch: images at once, for a bundle of dynamic batch. engine: what runs it, of
    `runtime.engines.KINDS`, or `auto`. threads: of the CPU. mode, tile, overlap: as in `EvaluateRequest`.
    Raises `UsageError` for a value that is none of its field's kind.
    """

    bundle: str = ""
    images: tuple[str, ...] = ()
    out: str = ""
    fit: str = "stretch"
    alpha: float = 0.5
    masks: bool = True
    overlays: bool = True
    batch: int | None = None
    engine: str = "auto"
    threads: int | None = None
    mode: str | None = None
    tile: tuple[int, int] | None = None
    overlap: int | None = None

    def __post_init__(self) -> None:
        settle(self, TABLE)


TABLE: tuple[Flag, ...] = (
    Flag("BUNDLE", "bundle", "a folder that twins-trt build wrote"),
    Flag("IMAGES", "images", "image files, folders or patterns", nargs="+"),
    Flag("--out", "out", "folder for the results; files in it are replaced", metavar="DIR", required=True),
    Flag("--fit", "fit", "how images meet a bundle of fixed size; default: {default}", metavar="{stretch,letterbox}"),
    Flag("--alpha", "alpha", "weight of the colours; default: {default}", NUMBER, "X"),
    Flag("--no-mask", "masks", "write overlays only", SWITCH, sets=False),
    Flag("--no-overlay", "overlays", "write masks only", SWITCH, sets=False),
    Flag("--batch", "batch", "images at once, for a bundle of dynamic batch", WHOLE, "N"),
    ENGINE_FLAG,
    THREADS_FLAG,
    *mode_flags("large images"),
)

FLAGS = FlagTable(PredictRequest, TABLE, groups=MODES_GROUP)


@dataclass(frozen=True)
class Job:
    """An image and the files that will come of it."""

    image: Path
    mask: Path | None
    overlay: Path | None


@dataclass(frozen=True)
class Prediction:
    """What came of an image, or of an argument that names none.

    error: why nothing did. size: (height, width) of the image, pixels. areas: the share of each class that occurs.
    engine: the kind that ran.
    """

    image: str
    error: TwinsError | None = None
    size: tuple[int, int] = (0, 0)
    mask: Path | None = None
    overlay: Path | None = None
    areas: dict[str, float] | None = None
    engine: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        if self.error is not None:
            return {"image": self.image, "error": self.error.cause, "fix": self.error.fix}
        files = {"mask": self.mask, "overlay": self.overlay}
        return {
            "image": self.image,
            "height": self.size[0],
            "width": self.size[1],
            **{name: None if path is None else str(path) for name, path in files.items()},
            "areas": self.areas,
        }


@dataclass(frozen=True)
class PredictJob:
    """What a prediction will do. failures: the arguments that name no image, and why."""

    request: PredictRequest
    bundle: Bundle
    mode: str | Tiles
    jobs: tuple[Job, ...]
    failures: tuple[Prediction, ...]


def resolve_prediction(request: PredictRequest) -> PredictJob:
    """The plan of a request. Raises `UsageError` for what does not fit together, `BundleError` for a damaged bundle."""
    from twins_trt.runtime import open_bundle
    from twins_trt.runtime.engines import check_kind

    if not request.masks and not request.overlays:
        names = f"{spelled('masks', False)} and {spelled('overlays', False)}"
        raise UsageError(f"{names} leave nothing to write", "leave one of them out")
    if not 0 <= request.alpha <= 1:
        raise UsageError(
            f"{spelled('alpha')} is {request.alpha:g}", "give 0 (only the picture) to 1 (only the colours)"
        )
    check_kind(request.engine)
    mode = mode_of(request.mode, tile=request.tile, overlap=request.overlap)
    bundle = open_bundle(request.bundle)
    paths, failures = _find_images(request.images)
    jobs = plan_files(paths, Path(request.out), masks=request.masks, overlays=request.overlays)
    return PredictJob(request, bundle, mode, tuple(jobs), tuple(failures))


def predict(plan: PredictJob, *, progress: Progress | None = None) -> Iterator[Prediction]:
    """Segments one image after another and writes its files; first comes what names no image.

    An image that fails is reported, and the rest goes on; a file that cannot be written ends it: the next would fail as
    well. Raises as `Segmenter` does, and `ImageError` for such a file.
    """
    yield from plan.failures
    if not plan.jobs:
        return
    from twins_trt.runtime import RuntimeOptions, Segmenter

    request = plan.request
    say = progress or silent
    options = RuntimeOptions(threads=request.threads)
    say("load", str(plan.bundle.path), None)
    with Segmenter(plan.bundle, request.engine, fit=fit_of(request.fit), mode=plan.mode, options=options) as segmenter:
        frames = segmenter.stream([job.image for job in plan.jobs], batch=request.batch)
        try:
            for job, frame in zip(plan.jobs, frames, strict=True):
                say("predict", str(job.image), frame.index / len(plan.jobs))
                yield _finish(job, frame, alpha=request.alpha, engine=segmenter.engine.name)
        finally:
            frames.close()  # ends the thread that reads ahead


def plan_files(paths: Sequence[Path], folder: Path, *, masks: bool, overlays: bool) -> list[Job]:
    """Where the results of each image go. Raises `UsageError` where that would replace one of the images."""
    jobs = []
    for path, name in zip(paths, result_names(paths), strict=True):
        base = folder / name
        mask = base.with_name(f"{base.name}_mask.png") if masks else None
        overlay = base.with_name(f"{base.name}_overlay.png") if overlays else None
        jobs.append(Job(path, mask, overlay))
    inputs = {path.resolve() for path in paths}
    for job in jobs:
        for result in (job.mask, job.overlay):
            if result is not None and result.resolve() in inputs:
                raise UsageError(
                    f"{result} is one of the images and would be replaced",
                    f"choose another folder: {spelled('out', 'DIR')}",
                )
    return jobs


def result_names(paths: Sequence[Path]) -> list[str]:
    """A name for each image, no two alike: the images' own, with their folders if two share one, with their suffixes
    if that does not tell them apart. Case does not: on some file systems it is the same file."""
    files = [Path(os.path.abspath(path)) for path in paths]
    root = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    below = [file.relative_to(root) for file in files]
    for names in ([file.stem for file in files], [path.with_suffix("").as_posix() for path in below]):
        if len({name.casefold() for name in names}) == len(names):
            return names
    return [path.as_posix() for path in below]


def _find_images(sources: Sequence[str]) -> tuple[list[Path], list[Prediction]]:
    """The images that the arguments name, each once, and the arguments that name none."""
    from twins_trt.runtime import expand_sources

    paths: dict[str, Path] = {}
    failures = []
    for source in sources:
        try:
            for path in expand_sources(source):
                paths.setdefault(os.path.abspath(path), path)
        except ImageError as error:
            failures.append(Prediction(source, error))
    return list(paths.values()), failures


def _finish(job: Job, frame: Frame, *, alpha: float, engine: str) -> Prediction:
    if frame.error is not None:
        return Prediction(str(job.image), frame.error, engine=engine)
    segmentation = frame.result()
    if job.mask is not None:
        segmentation.save(job.mask)
    if job.overlay is not None:
        segmentation.save_overlay(job.overlay, alpha=alpha)
    height, width = segmentation.mask.shape
    areas = {name: round(share, 6) for name, share in segmentation.areas().items() if share}
    return Prediction(
        str(job.image), size=(height, width), mask=job.mask, overlay=job.overlay, areas=areas, engine=engine
    )

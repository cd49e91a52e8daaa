"""`predict`: masks and overlays of images as files: request, defaults, flags, and the function that does it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twins_trt.errors import ImageError, TwinsError, UsageError
from twins_trt.progress import Progress, silent
from twins_trt.spelling import spelled
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.groups.modes import MODES_GROUP, mode_flags
from twins_trt.verbs.groups.running import ENGINE_FLAG, THREADS_FLAG
from twins_trt.verbs.groups.tested import Tested, resolve_test, told_by_bundle
from twins_trt.verbs.kinds import NUMBER, SWITCH, WHOLE

if TYPE_CHECKING:
    from twins_trt.runtime import Bundle, Frame

log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class PredictRequest:
    """A prediction.

    bundle: a folder. images: files, folders or patterns. out: the folder for the results; files in it are replaced.
    masks, overlays: whether to write them. alpha: weight of an overlay's colours, 0 to 1. fit: how images meet a bundle
    of fixed size, `stretch` or `letterbox`. batch: images at once, for a bundle of dynamic batch. engine: what runs it,
    of `runtime.engines.KINDS`, or `auto`. threads: of the CPU. mode, tile, overlap: as in `EvaluateRequest`.
    Raises `UsageError` for a value of the wrong kind.
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
class ImageFiles:
    """An image and the files to write for it; None for a file that is not wanted."""

    image: Path
    mask: Path | None
    overlay: Path | None


@dataclass(frozen=True)
class Prediction:
    """The result of an image, or of an argument that names none.

    error: why there is no result. size: (height, width) of the image, pixels. areas: the share of pixels of each
    class that occurs. engine: the kind that ran.
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
    tested: Tested
    files: tuple[ImageFiles, ...]
    failures: tuple[Prediction, ...]


def resolve_prediction(request: PredictRequest) -> PredictJob:
    """The job of a request.

    Raises `UsageError` for fields that exclude each other, `BundleError` for a damaged bundle.
    """
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
    bundle = open_bundle(request.bundle)
    tested = resolve_test(
        told_by_bundle(bundle),
        mode=request.mode,
        tile=request.tile,
        overlap=request.overlap,
        interface=bundle.interface,
    )
    paths, failures = _find_images(request.images)
    files = result_files(paths, Path(request.out), masks=request.masks, overlays=request.overlays)
    return PredictJob(request, bundle, tested, tuple(files), tuple(failures))


def predict(job: PredictJob, *, progress: Progress | None = None) -> Iterator[Prediction]:
    """Segments one image after another and writes its files. Arguments that name no image come first.

    An image that fails has its error in its result, and the others follow. A file that cannot be written ends the
    prediction, because the next one would fail too. Raises as `Segmenter` does, and `ImageError` for such a file.
    """
    yield from job.failures
    if not job.files:
        return
    from twins_trt.inference.fitting import fit_mode
    from twins_trt.runtime import RuntimeOptions, Segmenter

    request = job.request
    progress = progress or silent
    options = RuntimeOptions(threads=request.threads)
    progress("load", str(job.bundle.path), None)
    for note in job.tested.notes:
        log.info("%s: %s", job.bundle.path, note)
    mode = job.tested.mode
    with Segmenter(job.bundle, request.engine, fit=fit_mode(request.fit), mode=mode, options=options) as segmenter:
        frames = segmenter.stream([files.image for files in job.files], batch=request.batch)
        try:
            for files, frame in zip(job.files, frames, strict=True):
                progress("predict", str(files.image), frame.index / len(job.files))
                yield _write(files, frame, alpha=request.alpha, engine=segmenter.engine.name)
        finally:
            frames.close()  # ends the thread that reads ahead


def result_files(paths: Sequence[Path], folder: Path, *, masks: bool, overlays: bool) -> list[ImageFiles]:
    """The files for each image. Raises `UsageError` where a file would replace one of the images."""
    results = []
    for path, name in zip(paths, result_names(paths), strict=True):
        base = folder / name
        mask = base.with_name(f"{base.name}_mask.png") if masks else None
        overlay = base.with_name(f"{base.name}_overlay.png") if overlays else None
        results.append(ImageFiles(path, mask, overlay))
    inputs = {path.resolve() for path in paths}
    for files in results:
        for result in (files.mask, files.overlay):
            if result is not None and result.resolve() in inputs:
                raise UsageError(
                    f"{result} is one of the images and would be replaced",
                    f"choose another folder: {spelled('out', 'DIR')}",
                )
    return results


def result_names(paths: Sequence[Path]) -> list[str]:
    """A different name for each image: its own; with its folders if two images share one; with its suffix if they
    still do. Names that differ in case alone count as shared: some file systems take them for the same file."""
    files = [Path(os.path.abspath(path)) for path in paths]
    root = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    below = [file.relative_to(root) for file in files]
    for names in ([file.stem for file in files], [path.with_suffix("").as_posix() for path in below]):
        if len({name.casefold() for name in names}) == len(names):
            return names
    return [path.as_posix() for path in below]


def _find_images(sources: Sequence[str]) -> tuple[list[Path], list[Prediction]]:
    """The images that the arguments name, each once, and a result with its error for each argument that names none."""
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


def _write(files: ImageFiles, frame: Frame, *, alpha: float, engine: str) -> Prediction:
    if frame.error is not None:
        return Prediction(str(files.image), frame.error, engine=engine)
    segmentation = frame.result()
    if files.mask is not None:
        segmentation.save(files.mask)
    if files.overlay is not None:
        segmentation.save_overlay(files.overlay, alpha=alpha)
    height, width = segmentation.mask.shape
    areas = {name: round(share, 6) for name, share in segmentation.areas().items() if share}
    return Prediction(
        str(files.image), size=(height, width), mask=files.mask, overlay=files.overlay, areas=areas, engine=engine
    )

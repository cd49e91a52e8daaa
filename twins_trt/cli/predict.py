"""`twins-trt predict`: masks and overlays of images."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twins_trt.cli.console import Console
from twins_trt.cli.parsing import add_mode_options, add_running_options, check_engine, parse_mode
from twins_trt.errors import ImageError, TwinsError, UsageError

if TYPE_CHECKING:
    from twins_trt.runtime import Frame

EXAMPLE = (
    "twins-trt predict x.bundle street.jpg frames/ 'more/*.png' --out masks\n\n"
    "For every image NAME it writes NAME_mask.png, indexed, whose values are class indices and whose palette colours\n"
    "them, and NAME_overlay.png. Images may have any size; masks have the image's own. Images of one name from\n"
    "different folders keep their folders. An image that fails is reported, and the rest goes on (exit code 1)."
)


@dataclass(frozen=True)
class Job:
    """An image and the files that will come of it."""

    image: Path
    mask: Path | None
    overlay: Path | None


def configure(parser: argparse.ArgumentParser) -> None:
    """BUNDLE, IMAGES, --out and how to run."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder that twins-trt build wrote")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="image files, folders or patterns")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results; files in it are replaced")
    parser.add_argument(
        "--fit", default="stretch", metavar="{stretch,letterbox}", help="how images meet a bundle of fixed size"
    )
    parser.add_argument("--alpha", type=float, default=0.5, metavar="X", help="weight of the colours; default: 0.5")
    parser.add_argument("--no-mask", action="store_true", help="write overlays only")
    parser.add_argument("--no-overlay", action="store_true", help="write masks only")
    parser.add_argument("--batch", type=int, metavar="N", help="images at once, for a bundle of dynamic batch")
    add_running_options(parser)
    add_mode_options(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Segment all images; 1 if one of them failed."""
    if arguments.no_mask and arguments.no_overlay:
        raise UsageError("--no-mask and --no-overlay leave nothing to write", "leave one of them out")
    if not 0 <= arguments.alpha <= 1:
        raise UsageError(f"--alpha is {arguments.alpha}", "give 0 (only the picture) to 1 (only the colours)")
    check_engine(arguments.engine)
    mode = parse_mode(arguments)
    from twins_trt.runtime import EngineSettings, Segmenter, open_bundle

    bundle = open_bundle(arguments.bundle)
    paths, failures = _find_images(arguments.images)
    folder = Path(arguments.out)
    jobs = plan_files(paths, folder, masks=not arguments.no_mask, overlays=not arguments.no_overlay)
    records: list[dict[str, Any]] = []
    for source, error in failures:
        records.append(_failure(console, source, error))
    if jobs:
        settings = EngineSettings(threads=arguments.threads)
        console.progress("load", str(bundle.path))
        with Segmenter(bundle, arguments.engine, fit=arguments.fit, mode=mode, settings=settings) as segmenter:
            frames = segmenter.stream([job.image for job in jobs], batch=arguments.batch)
            try:
                for job, frame in zip(jobs, frames, strict=True):
                    console.progress("predict", str(job.image), frame.index / len(jobs))
                    records.append(_finish(console, job, frame, alpha=arguments.alpha))
            finally:
                frames.close()  # ends the thread that reads ahead
            ran = segmenter.engine.name
    failed = sum("error" in record for record in records)
    value = {
        "bundle": str(bundle.path),
        "model": bundle.manifest.model,
        "seeded": bundle.manifest.source.seeded,
        "engine": ran if jobs else None,
        "out": str(folder),
        "images": records,
        "failed": failed,
    }
    text = f"{len(records) - failed} images segmented into {folder}" + (f", {failed} failed" if failed else "")
    console.result(value, text)
    return 1 if failed else 0


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
                raise UsageError(f"{result} is one of the images and would be replaced", "choose another --out folder")
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


def _find_images(sources: Sequence[str]) -> tuple[list[Path], list[tuple[str, ImageError]]]:
    """The images that the arguments name, each once, and the arguments that name none."""
    from twins_trt.runtime import expand_sources

    paths: dict[str, Path] = {}
    failures = []
    for source in sources:
        try:
            for path in expand_sources(source):
                paths.setdefault(os.path.abspath(path), path)
        except ImageError as error:
            failures.append((source, error))
    return list(paths.values()), failures


def _finish(console: Console, job: Job, frame: Frame, *, alpha: float) -> dict[str, Any]:
    """Write what came of one image. A file that cannot be written ends the command: the next would fail as well."""
    if frame.error is not None:
        return _failure(console, str(job.image), frame.error)
    segmentation = frame.result()
    if job.mask is not None:
        segmentation.save(job.mask)
    if job.overlay is not None:
        segmentation.save_overlay(job.overlay, alpha=alpha)
    height, width = segmentation.mask.shape
    return {
        "image": str(job.image),
        "height": height,
        "width": width,
        "mask": None if job.mask is None else str(job.mask),
        "overlay": None if job.overlay is None else str(job.overlay),
        "areas": {name: round(share, 6) for name, share in segmentation.areas().items() if share},
    }


def _failure(console: Console, image: str, error: TwinsError) -> dict[str, Any]:
    console.note(f"error: {error}" if image in error.cause else f"error: {image}: {error}")
    return {"image": image, "error": error.cause, "fix": error.fix}

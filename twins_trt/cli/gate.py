"""`twins-trt gate`: judge a bundle's engine against the PyTorch model it was built from."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from twins_trt.cli.console import Console
from twins_trt.cli.parsing import add_weights_options
from twins_trt.errors import CheckpointError, GateError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from twins_trt.builders.gate import GateResult
    from twins_trt.models.segmentor import Segmentor
    from twins_trt.runtime import Bundle

EXAMPLE = (
    "twins-trt gate x.bundle --data camvid:PATH --checkpoint F.pth\n\n"
    "The mIoU of the bundle's engine may lie at most --max-drop points below that of the PyTorch float32 model on\n"
    "the same images, and it is the upper end of the drop's 95 % interval that counts: too few images fail rather\n"
    "than pass by luck. The verdict goes into the bundle (gate.json); a failure ends with exit code 3. Where ONNX\n"
    "Runtime stands in for a TensorRT engine, which needs its GPU, the verdict says simulated."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """BUNDLE, --data, thresholds, where pictures go, and the weights of the reference."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle to judge")
    parser.add_argument("--data", required=True, metavar="KIND:PATH", help="camvid:PATH, ade20k:PATH or folder:PATH")
    parser.add_argument("--split", default="val", help="default: val")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument(
        "--max-drop", type=float, metavar="POINTS", help="of mIoU; default: 0.1 for fp32 and fp16, 0.5 for int8"
    )
    parser.add_argument("--min-images", type=int, default=30, metavar="N", help="fewer fail; default: 30")
    parser.add_argument(
        "--min-agreement", type=float, metavar="SHARE", help="of pixels that must equal the reference's"
    )
    parser.add_argument("--engine", default="auto", help="what runs the bundle: auto (default) or onnxruntime")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: every core")
    parser.add_argument("--pictures", metavar="DIR", help="overlays and difference maps of the worst images go here")
    parser.add_argument("--dry-run", action="store_true", help="open everything and say what would be judged")
    add_weights_options(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Judge one bundle and write the verdict into it."""
    from twins_trt.builders.gate import Thresholds, gate_bundle
    from twins_trt.builders.gate.gate import MAX_DROP
    from twins_trt.data import open_dataset
    from twins_trt.runtime import EngineSettings, open_bundle

    if arguments.limit is not None and arguments.limit < 1:
        raise UsageError(f"--limit is {arguments.limit}", "give at least 1")
    bundle = open_bundle(arguments.bundle)
    precision = bundle.manifest.precision
    thresholds = Thresholds(
        MAX_DROP[precision] if arguments.max_drop is None else arguments.max_drop,
        min_images=arguments.min_images,
        min_agreement=arguments.min_agreement,
    )
    dataset = open_dataset(arguments.data, split=arguments.split)
    if arguments.dry_run:
        images = len(dataset.first(arguments.limit))
        text = f"{bundle.path} ({precision}) would be judged on {images} images of {dataset.source} ({dataset.split})"
        console.result({"dry_run": True, "bundle": str(bundle.path), "images": images}, text)
        return 0
    console.progress("load", "the reference")
    model = _reference(arguments, bundle)
    gallery = Gallery(Path(arguments.pictures), bundle) if arguments.pictures else None
    result = gate_bundle(
        bundle,
        model,
        dataset,
        thresholds=thresholds,
        engine=arguments.engine,
        settings=EngineSettings(threads=arguments.threads),
        limit=arguments.limit,
        seeded=bundle.manifest.source.seeded,
        progress=lambda done, total, drop: console.progress(
            "gate", f"{done} of {total} images, drop {drop:+.3f}", done / total
        ),
        look=gallery,
    )
    record(bundle, result)
    console.result(result.to_json(), result.table())
    return 0 if result.passed else GateError.exit_code


def _reference(arguments: argparse.Namespace, bundle: Bundle) -> Segmentor:
    """The float32 model with the very weights the bundle was built from."""
    from twins_trt.builders.weights import load_weights

    manifest = bundle.manifest
    if manifest.source.seeded != arguments.seeded:
        has = "seeded weights" if manifest.source.seeded else f"the weights of {manifest.source.checkpoint}"
        fix = "give --seeded" if manifest.source.seeded else "give --checkpoint FILE"
        raise UsageError(f"{bundle.path} has {has}", fix)
    model, facts = load_weights(
        manifest.model,
        checkpoint=arguments.checkpoint,
        seeded=arguments.seeded,
        num_classes=manifest.num_classes,
        padding=manifest.padding,
    )
    if facts.source.sha256 != manifest.source.sha256:
        raise CheckpointError(
            f"{arguments.checkpoint} (sha256 {facts.source.sha256}) is not what {bundle.path} was built from "
            f"({manifest.source.checkpoint}, sha256 {manifest.source.sha256})",
            "give the bundle's own checkpoint with --checkpoint",
        )
    return model


def record(bundle: Bundle, result: GateResult) -> None:
    """Writes the verdict into the bundle: all of it, or the bundle stays as it was."""
    import json

    from twins_trt.runtime import write_bundle

    verdict: Literal["passed", "failed"] = "passed" if result.passed else "failed"
    files: dict[str, bytes | Path] = {name: bundle.file(name) for name in bundle.files}
    files["gate.json"] = (json.dumps(result.to_json(), indent=1) + "\n").encode()
    write_bundle(bundle.path, replace(bundle.manifest, gate=verdict), files, overwrite=True)


class Gallery:
    """Pictures of the images on which engine and reference agree least, the worst `keep` of those seen."""

    def __init__(self, folder: Path, bundle: Bundle, *, keep: int = 8) -> None:
        self.folder = folder
        self.palette = bundle.manifest.palette
        self.keep = keep
        self.kept: list[tuple[float, Path]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(
        self,
        name: str,
        image: npt.NDArray[np.uint8],
        label: npt.NDArray[np.uint8],
        reference: npt.NDArray[np.uint8],
        engine: npt.NDArray[np.uint8],
    ) -> None:
        """Saves `name.png`: image, label, reference, engine and, in red, where the last two differ."""
        agreement = float((reference == engine).mean())
        if len(self.kept) == self.keep and agreement >= self.kept[-1][0]:
            return
        path = self.folder / f"{name}.png"
        self._draw(image, label, reference, engine).save(path)
        self.kept = sorted([*self.kept, (agreement, path)])
        for _, gone in self.kept[self.keep :]:
            gone.unlink()
        del self.kept[self.keep :]

    def _draw(self, image: Any, label: Any, reference: Any, engine: Any) -> Any:
        import numpy as np
        from PIL import Image

        colours = np.zeros((256, 3), np.uint8)
        colours[: len(self.palette)] = self.palette
        difference = (image * 0.4).astype(np.uint8)
        difference[reference != engine] = (255, 0, 0)
        blended = [(image * 0.4 + colours[mask] * 0.6).astype(np.uint8) for mask in (label, reference, engine)]
        return Image.fromarray(np.concatenate([image, *blended, difference], axis=1))

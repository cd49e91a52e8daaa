"""Scoring a bundle over a data set, with what its masks owe to resizing said beside the scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from twins_trt.data import Dataset
from twins_trt.data.images import UInt8Array
from twins_trt.data.preprocessing import Preprocessing, input_size
from twins_trt.evaluation.evaluate import EvalResult, EvaluationOptions, evaluate_masks, warn_of_other_classes
from twins_trt.inference.fitting import FitMode, fit_size
from twins_trt.inference.runner import Mode, resolve_mode
from twins_trt.inference.tiling import Tiles
from twins_trt.runtime.bundle import Bundle
from twins_trt.runtime.engines import RuntimeOptions
from twins_trt.runtime.segmenter import Segmenter
from twins_trt.spelling import spelled


@dataclass(frozen=True)
class BundleScore:
    """The result and how it came about.

    engine: the kind that ran. resized: how many images did not have the graph's size. exact: whether the masks are what
    mmsegmentation's test pipeline gives of this graph; if not, `notes` says why.
    """

    result: EvalResult
    engine: str
    resized: int
    exact: bool
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {
            **self.result.to_json(),
            "engine": self.engine,
            "resized_images": self.resized,
            "exact": self.exact,
            "notes": list(self.notes),
        }


def score_bundle(
    bundle: Bundle,
    dataset: Dataset,
    *,
    engine: str = "auto",
    fit: FitMode = "stretch",
    mode: Mode = "whole",
    preprocessing: Preprocessing | None = None,
    runtime: RuntimeOptions | None = None,
    options: EvaluationOptions | None = None,
) -> BundleScore:
    """Scores a bundle as it runs: through a `Segmenter`, one image at a time, at the images' own sizes.

    engine, fit, mode: as `Segmenter` takes them. runtime: its options. preprocessing: in place of the bundle's own, of
    which a graph of dynamic size follows the test scale. Others are as in `evaluate_masks`.

    A graph of fixed size gives an image of that very size its exact mask. Any other image is resized on the way in, and
    its mask (or its logits, where the graph gives them) on the way out. A graph of dynamic size runs mmsegmentation's
    pipeline; where that resizes, only logits can be resized as it does, a mask is an approximation. Modes other than
    `whole` run images in parts and follow mmsegmentation's, except for `tile`, which has no counterpart there.
    Raises as `evaluate_masks` and `Segmenter` do.
    """
    if preprocessing is not None:
        graph = replace(bundle.interface, preprocessing=preprocessing)
        bundle = replace(bundle, manifest=replace(bundle.manifest, interface=graph))
    interface = bundle.interface
    warn_of_other_classes(interface.classes, dataset)
    resized = outside = 0
    parts = resolve_mode(mode)
    with Segmenter(bundle, engine, fit=fit, mode=mode, options=runtime) as segmenter:

        def predict(image: UInt8Array) -> UInt8Array:
            nonlocal resized, outside
            if parts is not None:
                return segmenter(image).mask
            placed = fit_size((image.shape[0], image.shape[1]), interface, fit)
            resized += placed.canvas != placed.original
            outside += placed.canvas != input_size(placed.original, interface.preprocessing)
            return segmenter(image).mask

        result = evaluate_masks(
            predict,
            dataset,
            name=str(bundle.path),
            mode="whole" if parts is None else "tile" if isinstance(parts, Tiles) else parts.name,
            num_classes=interface.num_classes,
            options=options,
        )
        ran = segmenter.engine.name
    result = replace(result, preprocessing=interface.preprocessing)
    notes, exact = _notes(bundle, resized, outside, fit)
    if isinstance(parts, Tiles):
        notes, exact = (*notes, "images were run in tiles of their own size, which mmsegmentation does not do"), False
    return BundleScore(result, ran, resized, exact, notes)


def _notes(bundle: Bundle, resized: int, outside: int, fit: FitMode) -> tuple[tuple[str, ...], bool]:
    interface, notes, exact = bundle.interface, [], True
    if bundle.manifest.source.seeded:
        notes.append("random weights: the scores mean nothing")
    if outside:
        exact = False
        size = "the profile's sizes" if interface.size is None else "{}x{} ({})".format(*interface.size, fit)
        notes.append(
            f"{outside} images were resized to the graph's limits, {size}, instead of as mmsegmentation's test "
            "pipeline would"
        )
    if resized and interface.output("logits") is None:
        exact = False
        notes.append(
            "masks were resized to the images by the nearest pixel, where mmsegmentation resizes logits: "
            f"a bundle built with {spelled('outputs', 'logits')} is scored as mmsegmentation scores"
        )
    return tuple(notes), exact

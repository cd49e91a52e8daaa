"""Scores a bundle over a data set, and says whether mmsegmentation's pipeline would give the same masks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from twins_trt.data import Dataset
from twins_trt.data.images import UInt8Array
from twins_trt.data.preprocessing import Preprocessing, Size, input_size
from twins_trt.evaluation.evaluate import EvalResult, EvaluationOptions, evaluate_masks, warn_of_other_classes
from twins_trt.inference.fitting import FitMode, fit_size
from twins_trt.inference.interface import GraphInterface
from twins_trt.inference.modes import InferenceMode, variant_sizes
from twins_trt.inference.runner import Mode, resolve_mode
from twins_trt.inference.tiling import Tiles
from twins_trt.runtime.bundle import Bundle
from twins_trt.runtime.engines import RuntimeOptions
from twins_trt.runtime.segmenter import Segmenter
from twins_trt.spelling import spelled


@dataclass(frozen=True)
class BundleScore:
    """The scores of a bundle, and how its masks came about.

    engine: the kind that ran. resized: how many images did not have the graph's size. exact: whether mmsegmentation's
    test pipeline would get the same masks from this graph; if not, `notes` says why.
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

    engine, fit, mode: as `Segmenter` takes them. runtime: its options. preprocessing: replaces the bundle's own; a
    graph of dynamic size follows its test scale. options: as in `evaluate_masks`.

    A graph of fixed size gives exact masks of images of that size. Any other image is resized on the way in, and its
    mask (or its logits, if the graph has them) on the way out. A graph of dynamic size runs mmsegmentation's pipeline.
    Where that resizes, logits are resized as there, and a mask is an approximation. Modes other than `whole` run an
    image in parts as mmsegmentation does, except for `tile`, which it does not have.
    Raises as `evaluate_masks` and `Segmenter` do.
    """
    if preprocessing is not None:
        graph = replace(bundle.interface, preprocessing=preprocessing)
        bundle = replace(bundle, manifest=replace(bundle.manifest, interface=graph))
    interface = bundle.interface
    warn_of_other_classes(interface.classes, dataset)
    parts = resolve_mode(mode)
    sizes = _Sizes(interface, fit, parts)
    with Segmenter(bundle, engine, fit=fit, mode=mode, options=runtime) as segmenter:

        def predict(image: UInt8Array) -> UInt8Array:
            sizes.count(image)
            return segmenter(image).mask

        result = evaluate_masks(
            predict,
            dataset,
            name=str(bundle.path),
            mode="whole" if parts is None else "tile" if isinstance(parts, Tiles) else parts.name,
            num_classes=interface.num_classes,
            options=options,
        )
        engine_name = segmenter.engine.name
    result = replace(result, preprocessing=interface.preprocessing)
    notes, exact = _notes(bundle, sizes)
    if isinstance(parts, Tiles):
        notes, exact = (*notes, "images were run in tiles of their own size, which mmsegmentation does not do"), False
    return BundleScore(result, engine_name, sizes.resized, exact, notes)


@dataclass
class _Sizes:
    """Counts images that run at another size than their own, and at another than mmsegmentation would give them.

    padded: those of which a window, or the whole at one of several sizes, is smaller than what the graph takes.
    """

    interface: GraphInterface
    fit: FitMode
    parts: InferenceMode | Tiles | None
    resized: int = 0
    unlike_mmseg: int = 0
    padded: int = 0

    def count(self, image: UInt8Array) -> None:
        size = (image.shape[0], image.shape[1])
        if isinstance(self.parts, Tiles):
            return
        if self.parts is not None:
            crop = self.parts.windows[0] if self.parts.windows else None
            sizes = variant_sizes(size, self.interface.preprocessing, self.parts)
            self.padded += any(self._too_small(variant, crop) for variant in sizes)
            return
        placed = fit_size(size, self.interface, self.fit)
        self.resized += placed.canvas != placed.original
        self.unlike_mmseg += placed.canvas != input_size(placed.original, self.interface.preprocessing)

    def _too_small(self, size: Size, crop: Size | None) -> bool:
        sides = size if crop is None else tuple(map(min, size, crop))
        return any(side < low for side, (low, _) in zip(sides, self.interface.size_limits, strict=True))


def _notes(bundle: Bundle, sizes: _Sizes) -> tuple[tuple[str, ...], bool]:
    """What a reader of the scores must know, and whether the masks are exact."""
    interface, notes, exact = bundle.interface, [], True
    if bundle.manifest.source.seeded:
        notes.append("random weights: the scores mean nothing")
    if sizes.unlike_mmseg:
        exact = False
        size = "the profile's sizes" if interface.size is None else "{}x{} ({})".format(*interface.size, sizes.fit)
        notes.append(
            f"{sizes.unlike_mmseg} images were resized to the graph's limits, {size}, instead of as mmsegmentation's "
            "test pipeline would"
        )
    if sizes.padded:
        exact = False
        notes.append(
            f"{sizes.padded} images have parts that are smaller than the graph takes, which were padded with the mean "
            "colour, as mmsegmentation does not"
        )
    if sizes.resized and interface.output("logits") is None:
        exact = False
        notes.append(
            "masks were resized to the images by the nearest pixel, where mmsegmentation resizes logits: "
            f"a bundle built with {spelled('outputs', 'logits')} is scored as mmsegmentation scores"
        )
    return tuple(notes), exact

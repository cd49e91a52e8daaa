"""Judging what a build has made before it is a bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from twins_trt.builders.engine import BuiltEngine
from twins_trt.builders.gate import GateResult, Thresholds, gate_bundle
from twins_trt.builders.int8_options import GateOptions
from twins_trt.calib.images import digest
from twins_trt.data import Dataset, open_dataset
from twins_trt.errors import DataError
from twins_trt.evaluation.evaluate import warn_of_other_classes
from twins_trt.runtime import write_bundle
from twins_trt.runtime.engines import EngineSettings
from twins_trt.runtime.manifest import GRAPH, Manifest

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor

Report = Callable[[str, float | None], None]


def gate_images(options: GateOptions) -> Dataset:
    """The images to judge on. Raises as `open_dataset` does, and `DataError` where they have no labels."""
    dataset = open_dataset(options.data, split=options.split).first(options.limit)
    if not dataset.labelled:
        raise DataError(f"{options.data} has no labels to score against", "use a data set with labels")
    return dataset


class Judge:
    """Gates graphs of one model, the reference's masks computed once.

    model: the float32 reference. folder: where candidates and masks lie meanwhile.
    """

    def __init__(self, model: Segmentor, options: GateOptions, folder: Path) -> None:
        self.dataset = gate_images(options)
        warn_of_other_classes(tuple(model.meta.classes or ()) if model.meta else (), self.dataset)
        self.options = options
        self._model = model
        self._folder = folder

    def images(self, names: Sequence[str]) -> list[npt.NDArray[np.uint8]]:
        """The images of these names, uint8 [H, W, 3], in the data set's order."""
        return [self.dataset.read(item).image for item in self.dataset.items if item.name in names]

    def key(self) -> str:
        """sha256 of all images and labels: one changed pixel gives another."""
        digests = []
        for sample in self.dataset.load():
            digests += [digest(sample.image), b"" if sample.label is None else digest(sample.label)]
        return hashlib.sha256(b"".join(digests)).hexdigest()

    def thresholds(self, precision: str) -> Thresholds:
        """What a graph of this precision must keep."""
        return Thresholds.of(
            precision,
            max_drop=self.options.max_drop,
            min_images=self.options.min_images,
            min_agreement=self.options.min_agreement,
        )

    def __call__(
        self, graph: Path, manifest: Manifest, built: Mapping[str, BuiltEngine], *, ships: bool, report: Report
    ) -> GateResult:
        """The verdict on a graph and the engines made of it so far.

        ships: whether an engine will ship, so that ONNX Runtime, where it runs the graph, only stands in for it.
        """
        files: dict[str, bytes | Path] = {GRAPH: graph, **{file: engine.plan for file, engine in built.items()}}
        bundle = write_bundle(self._folder / "candidate.bundle", manifest, files, overwrite=True)
        result = gate_bundle(
            bundle,
            self._model,
            self.dataset,
            thresholds=self.thresholds(manifest.precision),
            settings=EngineSettings(threads=self.options.threads),
            cache=self._folder / "reference",
            progress=lambda done, total, drop: report(f"{done} of {total} images, drop {drop:+.3f}", done / total),
        )
        return replace(result, simulated=result.simulated or (ships and not built))

"""Judges what a build has made before it is a bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from twins_trt.builders.gate.gate import gate
from twins_trt.builders.gate.options import GateOptions
from twins_trt.builders.gate.pack_key import PackKey
from twins_trt.builders.gate.pack_writing import packing
from twins_trt.builders.gate.reference import ModelImages
from twins_trt.builders.gate.result import GateResult
from twins_trt.calib.images import digest
from twins_trt.evaluation.evaluate import warn_of_other_classes
from twins_trt.files import sha256_of
from twins_trt.inference.interface import GraphInterface
from twins_trt.progress import Progress
from twins_trt.runtime.engines import RuntimeOptions
from twins_trt.runtime.manifest import EngineFile

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor


@dataclass(frozen=True)
class GateCandidate:
    """A graph and the engines built from it so far, in memory: an `EngineSource`.

    path: of the future bundle, for errors. graph: its file. ships: whether the bundle will have an engine; if ONNX
    Runtime runs the graph meanwhile, the result is a simulation. seeded: whether the weights are random. serialized:
    the engines' bytes, by file.
    """

    path: Path
    graph: Path
    interface: GraphInterface
    precision: str
    rebuild: str
    ships: bool
    seeded: bool
    engines: tuple[EngineFile, ...] = ()
    serialized: Mapping[str, bytes] = field(default_factory=dict)

    def read(self, engine: EngineFile) -> bytes:
        """See `EngineSource.read`."""
        return self.serialized[engine.file]


class Judge:
    """Judges candidates of one model. The reference's masks are computed once.

    model: the float32 reference, whose conventions say how labels are read. miou: percent, as it was recorded of its
    weights (`recorded_miou`). threads: of the CPU, for graphs that run there. folder: keeps the masks.
    """

    def __init__(
        self, model: Segmentor, options: GateOptions, *, miou: float | None, threads: int | None, folder: Path
    ) -> None:
        self.dataset = model.conventions.labels_of(options.open())
        warn_of_other_classes(tuple(model.meta.classes or ()) if model.meta else (), self.dataset)
        self.thresholds = options.thresholds
        self._model, self._miou = model, miou
        self._threads = threads
        self._folder = folder

    def images(self, names: Sequence[str]) -> list[npt.NDArray[np.uint8]]:
        """The images of these names, uint8 [H, W, 3], in the order of the data set."""
        return [self.dataset.read(item).image for item in self.dataset.items if item.name in names]

    def key(self) -> str:
        """sha256 of all images and labels: it changes with any pixel."""
        digests = []
        for sample in self.dataset.load():
            digests += [digest(sample.image), b"" if sample.label is None else digest(sample.label)]
        return hashlib.sha256(b"".join(digests)).hexdigest()

    def __call__(self, candidate: GateCandidate, *, progress: Progress | None = None) -> GateResult:
        """Judges a candidate. Raises as `gate` does."""
        return gate(
            candidate,
            self._images(candidate.interface),
            model=self._model.spec.name,
            graph_sha256=sha256_of(candidate.graph),
            ships=candidate.ships,
            seeded=candidate.seeded,
            miou=self._miou,
            thresholds=self.thresholds,
            options=RuntimeOptions(threads=self._threads),
            progress=progress,
        )

    def write_pack(
        self, path: Path, key: PackKey, interface: GraphInterface, *, limit: int | None, overwrite: bool
    ) -> None:
        """Writes the images and the reference's masks into a pack; none is computed again. interface: of the graph.

        Raises as `packing` does.
        """
        with packing(path, self._images(interface), key, limit=limit, overwrite=overwrite) as packed:
            for _ in packed:
                pass

    def _images(self, interface: GraphInterface) -> ModelImages:
        return ModelImages(self._model, self.dataset, interface, miou=self._miou, cache=self._folder)

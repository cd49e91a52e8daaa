"""What a gate leaves behind: the verdict in the bundle, and pictures of the images where it was worst."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from twins_trt.builders.gate.gate import GateResult
from twins_trt.runtime import Bundle
from twins_trt.runtime.bundle import amend_bundle
from twins_trt.runtime.manifest import Colour

GATE = "gate.json"

Verdict = Literal["passed", "failed"]


def record(bundle: Bundle, result: GateResult) -> Bundle:
    """Writes the verdict into the bundle: all of it, or the bundle stays as it was."""
    return amend_bundle(bundle, {GATE: gate_file(result)}, manifest=replace(bundle.manifest, gate=verdict(result)))


def verdict(result: GateResult) -> Verdict:
    """What the manifest calls it."""
    return "passed" if result.passed else "failed"


def gate_file(result: GateResult) -> bytes:
    """The content of `gate.json`."""
    return (json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n").encode()


class Gallery:
    """Pictures of the images on which engine and reference agree least, the worst `keep` of those seen."""

    def __init__(self, folder: Path, palette: tuple[Colour, ...], *, keep: int = 8) -> None:
        self.folder = folder
        self.palette = palette
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

    def _draw(self, image: Any, label: Any, reference: Any, engine: Any) -> Image.Image:
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(self.palette)] = self.palette
        difference = (image * 0.4).astype(np.uint8)
        difference[reference != engine] = (255, 0, 0)
        blended = [(image * 0.4 + colours[mask] * 0.6).astype(np.uint8) for mask in (label, reference, engine)]
        return Image.fromarray(np.concatenate([image, *blended, difference], axis=1))

"""Keeps the result of a gate: in the bundle, and as pictures of the worst images."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from twins_trt.builders.gate.result import GateResult, Simulation
from twins_trt.codec import decode
from twins_trt.data.images import UInt8Array
from twins_trt.data.palette import Colour
from twins_trt.errors import ImageError
from twins_trt.files import whole_file
from twins_trt.runtime import Bundle
from twins_trt.runtime.bundle import amend_bundle, open_bundle
from twins_trt.runtime.manifest import GATE

GateStatus = Literal["passed", "failed"]

log = logging.getLogger("twins_trt")


def record_gate(bundle: Bundle, result: GateResult) -> Bundle:
    """Writes the result into the bundle. An error or a kill leaves the bundle as it was.

    What a simulation had found stays in it, beside a result that was measured on the device (`with_simulation`). A
    simulation does not replace what was measured: then nothing is written, and a warning says so.
    Raises BundleError as `amend_bundle` does, such as for a bundle whose graph has been replaced.
    """
    before = _before(bundle, result)
    if result.simulated and before is not None and before.get("simulated") is False:
        log.warning(
            "%s keeps its verdict, which was measured on %s: a simulation does not replace it",
            bundle.path,
            before.get("measured_on"),
        )
        return bundle
    result = with_simulation(bundle, result)
    return amend_bundle(
        bundle, {GATE: gate_file(result)}, change=lambda manifest: replace(manifest, gate=gate_status(result))
    )


def with_simulation(bundle: Bundle, result: GateResult) -> GateResult:
    """The result, with what a simulation of the same graph had found according to the bundle's `gate.json`.

    A second result of a device takes it from the first. A result that is itself a simulation is returned as it is.
    """
    before = _before(bundle, result)
    if result.simulated or result.simulation is not None or before is None:
        return result
    found = before if before.get("simulated") is True else before.get("simulation")
    if found is None:
        return result
    try:
        kept = {each.name: found[each.name] for each in fields(Simulation)}
        return replace(result, simulation=decode(Simulation, kept))
    except (KeyError, TypeError, ValueError) as error:
        log.warning("%s: what a simulation had found cannot be read from %s: %s", bundle.path, GATE, error)
        return result


def _before(bundle: Bundle, result: GateResult) -> dict[str, Any] | None:
    """The verdict on the same graph that the bundle on disk holds now; None if it holds none."""
    current = open_bundle(bundle.path, verify=False)
    before = current.read_json(GATE)
    same = isinstance(before, dict) and before.get("graph_sha256") == result.graph_sha256
    return before if same else None


def gate_status(result: GateResult) -> GateStatus:
    """The status for the manifest."""
    return "passed" if result.passed else "failed"


def gate_file(result: GateResult) -> bytes:
    """The content of `gate.json`."""
    return (json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n").encode()


class Gallery:
    """Pictures of the `keep` images on which engine and reference agree least.

    They stay in memory until `save`. Record the result before that: then a full disk does not lose it.
    """

    def __init__(self, folder: Path, palette: tuple[Colour, ...], *, keep: int = 8) -> None:
        self.folder = folder
        self.palette = palette
        self.keep = keep
        self.kept: list[_Kept] = []

    def __call__(
        self, name: str, image: UInt8Array, label: UInt8Array, reference: UInt8Array, engine: UInt8Array
    ) -> None:
        """Keeps an image, uint8 [H, W, 3], and its masks, uint8 [H, W], if it is among the worst. Nothing is copied."""
        agreement = float((reference == engine).mean())
        if len(self.kept) == self.keep and agreement >= self.kept[-1].agreement:
            return
        worst = [*self.kept, _Kept(agreement, name, image, label, reference, engine)]
        self.kept = sorted(worst, key=lambda each: (each.agreement, each.name))[: self.keep]

    def save(self) -> list[Path]:
        """Writes `NAME.png` for each, the worst first, and returns the paths.

        A picture shows image, label, reference, engine and, in red, where the last two differ. Raises ImageError if one
        cannot be written.
        """
        paths = [self.folder / f"{each.name}.png" for each in self.kept]
        for path, each in zip(paths, self.kept, strict=True):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(path, durable=False) as file:
                    self._draw(each).save(file, "PNG")
            except OSError as error:
                raise ImageError(f"{path} cannot be written: {error}", "make room, or name another folder") from error
        return paths

    def _draw(self, kept: _Kept) -> Image.Image:
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(self.palette)] = self.palette
        dark = kept.image * 0.4
        blended = [(dark + colours[mask] * 0.6).astype(np.uint8) for mask in (kept.label, kept.reference, kept.engine)]
        difference = dark.astype(np.uint8)
        difference[kept.reference != kept.engine] = (255, 0, 0)
        return Image.fromarray(np.concatenate([kept.image, *blended, difference], axis=1))


@dataclass(frozen=True)
class _Kept:
    agreement: float
    name: str
    image: UInt8Array
    label: UInt8Array
    reference: UInt8Array
    engine: UInt8Array

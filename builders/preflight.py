"""What a build will do, with everything checked that can be checked before the work."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twins_trt.builders.assembly import profile
from twins_trt.builders.build_options import BuildOptions
from twins_trt.builders.calibration import calibration_images, read_plan
from twins_trt.builders.engine import current_device, describe, load
from twins_trt.builders.engine.versions import settle_targets
from twins_trt.builders.judge import gate_images
from twins_trt.builders.weights import find_weights
from twins_trt.errors import BundleError, UsageError
from twins_trt.runtime.manifest import GRAPH, MANIFEST, WEIGHTS

AUDIT, PLAN, CALIBRATION, GATE, FALLBACK = "audit.json", "plan.json", "calibration.json", "gate.json", "fallback.json"


@dataclass(frozen=True)
class BuildPlan:
    """What a build will do, all of it checked that can be checked beforehand.

    options: with the targets settled. weights: the file, None for seeded ones. compilers: name and version by engine.
    """

    options: BuildOptions
    out: Path
    weights: Path | None
    engine_files: tuple[str, ...]
    compilers: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """What the bundle will hold."""
        int8 = (PLAN, CALIBRATION) if self.options.int8 else ()
        audit = (AUDIT,) if self.engine_files else ()
        gate = (GATE,) if self.options.gate else ()
        weights = (WEIGHTS,) if self.options.with_weights else ()
        return (GRAPH, *self.engine_files, *int8, *audit, *gate, *weights, MANIFEST)

    @property
    def steps(self) -> tuple[str, ...]:
        engines = (f"engine {engine.flavour} {'+'.join(engine.targets)}" for engine in self.options.engines)
        int8 = ("calibration", "plan") if self.options.int8 else ()
        gate = ("gate",) if self.options.gate else ()
        return ("weights", "graph", *int8, *gate, *engines, "bundle")

    @property
    def work(self) -> Path | None:
        """Where an INT8 build keeps what it has done so far: the same command goes on from there after a kill."""
        return self.out.with_name(f"{self.out.name}.work") if self.options.int8 else None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {
            "out": str(self.out),
            "weights": None if self.weights is None else str(self.weights),
            "steps": list(self.steps),
            "files": list(self.files),
            "compilers": list(self.compilers),
            "options": self.options.to_json(),
        }


def plan_build(options: BuildOptions, out: str | Path, *, overwrite: bool = False) -> BuildPlan:
    """Checks a build and settles its targets, without reading weights or compiling anything.

    Raises as `build_bundle` does for everything that shows beforehand.
    """
    out = Path(out)
    weights = find_weights(options.model, checkpoint=options.checkpoint, seeded=options.seeded)
    _check_out(out, overwrite=overwrite)
    _check_data(options)
    engines, compilers = [], []
    device = current_device()
    for engine in options.engines:
        offer = describe(load(engine.flavour), engine.flavour)
        try:
            targets = settle_targets(offer, engine, device)
        except UsageError as error:
            fix = error.fix if engine.targets else f"{error.fix} (--target sm_86,sm_89), or cpu"
            raise UsageError(error.cause, fix) from error
        engines.append(replace(engine, targets=targets, profile=profile(options.graph)))
        compilers.append(offer.name)
    files = tuple(f"engines/{'-'.join((engine.flavour, *engine.targets))}.engine" for engine in engines)
    if len(set(files)) < len(files):
        raise UsageError("two engines are of one flavour and for the same targets", "name each of them once")
    return BuildPlan(replace(options, engines=tuple(engines)), out, weights, files, tuple(compilers))


def _check_data(options: BuildOptions) -> None:
    """What data and files would be refused after minutes of work."""
    if options.gate is not None:
        gate_images(options.gate)
    if options.int8 is not None:
        calibration_images(options.int8)
        if options.int8.plan is not None:
            read_plan(options.int8.plan)
        if options.int8.calibration is not None and not Path(options.int8.calibration).is_file():
            raise UsageError(f"there is no range file {options.int8.calibration}", "twins-trt calibrate writes one")


def _check_out(out: Path, *, overwrite: bool) -> None:
    """What `write_bundle` would refuse after minutes of work."""
    if out.exists() or out.is_symlink():
        if not (out / MANIFEST).is_file():
            raise BundleError(f"{out} exists and is not a bundle, so it is not replaced", "choose another name")
        if not overwrite:
            raise BundleError(f"{out} exists", "choose another name, or replace it: --overwrite")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise BundleError(f"{out} cannot be written: {parent} is no folder to write in", "choose another place")

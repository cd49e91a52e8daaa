"""The whole build as one call: weights, graph, engines, audit, bundle; whole at the end, or nothing."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from twins_trt.builders.audit import Audit, audit_layers, check_fused
from twins_trt.builders.build_options import BuildOptions, rebuild_command
from twins_trt.builders.engine import (
    BuiltEngine,
    EngineOptions,
    Port,
    build_engine,
    current_device,
    describe,
    load,
    read_header,
)
from twins_trt.builders.engine.versions import settle_targets
from twins_trt.builders.export import ExportOptions, GraphInfo, Range, export_graph
from twins_trt.builders.weights import ModelFacts, find_weights, load_weights
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.errors import BundleError, UnfusedAttentionError, UsageError
from twins_trt.runtime.bundle import Bundle, write_bundle
from twins_trt.runtime.manifest import GRAPH, MANIFEST, EngineFile, Manifest
from twins_trt.runtime.tensors import DType, TensorSpec
from twins_trt.version import __version__

log = logging.getLogger("twins_trt")

AUDIT = "audit.json"

_TOOLS = ("torch", "onnx", "onnx-graphsurgeon", "numpy")

_POLL_S = 0.1

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """Where a build is. number, count: this step and how many there are, from 1. share: of this step, 0 to 1."""

    number: int
    count: int
    name: str
    detail: str = ""
    share: float | None = None


Progress = Callable[[Step], None]


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
        return (GRAPH, *self.engine_files, *((AUDIT,) if self.engine_files else ()), MANIFEST)

    @property
    def steps(self) -> tuple[str, ...]:
        engines = (f"engine {engine.flavour} {'+'.join(engine.targets)}" for engine in self.options.engines)
        return ("weights", "graph", *engines, "bundle")

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


@dataclass(frozen=True)
class BuildReport:
    """What came out. audits: by engine file. seconds: wall time by step. peak_host_mib: most resident memory, MiB."""

    bundle: Bundle
    audits: Mapping[str, Audit]
    seconds: Mapping[str, float]
    peak_host_mib: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {
            "bundle": str(self.bundle.path),
            "manifest": self.bundle.manifest.to_json(),
            "audits": {name: audit.to_json() for name, audit in self.audits.items()},
            "seconds": {step: round(value, 3) for step, value in self.seconds.items()},
            "peak_host_mib": self.peak_host_mib,
        }


def plan_build(options: BuildOptions, out: str | Path, *, overwrite: bool = False) -> BuildPlan:
    """Checks a build and settles its targets, without reading weights or compiling anything.

    Raises as `build_bundle` does for everything that shows beforehand.
    """
    out = Path(out)
    weights = find_weights(options.model, checkpoint=options.checkpoint, seeded=options.seeded)
    _check_out(out, overwrite=overwrite)
    engines, compilers = [], []
    device = current_device()
    for engine in options.engines:
        offer = describe(load(engine.flavour), engine.flavour)
        try:
            targets = settle_targets(offer, engine, device)
        except UsageError as error:
            fix = error.fix if engine.targets else f"{error.fix} (--target sm_86,sm_89), or cpu"
            raise UsageError(error.cause, fix) from error
        engines.append(replace(engine, targets=targets, profile=_profile(options.graph)))
        compilers.append(offer.name)
    files = tuple(f"engines/{'-'.join((engine.flavour, *engine.targets))}.engine" for engine in engines)
    if len(set(files)) < len(files):
        raise UsageError("two engines are of one flavour and for the same targets", "name each of them once")
    return BuildPlan(replace(options, engines=tuple(engines)), out, weights, files, tuple(compilers))


def build_bundle(
    options: BuildOptions, out: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> BuildReport:
    """Builds a bundle in the new folder `out`. An interrupt or an error leaves nothing behind.

    overwrite: replace a bundle that is there. progress: called at every step, and while an engine builds.
    Raises `UsageError` for options that do not fit together, `CheckpointError` for weights that do not fit the model,
    `ExportError` and `BuildError` where graph or engine cannot be made, `UnfusedAttentionError` where an FP16 or INT8
    engine leaves an attention unfused and `allow_unfused` is off, `BundleError` where `out` exists or cannot be
    written, `MissingDependencyError` where a compiler, or the GPU it needs, is not there.
    """
    plan = plan_build(options, out, overwrite=overwrite)
    options = plan.options
    clock = _Clock(plan.steps, progress)
    clock.begin("seeded" if plan.weights is None else str(plan.weights))
    model, facts = load_weights(
        options.model,
        checkpoint=options.checkpoint,
        seeded=options.seeded,
        num_classes=options.num_classes,
        padding=options.padding,
    )
    with tempfile.TemporaryDirectory(prefix="twins-trt-") as folder:
        graph = Path(folder) / GRAPH
        clock.begin(f"{options.graph.precision}, opset {options.graph.opset}")
        info = export_graph(model, graph, options.graph)
        del model  # a large model's weights are better gone before the compiler makes its own copies
        built: dict[str, BuiltEngine] = {}
        audits: dict[str, Audit] = {}
        for file, engine, compiler in zip(plan.engine_files, options.engines, plan.compilers, strict=True):
            clock.begin(compiler)
            built[file] = _build_apart(graph, engine, clock.inside)
            audits[file] = _audited(built[file], info, allow_unfused=options.allow_unfused)
        clock.begin(str(plan.out))
        files: dict[str, bytes | Path] = {GRAPH: graph, **{file: engine.plan for file, engine in built.items()}}
        if built:
            files[AUDIT] = _audit_file(built, audits)
        bundle = write_bundle(
            plan.out, _manifest(options, plan.out, graph, info, facts, built), files, overwrite=overwrite
        )
    clock.end()
    return BuildReport(bundle, audits, clock.seconds, _peak_host_mib())


def _build_apart(graph: Path, engine: EngineOptions, progress: Callable[[str, float | None], None]) -> BuiltEngine:
    """`build_engine` in a thread of its own, while this one reports and waits.

    An interrupt arrives in the main thread. There it would be lost if a compiler had just called back into Python (its
    bindings print the exception and go on), and `Thread.join`, interrupted, takes a running thread for an ended one
    (CPython 3.11). So this thread waits on an event; what is raised in it, also by `progress`, stops the build at its
    next sign of life, and is raised when the build has ended.
    """
    news: deque[tuple[str, float | None]] = deque()
    stopped, ended = threading.Event(), threading.Event()
    outcome: list[BuiltEngine] = []
    failure: list[BaseException] = []

    def report(detail: str, share: float | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        news.append((detail, share))

    def build() -> None:
        try:
            outcome.append(build_engine(graph, engine, progress=report))
        except BaseException as error:
            failure.append(error)
        finally:
            ended.set()

    threading.Thread(target=build, name="twins-trt engine", daemon=True).start()
    try:
        while not ended.wait(_POLL_S):
            while news:
                progress(*news.popleft())
    except BaseException:
        stopped.set()
        ended.wait()
        raise
    if failure:
        raise failure[0]
    return outcome[0]


class _Clock:
    """Times the steps and tells the caller where the build is."""

    def __init__(self, steps: Sequence[str], progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._steps = steps
        self._progress = progress
        self._started = 0.0

    def begin(self, detail: str) -> None:
        self.end()
        self.seconds[self._steps[len(self.seconds)]] = 0.0
        self._started = time.perf_counter()
        self.inside(detail, None)

    def inside(self, detail: str, share: float | None) -> None:
        if self._progress is not None:
            number = len(self.seconds)
            self._progress(Step(number, len(self._steps), self._steps[number - 1], detail, share))

    def end(self) -> None:
        if self.seconds:
            self.seconds[self._steps[len(self.seconds) - 1]] = time.perf_counter() - self._started


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


def _audited(engine: BuiltEngine, info: GraphInfo, *, allow_unfused: bool) -> Audit:
    audit = audit_layers(engine.layers, expected_attentions=info.attentions)
    if info.options.precision == "fp32":
        return audit  # no compiler fuses float32 attention, so there is nothing to hold it to
    try:
        check_fused(audit)
    except UnfusedAttentionError as error:
        if not allow_unfused:
            log.warning("audit of the engine that is refused:\n%s", audit.table())  # no bundle will hold it
            raise
        log.warning("%s (allowed)", error.cause)
    return audit


def _audit_file(built: Mapping[str, BuiltEngine], audits: Mapping[str, Audit]) -> bytes:
    engines = [
        {
            "file": file,
            "flavour": engine.flavour,
            "version": engine.version,
            "targets": list(engine.targets),
            "audit": audits[file].to_json(),
        }
        for file, engine in built.items()
    ]
    return (json.dumps({"engines": engines}, indent=2) + "\n").encode()


def _manifest(
    options: BuildOptions,
    out: Path,
    graph: Path,
    info: GraphInfo,
    facts: ModelFacts,
    built: Mapping[str, BuiltEngine],
) -> Manifest:
    header = read_header(graph)
    return Manifest(
        model=info.model,
        num_classes=info.num_classes,
        classes=facts.classes,
        palette=facts.palette,
        inputs=tuple(_spec(port, _shapes(options.graph)) for port in header.inputs),
        outputs=tuple(_spec(port, None) for port in header.outputs),
        padding="masked" if info.padding == "masked" else "parity",
        precision=options.graph.precision,
        opset=header.opset,
        source=facts.source,
        rebuild=rebuild_command(options, out),
        preprocessing=Preprocessing(test_scale=options.test_scale),
        engines=tuple(
            EngineFile(file, engine.flavour, engine.version, engine.targets) for file, engine in built.items()
        ),
        tools=_tools(built),
    )


def _spec(port: Port, profile: tuple[Shape, Shape, Shape] | None) -> TensorSpec:
    shape = tuple(f"{port.name}.{axis}" if extent is None else extent for axis, extent in enumerate(port.shape))
    limits = profile if profile and port.dynamic else (None, None, None)
    return TensorSpec(port.name, cast(DType, port.dtype), shape, *limits)


def _shapes(graph: ExportOptions) -> tuple[Shape, Shape, Shape]:
    """The smallest, the usual and the largest shape of the input `image`."""
    kinds = ("min", "opt", "max")
    sides = {
        name: [getattr(value, kind) if isinstance(value, Range) else value for kind in kinds]
        for name, value in (("n", graph.batch), ("h", graph.height), ("w", graph.width))
    }
    order = "nhwc" if graph.input == "uint8" else "nchw"
    least, usual, most = (tuple(3 if axis == "c" else sides[axis][i] for axis in order) for i in range(3))
    return least, usual, most


def _profile(graph: ExportOptions) -> dict[str, tuple[Shape, Shape, Shape]] | None:
    dynamic = any(isinstance(side, Range) for side in (graph.batch, graph.height, graph.width))
    return {"image": _shapes(graph)} if dynamic else None


def _tools(built: Mapping[str, BuiltEngine]) -> dict[str, str]:
    """Name and version of everything that had a hand in the files."""
    tools = {"twins-trt": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in _TOOLS:
        try:
            tools[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # importable without metadata (a vendored or system package): nothing to write down
    return tools | {engine.flavour: engine.version for engine in built.values()}


def _peak_host_mib() -> float | None:
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)

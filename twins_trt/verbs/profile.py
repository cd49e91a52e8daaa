"""`profile`: how fast bundles and other candidates are, side by side: request, defaults, flags and call."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.errors import UsageError
from twins_trt.profiling.power import KINDS as METERS
from twins_trt.profiling.results import ProfileOptions
from twins_trt.progress import Progress
from twins_trt.spelling import spelled
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.groups.running import THREADS_FLAG, bundle_path, torch_device
from twins_trt.verbs.groups.weights import WEIGHTS_GROUP, find_requested, weights_flags
from twins_trt.verbs.kinds import COUNTS, FIXED_SIZE, NAMES, NUMBER, SWITCH, WHOLE

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor
    from twins_trt.profiling.candidates import Candidate
    from twins_trt.profiling.results import Profile
    from twins_trt.runtime import Bundle, Source

_DEFAULTS = ProfileOptions()
_DAY = 86400  # seconds


@dataclass(frozen=True)
class ProfileRequest:
    """A profile.

    bundles: folders. onnx: plain ONNX files. torch: a name of the zoo, which runs in PyTorch, eager. engines: what runs
    bundles, of `runtime.engines.KINDS`, or `auto`; with several each bundle runs on each. baseline: the candidate that
    the others are compared with, by default the first. out: a JSON file for the results, with every sample. save: put
    them into the bundles, as `profile.json`.

    image: the picture; by default one is drawn, at the graph's own size. rounds, calls, warm_up: as in
    `profiling.results.ProfileOptions`, warm_up in seconds. threads: of the CPU. batches: of the throughput sweep, if
    a graph allows them. layers: time them, too. power: what reads it, of `profiling.power.KINDS`. power_seconds: of
    each. device: where PyTorch runs, `auto`, `cpu` or `cuda`. size: (height, width) of the PyTorch model, pixels; by
    default the first bundle's.

    checkpoint, seeded, num_classes, padding, weights, conventions: of the PyTorch model, as in `BuildRequest`.
    Raises `UsageError` for a value of the wrong kind.
    """

    bundles: tuple[str, ...] = ()
    onnx: tuple[str, ...] = ()
    torch: str | None = None
    engines: tuple[str, ...] = ("auto",)
    baseline: str | None = None
    image: str | None = None
    rounds: int = _DEFAULTS.rounds
    calls: int = _DEFAULTS.calls
    warm_up: float = _DEFAULTS.warm_up_s
    threads: int | None = None
    batches: tuple[int, ...] = (1, 2, 4, 8)
    layers: bool = _DEFAULTS.layers
    power: str = "auto"
    power_seconds: float = _DEFAULTS.power_s
    device: str = "auto"
    size: tuple[int, int] | None = None
    out: str | None = None
    save: bool = False
    checkpoint: str | None = None
    seeded: bool = False
    num_classes: int | None = None
    padding: str | None = None
    weights: str | None = None
    conventions: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        settle(self, TABLE)


MEASURING = "measuring"

TABLE: tuple[Flag, ...] = (
    Flag("BUNDLE", "bundles", "bundles to measure", nargs="*"),
    Flag("--onnx", "onnx", "a plain ONNX file as well", metavar="FILE", repeated=True),
    Flag("--torch", "torch", "a model in PyTorch, eager, as well; with its weights below", metavar="MODEL"),
    Flag("--engine", "engines", "what runs bundles; several: each of them; default: {default}", NAMES, "KIND,..."),
    Flag("--baseline", "baseline", "what the others are compared with; default: the first", metavar="NAME"),
    Flag(
        "--image",
        "image",
        "the picture; default: one is drawn, at the graph's own size",
        metavar="FILE",
        group=MEASURING,
    ),
    Flag("--rounds", "rounds", "default: {default}", WHOLE, "N", group=MEASURING),
    Flag("--calls", "calls", "timed calls of each in a round; default: {default}", WHOLE, "N", group=MEASURING),
    Flag("--warm-up", "warm_up", "at most so many seconds; default: {default}", NUMBER, "S", group=MEASURING),
    replace(THREADS_FLAG, group=MEASURING),
    Flag(
        "--batches",
        "batches",
        "throughput at these, if a graph allows them; or none; default: {default}",
        COUNTS,
        "N,...",
        group=MEASURING,
    ),
    Flag("--no-layers", "layers", "do not time layers", SWITCH, sets=False, group=MEASURING),
    Flag(
        "--power",
        "power",
        "what reads power; default: {default}, what is there",
        metavar=f"{{{','.join(METERS)}}}",
        group=MEASURING,
    ),
    Flag("--power-seconds", "power_seconds", "of each candidate; default: {default}", NUMBER, "S", group=MEASURING),
    Flag(
        "--device",
        "device",
        "where the PyTorch model runs; default: {default}",
        metavar="{auto,cpu,cuda}",
        group=MEASURING,
    ),
    Flag(
        "--size",
        "size",
        "of the PyTorch model; default: the first bundle's",
        FIXED_SIZE,
        "HxW",
        group=MEASURING,
    ),
    Flag("--out", "out", "write the results, with every sample, to this JSON file", metavar="FILE"),
    Flag("--save", "save", "put them into the bundles too (profile.json)", SWITCH, sets=True),
    *weights_flags("weights"),
)

FLAGS = FlagTable(ProfileRequest, TABLE, groups=WEIGHTS_GROUP)


def profile(
    *bundles: str | PathLike[str] | Bundle,
    onnx: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    torch: str | None = None,
    checkpoint: str | PathLike[str] | None = None,
    seeded: bool | None = None,
    engines: str | Sequence[str] | None = None,
    baseline: str | None = None,
    rounds: int | None = None,
    threads: int | None = None,
    out: str | PathLike[str] | None = None,
    save: bool | None = None,
    more: ProfileRequest | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Measures bundles side by side: latency by stage and layer, throughput, memory, energy.

        profile = twins_trt.profile("fp16.bundle", "int8.bundle", save=True)
        print(profile.of("int8").end_to_end.p50)  # milliseconds

    bundles: their folders, or opened ones. onnx: plain ONNX files as well. torch: a name of the zoo as well, run in
    PyTorch with the weights of checkpoint or seeded. `ProfileRequest` describes the other parameters. more: further
    fields of that request, such as `ProfileRequest(power="none")`; a field may be given only once.
    progress: called at every step, and while one lasts.
    KeyboardInterrupt after the first whole round ends the measuring: the whole rounds are returned and written to
    `out`, marked `interrupted`, and not saved into bundles. Before that it is raised.
    Raises `UsageError` for fields that exclude each other, `BundleError` for a bundle that is damaged,
    `CheckpointError` for weights that do not fit the model, `EngineError` where an engine refuses a candidate,
    `ProfileError` where power cannot be read or results cannot be written, `MissingDependencyError` where no engine can
    run here.
    """
    paths = list(map(bundle_path, bundles))
    request = FLAGS.ask(
        more,
        bundles=paths or None,
        onnx=onnx,
        torch=torch,
        checkpoint=checkpoint,
        seeded=seeded,
        engines=engines,
        baseline=baseline,
        rounds=rounds,
        threads=threads,
        out=out,
        save=save,
    )
    return measure(resolve_profile(request), progress=progress)


@dataclass(frozen=True)
class ProfileJob:
    """What a profile will do, checked as far as possible. Only manifests have been opened."""

    request: ProfileRequest
    options: ProfileOptions
    candidates: tuple[Candidate, ...]
    bundles: tuple[Bundle, ...]

    @property
    def command(self) -> str:
        """The command line that measures the same again, without the places for results."""
        words = FLAGS.words(replace(self.request, out=None, save=False))
        return shlex.join(["twins-trt", "profile", *words])


def resolve_profile(request: ProfileRequest) -> ProfileJob:
    """The job of a request. Raises as `profile` does."""
    from twins_trt.runtime import open_bundle

    options, candidates = _options(request), tuple(_candidates(request))
    # Opened before they are measured: a bundle that replaces one of them meanwhile gets no profile.
    bundles = tuple(open_bundle(path, verify=False) for path in dict.fromkeys(request.bundles))
    job = ProfileJob(request, options, candidates, bundles)
    if request.out is not None and not Path(request.out).absolute().parent.is_dir():
        raise UsageError(f"{spelled('out')} is {request.out}, in a folder that does not exist", "make it first")
    return job


def measure(job: ProfileJob, *, progress: Progress | None = None) -> Profile:
    """Does the job, and writes and saves the results as the request says. Raises as `profile` does."""
    from twins_trt.profiling.measure import profile
    from twins_trt.profiling.power import open_meter
    from twins_trt.profiling.results import write_profile
    from twins_trt.profiling.saved import save_profile

    request = job.request
    meter = open_meter(request.power)
    try:
        measured = profile(
            job.candidates,
            job.options,
            picture=request.image,
            baseline=request.baseline,
            meter=meter,
            command=job.command,
            progress=progress,
        )
    finally:
        if meter is not None:
            meter.close()
    if request.out is not None:
        write_profile(request.out, measured)
    if request.save and not measured.interrupted:  # an interrupted run must not replace a whole one
        for bundle in job.bundles:
            save_profile(bundle, measured)
    return measured


def _options(request: ProfileRequest) -> ProfileOptions:
    for name in ("rounds", "calls"):
        if getattr(request, name) < 1:
            raise UsageError(f"{spelled(name)} is {getattr(request, name)}", "give at least 1")
    for name in ("warm_up", "power_seconds"):
        if not 0 <= getattr(request, name) < _DAY:
            raise UsageError(f"{spelled(name)} is {getattr(request, name)}", "give seconds, 0 or more")
    return ProfileOptions(
        rounds=request.rounds,
        calls=request.calls,
        warm_up_s=request.warm_up,
        batches=request.batches,
        threads=request.threads,
        layers=request.layers,
        power_s=request.power_seconds,
    )


def _candidates(request: ProfileRequest) -> list[Candidate]:
    """The candidates that the request names: bundles, on each engine, come first."""
    from twins_trt.profiling.candidates import bundle_candidate, onnx_candidate
    from twins_trt.runtime.engines import check_kind

    engines = request.engines or ("auto",)
    for kind in engines:
        check_kind(kind)
    paths = list(map(Path, request.bundles))
    names = [path.name for path in paths]
    candidates = []
    for path in paths:
        if path.suffix == ".onnx":
            raise UsageError(f"{path} is an ONNX file, not a bundle", spelled("onnx", str(path)))
        alike = names.count(path.name) > 1
        for kind in engines:
            name = str(path) if alike else path.name.removesuffix(".bundle")
            candidates.append(bundle_candidate(path, kind, label=name if len(engines) == 1 else f"{name} on {kind}"))
    candidates += [onnx_candidate(path) for path in request.onnx]
    if request.torch is not None:
        candidates.append(_torch(request, request.torch))
    elif request.checkpoint is not None or request.seeded:
        raise UsageError(
            f"{spelled('checkpoint')} and {spelled('seeded')} are the PyTorch model's",
            f"name it: {spelled('torch', 'MODEL')}",
        )
    if not candidates:
        others = f"{spelled('onnx', 'FILE')} or {spelled('torch', 'MODEL')}"
        raise UsageError("there is nothing to measure", f"name a bundle, or give {others}")
    return candidates


def _torch(request: ProfileRequest, name: str) -> Candidate:
    from twins_trt.models.weights import load_found
    from twins_trt.profiling.candidates import torch_candidate
    from twins_trt.runtime import open_bundle

    first = open_bundle(request.bundles[0], verify=False).interface if request.bundles else None
    if request.seeded and request.num_classes is None and first is not None:
        request = replace(request, num_classes=first.num_classes)
    found = find_requested(request, name, request.checkpoint)
    size = request.size or (None if first is None else first.opt_size) or found.spec.crop_size

    def load() -> tuple[Segmentor, Source]:
        # As mmsegmentation computes: with its own attention, a GPU would run our kernels.
        model, facts = load_found(found, attention="reference")
        return model, facts.source

    return torch_candidate(found.name, load, size=size, device=torch_device(request.device))

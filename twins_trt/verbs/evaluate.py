"""`evaluate`: the scores of a bundle or a model on a data set: request, defaults, flags and call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twins_trt.codec import encode
from twins_trt.data.preprocessing import ADE20K_TEST
from twins_trt.errors import UsageError
from twins_trt.models.conventions import Fact
from twins_trt.models.source import FoundModel
from twins_trt.models.zoo import is_model
from twins_trt.progress import Progress, silent
from twins_trt.spelling import spelled
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.groups.images import data_flags, labelled_images
from twins_trt.verbs.groups.modes import MODES_GROUP, mode_flags, mode_of
from twins_trt.verbs.groups.running import ENGINE_FLAG, THREADS_FLAG, WORKERS_FLAG, bundle_path, torch_device
from twins_trt.verbs.groups.tested import Tested, facts_that_hold, resolve_test, told_by_bundle
from twins_trt.verbs.groups.weights import WEIGHTS_GROUP, find_requested, nothing_called, weights_flags
from twins_trt.verbs.kinds import TEST_SCALE

if TYPE_CHECKING:
    from twins_trt.data import Dataset
    from twins_trt.evaluation import EvalResult, EvaluationOptions, Scores
    from twins_trt.runtime import Bundle, Source


@dataclass(frozen=True)
class EvaluateRequest:
    """An evaluation.

    what: a bundle's folder; a name of the zoo, which runs in PyTorch; or a checkpoint, which tells its model. data:
    labelled images, `camvid:PATH`, `ade20k:PATH` or `folder:PATH`. split, limit: which of them; limit None for all.
    workers: processes that read images ahead. threads: of the CPU.

    engine: what runs a bundle, of `runtime.engines.KINDS`, or `auto`. device: where PyTorch runs, `auto`, `cpu` or
    `cuda`. fit: how images meet a bundle of fixed size, `stretch` or `letterbox`. test_scale: (long, short) side that
    an image is fitted into first, pixels, or `none`; by default the checkpoint's, else mmsegmentation's for ade20k.
    mode: `whole`, `slide`, `ms_flip`, `slide_ms_flip`, or `tile` for bundles; by default as the checkpoint says that it
    is tested. tile: (height, width) of a tile, pixels. overlap: pixels that tiles share.

    checkpoint, seeded, num_classes, padding, weights, conventions: of a model, as in `BuildRequest`. Of a bundle,
    conventions of labels and tests may be overridden.
    Raises `UsageError` for a value of the wrong kind.
    """

    what: str = ""
    data: str = ""
    split: str = "val"
    limit: int | None = None
    workers: int = 0
    engine: str = "auto"
    threads: int | None = None
    test_scale: tuple[int, int] | str | None = None
    device: str = "auto"
    fit: str = "stretch"
    mode: str | None = None
    tile: tuple[int, int] | None = None
    overlap: int | None = None
    checkpoint: str | None = None
    seeded: bool = False
    num_classes: int | None = None
    padding: str | None = None
    weights: str | None = None
    conventions: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        settle(self, TABLE)


TABLE: tuple[Flag, ...] = (
    Flag("BUNDLE|MODEL", "what", "a bundle, a name that twins-trt models lists, or a checkpoint that tells it"),
    *data_flags(),
    WORKERS_FLAG,
    ENGINE_FLAG,
    THREADS_FLAG,
    Flag(
        "--test-scale",
        "test_scale",
        "fit images into this first, or none; default: the checkpoint's, else "
        f"{TEST_SCALE.show(ADE20K_TEST.test_scale)} for ade20k",
        TEST_SCALE,
        "LONGxSHORT",
    ),
    Flag("--device", "device", "where a PyTorch model runs; default: {default}", metavar="{auto,cpu,cuda}"),
    Flag("--fit", "fit", "into a bundle of fixed size; default: {default}", metavar="{stretch,letterbox}"),
    *mode_flags("large images"),
    *weights_flags("weights"),
)

FLAGS = FlagTable(EvaluateRequest, TABLE, groups=MODES_GROUP | WEIGHTS_GROUP)


@dataclass(frozen=True)
class Evaluation:
    """The scores and how they were obtained.

    engine: the kind that ran; `pytorch` for a model. device: of a model; None for a bundle. model, precision, padding,
    source: of the bundle or model. resized: how many images did not have the graph's size; None for a model, which
    takes any size. exact: whether the masks equal those of mmsegmentation's test pipeline; if not, `notes` says why.
    conventions: how images were treated, labels read and the model run, with the origin of each value.
    """

    result: EvalResult
    engine: str
    device: str | None
    model: str
    precision: str
    padding: str
    source: Source
    resized: int | None
    exact: bool
    notes: tuple[str, ...]
    conventions: tuple[Fact, ...] = ()

    @property
    def scores(self) -> Scores:
        """mIoU, accuracies and IoU of every class, in percent."""
        return self.result.scores

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`: those of the result, and how it was obtained."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in ("engine", "device", "model", "precision")}
        plain |= {"padding": self.padding, "source": encode(self.source), "resized_images": self.resized}
        plain |= {"exact": self.exact, "notes": list(self.notes), "conventions": encode(self.conventions)}
        return {**self.result.to_json(), **plain}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Evaluation:
        """The inverse of `to_json`."""
        from twins_trt.evaluation import EvalResult
        from twins_trt.runtime import Source

        plain = dict(values)
        result = EvalResult.from_json({name: plain.pop(name) for name in EvalResult.__dataclass_fields__})
        plain["source"], plain["notes"] = Source(**plain["source"]), tuple(plain["notes"])
        plain["conventions"] = tuple(Fact(**each) for each in plain.get("conventions", ()))
        return cls(result, resized=plain.pop("resized_images"), **plain)

    def table(self) -> str:
        """The scores of every class; below, what the checkpoint or a flag decided, and the notes."""
        decided = (fact for fact in self.conventions if fact.origin in ("file", "flag"))
        said = (f"{fact.name} {fact.value}: {fact.where}" for fact in decided)
        return "\n".join([self.result.table(), *said, *(f"note: {note}" for note in self.notes)])


def evaluate(
    what: str | PathLike[str] | Bundle,
    data: str,
    *,
    split: str | None = None,
    limit: int | None = None,
    engine: str | None = None,
    mode: str | None = None,
    test_scale: str | tuple[int, int] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    seeded: bool | None = None,
    device: str | None = None,
    threads: int | None = None,
    more: EvaluateRequest | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Scores a bundle, or a model in PyTorch, on labelled images as mmsegmentation does: mIoU, accuracy, IoU per class.

        print(twins_trt.evaluate("x.bundle", "camvid:PATH").scores.miou)

    what: a bundle's folder, an opened bundle, a name of the zoo, or a checkpoint, which tells its model. data: labelled
    images. `EvaluateRequest` describes the other parameters. more: further fields of that request, such as
    `EvaluateRequest(fit="letterbox")`; a field may be given only once. progress: called at every step, and after every
    image.
    Returns the scores and how they were obtained.
    Raises `UsageError` for fields that exclude each other, `BundleError` for a bundle that is damaged,
    `CheckpointError` for weights that do not fit the model, `DataError` for images without labels or with other
    classes, `ImageError` for one that cannot be decoded, `EngineError` where an engine refuses the bundle,
    `MissingDependencyError` where no engine can run here.
    """
    opened = None if isinstance(what, (str, PathLike)) else what
    request = FLAGS.ask(
        more,
        what=bundle_path(what),
        data=data,
        split=split,
        limit=limit,
        engine=engine,
        mode=mode,
        test_scale=test_scale,
        checkpoint=checkpoint,
        seeded=seeded,
        device=device,
        threads=threads,
    )
    return score(resolve_evaluation(request, opened), progress=progress)


@dataclass(frozen=True)
class EvaluationJob:
    """What an evaluation will do, checked as far as possible."""

    request: EvaluateRequest
    scored: Bundle | FoundModel
    dataset: Dataset
    tested: Tested

    @property
    def weights(self) -> Path | None:
        """The file of a model's weights; None for seeded ones, and for a bundle."""
        return self.scored.weights if isinstance(self.scored, FoundModel) else None

    @property
    def mode_name(self) -> str:
        """The mode in a word."""
        from twins_trt.inference.tiling import Tiles

        mode = self.tested.mode
        return mode if isinstance(mode, str) else "tile" if isinstance(mode, Tiles) else mode.name


def resolve_evaluation(request: EvaluateRequest, bundle: Bundle | None = None) -> EvaluationJob:
    """The job of a request. bundle: the bundle that the request names, if it is already open.

    Raises as `evaluate` does.
    """
    from twins_trt.inference.tiling import Tiles
    from twins_trt.runtime.engines import check_kind

    check_kind(request.engine)
    in_pytorch = bundle is None and _runs_in_pytorch(request.what)
    dataset = labelled_images(request.data, split=request.split, limit=request.limit)
    asked = mode_of(request.mode, tile=request.tile, overlap=request.overlap)
    if in_pytorch and (isinstance(asked, Tiles) or asked == "tile"):
        raise UsageError("a PyTorch model is not run in tiles", f"use {spelled('mode', 'slide')}, or build a bundle")
    scored: Bundle | FoundModel
    if in_pytorch:
        scored, interface = find_requested(request, request.what, request.checkpoint), None
        told = scored.conventions
    else:
        scored = _bundle(request, bundle)
        told, interface = told_by_bundle(scored, request.conventions), scored.interface
    tested = resolve_test(
        told,
        data=request.data,
        test_scale=request.test_scale,
        mode=request.mode,
        tile=request.tile,
        overlap=request.overlap,
        interface=interface,
    )
    return EvaluationJob(request, scored, tested.told.labels_of(dataset), tested)


def score(job: EvaluationJob, *, progress: Progress | None = None) -> Evaluation:
    """Does the job. Raises as `evaluate` does."""
    from twins_trt.evaluation import EvaluationOptions

    options = EvaluationOptions(workers=job.request.workers, progress=progress or silent)
    if isinstance(job.scored, FoundModel):
        return _score_model(job, job.scored, options)
    return _score_bundle(job, job.scored, options)


def _runs_in_pytorch(what: str) -> bool:
    """Whether `what` is a model's name or checkpoint; False for a bundle. Raises `UsageError` for anything else."""
    from twins_trt.models.telling import CHECKPOINTS

    path = Path(what)
    if (path / "manifest.json").is_file():
        return False
    if is_model(what) or (path.is_file() and path.suffix in CHECKPOINTS):
        return True
    if (what and path.exists()) or what.endswith(".bundle"):
        return False
    raise nothing_called(what, no="bundle", fix="twins-trt models lists the models, twins-trt build makes bundles")


def _bundle(request: EvaluateRequest, bundle: Bundle | None) -> Bundle:
    from twins_trt.runtime import open_bundle

    if request.checkpoint is not None or request.seeded:
        raise UsageError(
            "a bundle has its weights inside", f"leave {spelled('checkpoint')} and {spelled('seeded')} out"
        )
    bundle = bundle or open_bundle(request.what)
    classes = bundle.interface.num_classes
    if request.num_classes not in (None, classes):
        raise UsageError(
            f"{spelled('num_classes')} is {request.num_classes}, {bundle.path} has {classes} classes",
            f"leave {spelled('num_classes')} out",
        )
    return bundle


def _score_model(job: EvaluationJob, found: FoundModel, options: EvaluationOptions) -> Evaluation:
    import torch

    from twins_trt.evaluation import evaluate_model
    from twins_trt.inference.tiling import Tiles
    from twins_trt.models.weights import load_found

    request = job.request
    device = torch_device(request.device)
    if request.threads is not None:
        torch.set_num_threads(max(1, request.threads))
    options.progress("load", "seeded" if found.weights is None else str(found.weights), None)
    model, facts = load_found(found)
    mode = job.tested.mode
    assert not isinstance(mode, Tiles)  # resolve_evaluation refuses them
    preprocessing = job.tested.told.preprocessing
    result = evaluate_model(model.to(device), job.dataset, mode=mode, preprocessing=preprocessing, options=options)
    return Evaluation(
        result,
        engine="pytorch",
        device=device,
        model=found.name,
        precision="fp32",
        padding=model.padding,
        source=facts.source,
        resized=None,
        exact=True,
        notes=("random weights: the scores mean nothing",) if facts.source.seeded else (),
        conventions=facts_that_hold(job.tested.told, job.dataset),
    )


def _score_bundle(job: EvaluationJob, bundle: Bundle, options: EvaluationOptions) -> Evaluation:
    from twins_trt.evaluation.bundles import score_bundle
    from twins_trt.inference.fitting import fit_mode
    from twins_trt.runtime import RuntimeOptions

    request, manifest = job.request, bundle.manifest
    scored = score_bundle(
        bundle,
        job.dataset,
        engine=request.engine,
        fit=fit_mode(request.fit),
        mode=job.tested.mode,
        preprocessing=job.tested.told.preprocessing,
        runtime=RuntimeOptions(threads=request.threads),
        options=options,
    )
    return Evaluation(
        scored.result,
        engine=scored.engine,
        device=None,
        model=manifest.model,
        precision=manifest.precision,
        padding=manifest.padding,
        source=manifest.source,
        resized=scored.resized,
        exact=scored.exact,
        notes=(*scored.notes, *job.tested.notes),
        conventions=facts_that_hold(job.tested.told, job.dataset),
    )

"""`compile`: an engine for the GPU of this machine, from a bundle's own graph: request, defaults, flags and call."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

from twins_trt.progress import Progress
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.groups.running import bundle_path
from twins_trt.verbs.kinds import SWITCH, WHOLE

if TYPE_CHECKING:
    from twins_trt.builders.compile import CompileReport
    from twins_trt.runtime import Bundle

NO_CACHE = "none"
"""The timing cache of a request that wants none."""


@dataclass(frozen=True)
class CompileRequest:
    """A compilation.

    bundle: its folder, or a packed bundle (`.tar`), which is unpacked beside it. overwrite: replace a bundle of another
    graph there. flavour: `tensorrt`, `tensorrt_rtx`, or `auto` for the one that is installed and compiles for
    this GPU. target: another GPU (`rtx-4090`, `sm_86`), for which TensorRT-RTX compiles without having it; None for the
    GPU of this machine.
    workspace: limit of a layer's scratch memory, MiB. optimization_level: as in `EngineOptions`. timing_cache: its file
    or folder, `none`, or None for one in the user's home.
    prune: remove engines that no longer fit this machine. allow_unfused: take an engine with unfused attentions. again:
    compile although an engine fits.
    Raises `UsageError` for a value of the wrong kind.
    """

    bundle: str = ""
    flavour: str = "auto"
    target: str | None = None
    workspace: int | None = None
    optimization_level: int | None = None
    timing_cache: str | None = None
    prune: bool = False
    allow_unfused: bool = False
    again: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        settle(self, TABLE)


TABLE: tuple[Flag, ...] = (
    Flag("BUNDLE", "bundle", "the bundle whose graph becomes an engine; a .tar is unpacked beside it first"),
    Flag(
        "--flavour",
        "flavour",
        "the compiler; default: {default}, the installed one that compiles for this GPU",
        metavar="{tensorrt_rtx,tensorrt}",
    ),
    Flag(
        "--target",
        "target",
        "compile for this GPU (rtx-4090, sm_86) without having it: TensorRT-RTX only",
        metavar="NAME",
    ),
    Flag(
        "--workspace",
        "workspace",
        "scratch memory of a layer at most; default: what fits where GPU and host share memory, else the compiler's",
        WHOLE,
        "MIB",
    ),
    Flag(
        "--optimization-level",
        "optimization_level",
        "0 (fast compilation) to 5 (longest search); default: the compiler's, 3",
        WHOLE,
        "{0..5}",
    ),
    Flag(
        "--timing-cache",
        "timing_cache",
        "file or folder that keeps measured kernels; none for no file; default: ~/.cache/twins-trt/timing",
        metavar="FILE",
    ),
    Flag("--prune", "prune", "remove engines that no longer fit this machine", SWITCH, sets=True),
    Flag("--allow-unfused", "allow_unfused", "take an engine that leaves attentions unfused", SWITCH, sets=True),
    Flag("--again", "again", "compile although an engine fits this machine", SWITCH, sets=True),
    Flag("--overwrite", "overwrite", "replace a bundle of another graph where a .tar is unpacked", SWITCH, sets=True),
)

FLAGS = FlagTable(CompileRequest, TABLE)


def compile_engine(
    bundle: str | PathLike[str] | Bundle,
    *,
    flavour: str | None = None,
    target: str | None = None,
    workspace: int | None = None,
    optimization_level: int | None = None,
    timing_cache: str | PathLike[str] | None = None,
    prune: bool | None = None,
    allow_unfused: bool | None = None,
    again: bool | None = None,
    overwrite: bool | None = None,
    more: CompileRequest | None = None,
    progress: Progress | None = None,
) -> CompileReport:
    """Compiles a bundle's own graph into an engine for the GPU of this machine, which joins the bundle.

        report = twins_trt.compile_engine("x.bundle")

    bundle: its folder, a packed bundle, or an opened one; it is amended in one step at the end. `CompileRequest`
    describes the other parameters. more: a request with further fields; a field may be given only once. progress:
    called with step, detail and share, at most ten times a second while the compiler works.
    Returns the report: `engine`, `compiled` (false where an engine fits already), `audit`, `misfits`, `pruned`.
    Needs numpy and the bindings of TensorRT or TensorRT-RTX.
    Raises `UsageError` for fields that exclude each other, `BundleError` for a bundle that is damaged, written for CPUs
    or replaced meanwhile, `BuildError` where the compiler refuses the graph or memory does not suffice,
    `UnfusedAttentionError` where an FP16 or INT8 engine leaves an attention unfused, `MissingDependencyError` for a
    compiler that is not installed, or a GPU that it needs.
    """
    from twins_trt.builders.compile import compile_bundle

    request = FLAGS.ask(
        more,
        bundle=bundle_path(bundle),
        flavour=flavour,
        target=target,
        workspace=workspace,
        optimization_level=optimization_level,
        timing_cache=timing_cache,
        prune=prune,
        allow_unfused=allow_unfused,
        again=again,
        overwrite=overwrite,
    )
    return compile_bundle(request, progress=progress)

"""The whole compilation: look what fits, compile, audit, add the engine to the bundle."""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twins_trt.builders.compile.graph import audits
from twins_trt.builders.compile.job import CompileJob, resolve_compile
from twins_trt.builders.compile.memory import refuse_too_large
from twins_trt.builders.compile.work import forget, keep, kept, working
from twins_trt.builders.engine import BuiltEngine, EngineOptions, build_in_thread
from twins_trt.builders.engine.audit import Audit, audit_engine, audit_entry
from twins_trt.builders.gate.options import limit_words
from twins_trt.builders.quantize.check import check_int8
from twins_trt.compiler_cache import home_folder
from twins_trt.errors import BuildError, UsageError
from twins_trt.progress import Clock, Progress, silent
from twins_trt.runtime.advice import rebuild_with
from twins_trt.runtime.archive import folder_name, unpack_bundle
from twins_trt.runtime.bundle import Bundle, amend_bundle, is_packed, open_bundle
from twins_trt.runtime.judged import gate_outdated
from twins_trt.runtime.manifest import AUDIT, MANIFEST, PACK, Compiled, EngineFile, Manifest
from twins_trt.runtime.next_steps import after_compile
from twins_trt.spelling import spelled
from twins_trt.verbs.compile import CompileRequest

log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class CompileReport:
    """What a compilation gave.

    engine: its entry in the manifest. compiled: false if an engine that fits was there already. resumed: whether it had
    been finished by an earlier call that was ended before the engine was in the bundle. audit: None if nothing was
    compiled. not_int8: places that should run in INT8 and do not. misfits: by file, why an engine no longer fits this
    machine. pruned: files of those that were removed. runs_here: whether the engine is for the GPU of this machine.
    """

    bundle: Bundle
    engine: EngineFile
    gpu: str
    compiled: bool
    resumed: bool
    audit: Audit | None
    not_int8: tuple[str, ...]
    misfits: dict[str, str]
    pruned: tuple[str, ...]
    runs_here: bool

    @property
    def gate_outdated(self) -> str | None:
        """Why the bundle's verdict on accuracy counts no more; None if it does, or if there is none."""
        return gate_outdated(self.bundle, compiled=self.engine if self.runs_here else None)

    @property
    def next(self) -> tuple[str, ...]:
        """The commands to type next on this machine; empty if its GPU is not the engine's."""
        if not self.runs_here:
            return ()
        return after_compile(self.bundle.path, pack=PACK in self.bundle.files, limits=limit_words(self.bundle))

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        made = self.engine.compiled
        return {
            "bundle": str(self.bundle.path),
            "engine": self.engine.file,
            "gpu": self.gpu,
            "flavour": self.engine.flavour,
            "version": self.engine.version,
            "targets": list(self.engine.targets),
            "compiled": self.compiled,
            "resumed": self.resumed,
            "seconds": None if made is None else made.seconds,
            "peak_host_mib": None if made is None else made.peak_host_mib,
            "shared_memory": None if made is None else made.shared_memory,
            "driver": None if made is None else made.driver,
            "cuda": None if made is None else made.cuda,
            "audit": None if self.audit is None else self.audit.to_json(),
            "not_int8": list(self.not_int8),
            "misfits": self.misfits,
            "pruned": list(self.pruned),
            "gate_outdated": self.gate_outdated,
            "next": list(self.next),
        }


def compile_bundle(
    request: CompileRequest, *, progress: Progress | None = None, root: Path = Path("/")
) -> CompileReport:
    """Compiles the engine of a bundle, if none there fits this machine, and adds it to the bundle.

    The bundle is changed in one step at the end: an error, an interrupt or a kill leaves it as it was. A finished
    engine is kept beside it until then. root: as in `resolve_compile`.
    Raises as `resolve_compile` does, `BuildError` where the compiler refuses the graph or memory does not suffice,
    `UnfusedAttentionError` where an FP16 or INT8 engine leaves an attention unfused and that is not allowed,
    `BundleError` where the bundle cannot be written or was replaced meanwhile.
    """
    request = _unpacked(request)
    job = resolve_compile(request, root=root)
    if job.fitting is not None and not job.pruned:
        forget(job.bundle.path, job.key)
        return _report(job, job.bundle, job.fitting)
    with working(job.bundle.path, progress or silent) as folder:
        # Another process may have compiled it while this one waited.
        return do_compile(resolve_compile(request, verify=False, root=root), folder, progress=progress)


def dry_run(request: CompileRequest) -> CompileJob:
    """The job of a request, of a packed bundle too, which stays packed. Raises as `compile_bundle` does beforehand."""
    path = Path(request.bundle)
    _refuse_idle(request)
    if not is_packed(path):
        job = resolve_compile(request)
    else:
        with tempfile.TemporaryDirectory(prefix="twins-trt-") as scratch:
            place, unpacked = path.with_name(folder_name(path)), Path(scratch) / folder_name(path)
            unpack_bundle(path, into=unpacked)
            there = place if _of_one_graph(place, unpacked) else unpacked
            job = resolve_compile(replace(request, bundle=str(there), overwrite=False))
        job = replace(job, bundle=replace(job.bundle, path=place))
    if job.fitting is None:
        refuse_too_large(job.forecast, what=str(job.bundle.path))
    return job


def _of_one_graph(place: Path, unpacked: Path) -> bool:
    """Whether the bundle that is to be unpacked at `place` is there already."""
    if not (place / MANIFEST).is_file():
        return False
    return open_bundle(place).manifest.graph_sha256 == open_bundle(unpacked).manifest.graph_sha256


def _unpacked(request: CompileRequest) -> CompileRequest:
    """The request for the folder that a packed bundle holds, which is unpacked beside it."""
    path = Path(request.bundle)
    _refuse_idle(request)
    if not is_packed(path):
        return request
    return replace(request, bundle=str(unpack_bundle(path, overwrite=request.overwrite)), overwrite=False)


def _refuse_idle(request: CompileRequest) -> None:
    if request.overwrite and not is_packed(Path(request.bundle)):
        raise UsageError(
            f"{spelled('overwrite')} applies only to a packed bundle, and {request.bundle} is none", "leave it out"
        )


def do_compile(job: CompileJob, folder: Path, *, progress: Progress | None = None) -> CompileReport:
    """Does the job. folder: of `working`."""
    clock = Clock(("engine", "bundle"), progress)
    if job.fitting is not None:
        return _report(job, _amend(job, job.fitting, {}, audits(job.bundle)), job.fitting)
    clock.begin(f"{job.file} for {job.gpu} with {job.compiler.name}; memory {job.forecast}")
    built = kept(folder, job.key)
    resumed = built is not None
    if built is None:
        refuse_too_large(job.forecast, what=str(job.bundle.path))
        built = _compile(job, folder, clock.progress)
    audit = audit_engine(
        built,
        precision=job.bundle.precision,
        attentions=job.facts.attentions,
        allow_unfused=job.request.allow_unfused,
    )
    not_int8 = _not_int8(job, built)
    clock.begin(str(job.bundle.path))
    entry = _entry(job, built)
    content = _without_stand_ins(audits(job.bundle), job.target)
    others = [each for each in content["engines"] if each.get("file") != job.file]
    content = content | {"engines": [*others, audit_entry(job.file, built, audit, not_int8)]}
    bundle = _amend(job, entry, {job.file: built.serialized}, content)
    clock.end()
    return replace(_report(job, bundle, entry), compiled=True, resumed=resumed, audit=audit, not_int8=not_int8)


def _compile(job: CompileJob, folder: Path, progress: Progress) -> BuiltEngine:
    """Runs the compiler. The finished engine is kept in the folder."""
    try:
        return build_in_thread(
            job.bundle.graph, _with_timing_cache(job), progress, keep=lambda built: keep(folder, job.key, built)
        )
    except BuildError as error:
        ceiling, manifest = job.compiler.opset, job.bundle.manifest
        if ceiling is None or manifest.opset <= ceiling:
            raise
        if manifest.precision == "int8":
            fix = f"take an FP16 bundle of opset {ceiling}, or install a newer TensorRT (JetPack 6.1 or later)"
        else:
            command = rebuild_with(manifest.rebuild, {"--opset": str(ceiling), "--jetpack": None})
            fix = f"where the checkpoint is: {command}"
        raise BuildError(error.cause, fix) from error


def _with_timing_cache(job: CompileJob) -> EngineOptions:
    """The options, with the folder in the user's home where the request names no cache and the compiler has one."""
    if job.request.timing_cache is not None or not job.compiler.timing_cache:
        return job.options
    folder = home_folder("timing", what="timed kernels are")
    return replace(job.options, timing_cache=None if folder is None else str(folder))


def _without_stand_ins(content: dict[str, Any], target: str) -> dict[str, Any]:
    """`audit.json` without what stood in for the engine of this target: the audit of one that did not ship and stood
    for it alone, and the note that nothing was audited."""
    engines = [each for each in content["engines"] if each.get("file") or each.get("stands_for") != [target]]
    noted = {name: why for name, why in content.get("not_audited", {}).items() if name != target}
    kept = {key: value for key, value in content.items() if key != "not_audited"}
    return kept | {"engines": engines} | ({"not_audited": noted} if noted else {})


def _not_int8(job: CompileJob, built: BuiltEngine) -> tuple[str, ...]:
    """The places that should run in INT8 and do not."""
    if job.facts.places is None:
        if job.bundle.precision == "int8":
            log.warning("%s does not say which places should run in INT8: not checked", job.bundle.path)
        return ()
    missing = check_int8(built.layers, job.facts.places)
    if missing:
        log.warning("%s: %d places should run in INT8 and do not: %s", job.file, len(missing), ", ".join(missing[:4]))
    return missing


def _entry(job: CompileJob, built: BuiltEngine) -> EngineFile:
    on_device = not job.compiler.ahead_of_time
    return EngineFile(
        job.file,
        built.flavour,
        built.version,
        built.targets,
        compiled=Compiled(
            device=job.here.gpu if on_device else "",
            driver=job.here.driver if on_device else "",
            cuda=job.here.cuda if on_device else "",
            seconds=round(built.seconds, 1),
            peak_host_mib=built.peak_host_mib,
            shared_memory=job.forecast.free.shared and on_device,
            workspace_mib=job.options.workspace_mib,
            optimization_level=job.options.optimization_level,
            board=job.here.board if on_device else "",
        ),
    )


def _amend(job: CompileJob, entry: EngineFile, files: dict[str, bytes], audited: dict[str, Any]) -> Bundle:
    """The bundle with the engine, and without those that are pruned."""
    pruned = {engine.file for engine in job.pruned} - {entry.file}
    audited = audited | {"engines": [each for each in audited["engines"] if each.get("file") not in pruned]}

    def change(manifest: Manifest) -> Manifest:
        others = tuple(engine for engine in manifest.engines if engine.file not in {entry.file, *pruned})
        return replace(
            manifest,
            engines=(*others, entry),
            awaits=tuple(each for each in manifest.awaits if each.target != job.target),
            tools={**manifest.tools, entry.flavour: entry.version},
            files=(),  # are listed again
        )

    content: dict[str, bytes | Path] = {**files, AUDIT: (json.dumps(audited, indent=2) + "\n").encode()}
    return amend_bundle(job.bundle, content, change=change, remove=pruned)


def _report(job: CompileJob, bundle: Bundle, entry: EngineFile) -> CompileReport:
    return CompileReport(
        bundle=bundle,
        engine=entry,
        gpu=job.gpu,
        compiled=False,
        resumed=False,
        audit=None,
        not_int8=(),
        misfits={misfit.engine.file: misfit.why for misfit in job.misfits},
        pruned=tuple(engine.file for engine in job.pruned),
        runs_here=job.device is not None and entry.runs_on(job.device.target),
    )

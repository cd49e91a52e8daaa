"""A device that runs twins-trt itself: the least of a bundle that it needs, which is a bundle again.

It gets the manifest (with classes and palette), the verdict of the gate, and the graph or engines. The checkpoint, the
plan and the ranges stay: what they decided is in the graph. The manifest lists what stays, so a device that has the
engine alone still knows which graph it is of.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twins_trt.errors import BundleError
from twins_trt.handoff.engines import refuse_cpu_graph
from twins_trt.handoff.folder import Handoff, HandoffOptions
from twins_trt.runtime.archive import seal
from twins_trt.runtime.manifest import AUDIT, GATE, GRAPH, PACK
from twins_trt.runtime.next_steps import NextSteps, after_export
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from twins_trt.runtime.bundle import Bundle
    from twins_trt.runtime.manifest import EngineFile


def resolve(bundle: Bundle, options: HandoffOptions) -> Handoff:
    """The bundle for the device. Raises BundleError for an engine that is not there, for a graph that was written for
    CPUs, and for a pack that does not belong to the bundle."""
    options.refuse("name", "max_batch", "instances", "queue_delay", tool="a device")
    engines, with_graph = _choose(bundle, options.engine)
    files: dict[str, bytes | Path] = {engine.file: bundle.file(engine.file) for engine in engines}
    if with_graph:
        refuse_cpu_graph(bundle, tool="a device")
        files[GRAPH] = bundle.graph
    if audit := _audit(bundle, engines, with_graph=with_graph):
        files[AUDIT] = audit
    files |= {name: bundle.file(name) for name in (GATE, PACK) if name in bundle.files}
    if options.pack is not None:
        files[PACK] = _pack(bundle, options.pack)
    whole = bundle.manifest
    stays = {entry.path: entry for entry in (*whole.left_behind, *whole.files) if entry.path not in files}
    manifest = replace(
        whole,
        engines=engines,
        awaits=whole.awaits if with_graph else (),
        files=(),
        left_behind=tuple(stays[name] for name in sorted(stays)),
    )
    notes = _notes(engines, with_graph=with_graph, packed=PACK in files)
    return Handoff("device", bundle, files, notes, seal(manifest, files))


def _choose(bundle: Bundle, wanted: str) -> tuple[tuple[EngineFile, ...], bool]:
    """The engines that travel, and whether the graph does. See `HandoffOptions.engine`."""
    if wanted == "graph":
        return (), True
    if wanted == "auto":
        if GRAPH not in bundle.files:
            return bundle.engines, False
        return (() if bundle.manifest.awaits else bundle.engines), True
    if wanted.startswith("sm_"):
        engines = tuple(engine for engine in bundle.engines if engine.runs_on(wanted))
    else:
        engines = tuple(engine for engine in bundle.engines if wanted in (engine.file, Path(engine.file).name))
    if not engines:
        has = "; ".join(f"{engine.file} ({', '.join(engine.targets)})" for engine in bundle.engines) or "none"
        raise BundleError(
            f"{bundle.path} has no engine {wanted}; its engines: {has}",
            f"hand over the graph, which the device compiles: {spelled('engine', 'graph')}",
        )
    return engines, False


def _audit(bundle: Bundle, engines: tuple[EngineFile, ...], *, with_graph: bool) -> bytes | None:
    """`audit.json` with the audits of these engines. With the graph go what its engine is held against, and the audits
    that stand for engines of the device."""
    content = bundle.read_json(AUDIT)
    if not isinstance(content, dict):
        return None
    files = {engine.file for engine in engines}
    kept: dict[str, Any] = dict(content) if with_graph else {}
    kept["engines"] = [
        entry
        for entry in content.get("engines", ())
        if entry.get("file") in files or (with_graph and entry.get("file") is None)
    ]
    if not any(kept.values()):
        return None
    return (json.dumps(kept, indent=2) + "\n").encode()


def _pack(bundle: Bundle, pack: str) -> Path:
    """The file `pack`. Raises PackError if it is damaged, or does not belong to the bundle."""
    from twins_trt.builders.gate import check_fits, open_pack

    opened = open_pack(pack)
    check_fits(opened, bundle)
    return opened.path


def _notes(engines: tuple[EngineFile, ...], *, with_graph: bool, packed: bool) -> tuple[str, ...]:
    notes = [
        f"{engine.file} runs on {', '.join(engine.targets)}, with {engine.flavour} {engine.version} alone"
        for engine in engines
    ]
    if not with_graph:
        notes.append("without the graph, the device can compile no other engine")
    if not packed:
        notes.append(f"without a gate pack, the device cannot judge its engine ({spelled('pack', 'FILE')} sends one)")
    return tuple(notes)


def next_steps(handoff: Handoff, out: Path) -> NextSteps:
    """What to type once the hand-off is written to `out`."""
    from twins_trt.builders.gate.options import limit_words

    limits = limit_words(handoff.bundle)
    return after_export(out, graph=GRAPH in handoff.files, pack=PACK in handoff.files, limits=limits)

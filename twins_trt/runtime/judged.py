"""Whether a verdict that a bundle holds, on its accuracy or its speed, is of the engine that runs.

The status `gate` in a manifest is that of the last verdict on accuracy, and a compilation leaves it. It must not wash
away that the bundle failed. And in a bundle with engines for several devices the verdict still counts on one of them.
So what shows the status asks here whether it counts. A verdict on the graph, such as a simulation's, does not depend on
engines.
"""

from __future__ import annotations

import shlex
from typing import Any

from twins_trt.errors import BundleError
from twins_trt.runtime.bundle import Bundle
from twins_trt.runtime.manifest import GATE, PACK, EngineFile, Manifest
from twins_trt.runtime.tensorrt.selection import engine_here


def engine_gone(
    manifest: Manifest, *, graph_sha256: str, file: str | None, file_sha256: str | None, runs: EngineFile | None = None
) -> str | None:
    """Why a verdict on an engine does not count any longer, or None if it does.

    graph_sha256, file, file_sha256: what was judged; no file where the graph itself ran, and then engines do not
    matter. runs: the engine that runs the bundle on this machine; None where none does, or that is not asked.
    """
    if graph_sha256 != manifest.graph_sha256:
        return "the graph was replaced since"
    if file is None:
        return None
    now = {entry.path: entry.sha256 for entry in manifest.files}
    if file not in now:
        return f"{file} is no longer in the bundle"
    if now[file] != file_sha256:
        return f"{file} was replaced since"
    if runs is not None and runs.file != file:
        return f"it is of {file}, and {runs.file} runs here"
    return None


def gate_outdated(bundle: Bundle, *, kind: str = "auto", compiled: EngineFile | None = None) -> str | None:
    """Why the verdict in the bundle's `gate.json` does not count any longer; None if it does, or if there is none.

    kind: of the engine that runs the bundle here. compiled: the engine that does if this cannot be found out, as where
    TensorRT is installed and no binding for CUDA. A verdict of an earlier version does not name its engine: then only
    the graph is compared. One that cannot be read is left to what reads it.
    """
    try:
        judged = bundle.read_json(GATE)
    except BundleError:
        return None
    if not isinstance(judged, dict):
        return None
    manifest = bundle.manifest
    graph, file, sha256 = (judged.get(name) for name in ("graph_sha256", "file", "file_sha256"))
    return engine_gone(
        manifest,
        graph_sha256=graph if isinstance(graph, str) else manifest.graph_sha256,
        file=file if isinstance(file, str) else None,
        file_sha256=sha256 if isinstance(sha256, str) else None,
        runs=engine_here(bundle, kind) or compiled if isinstance(file, str) else None,
    )


def grounds_of(judged: Any) -> tuple[str, ...]:
    """What a verdict says against its own reference, in words; empty if nothing, or if it cannot be read.

    judged: the content of `gate.json`. A reference that was accepted keeps its grounds.
    """
    check = judged.get("reference_check") if isinstance(judged, dict) else None
    grounds = check.get("grounds") if isinstance(check, dict) else None
    return tuple(map(str, grounds)) if isinstance(grounds, list) else ()


def judge_again(bundle: Bundle) -> str:
    """The command that judges a bundle again on its device, by the limits of its last verdict."""
    try:
        judged = bundle.read_json(GATE)
    except BundleError:
        judged = None
    limits: Any = judged.get("thresholds") if isinstance(judged, dict) else None
    words = [
        "twins-trt",
        "gate",
        str(bundle.path),
        "--pack",
        f"{bundle.path}/{PACK}" if PACK in bundle.files else "FILE",
    ]
    for name in ("max_drop", "min_images", "min_agreement"):
        value = limits.get(name) if isinstance(limits, dict) else None
        if isinstance(value, (int, float)):
            words += [f"--{name.replace('_', '-')}", f"{value!r}"]
    if isinstance(limits, dict) and limits.get("accept_reference") is True:
        words += ["--accept-reference"]
    return shlex.join(words)

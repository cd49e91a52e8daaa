"""Which file of a bundle another program runs: TensorRT's own engines, or the graph they are built from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from twins_trt.errors import BundleError
from twins_trt.runtime.manifest import GRAPH
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    from twins_trt.runtime.bundle import Bundle
    from twins_trt.runtime.manifest import EngineFile, Manifest

FLAVOUR = "tensorrt"
"""The compiler whose engines other programs load. TensorRT-RTX has a runtime of its own, which none of them has."""

BUILD_SCRIPT = "build_engine.sh"


@dataclass(frozen=True)
class Chosen:
    """Engines by the target they run on (`sm_87`), or none where the graph itself is served."""

    engines: Mapping[str, EngineFile]

    @property
    def first(self) -> EngineFile | None:
        return next(iter(self.engines.values()), None)


def choose(bundle: Bundle, wanted: str, *, tool: str) -> Chosen:
    """The engines of `bundle` that `wanted` names, as `HandoffOptions.engine` says.

    Raises BundleError where there is no such engine, two for one target, or one that `tool` cannot load.
    """
    manifest = bundle.manifest
    usable = [engine for engine in manifest.engines if engine.flavour == FLAVOUR]
    if wanted == "onnxruntime":
        return Chosen({})
    if wanted == "auto":
        return Chosen(_by_target(usable, bundle))
    named = [engine for engine in manifest.engines if wanted in (*engine.targets, *_names(engine))]
    if not named:
        has = "; ".join(f"{engine.file} ({', '.join(engine.targets)})" for engine in manifest.engines) or "none"
        raise BundleError(f"{bundle.path} has no engine {wanted}; its engines: {has}", _rebuild_here(manifest))
    if not (loadable := [engine for engine in named if engine in usable]):
        raise BundleError(
            f"{named[0].file} was compiled by {named[0].flavour}, which {tool} does not load", _rebuild_here(manifest)
        )
    found = _by_target(loadable, bundle)
    return Chosen({wanted: found[wanted]} if wanted in found else found)


def one_plan(bundle: Bundle, wanted: str, *, tool: str, plan: str) -> tuple[dict[str, bytes | Path], list[str]]:
    """The engine as the file `plan`, or the graph with BUILD_SCRIPT that makes it; and what to know about it.

    Raises as `choose` does, and where that leaves several engines or none is wanted.
    """
    if wanted == "onnxruntime":
        raise BundleError(f"{tool} runs TensorRT engines only", f"leave {spelled('engine')} out, or name a target")
    chosen = choose(bundle, wanted, tool=tool)
    if len({engine.file for engine in chosen.engines.values()}) > 1:
        raise BundleError(
            f"{bundle.path} has engines for {', '.join(chosen.engines)}; {tool} takes one",
            f"name one: {spelled('engine', next(iter(chosen.engines)))}",
        )
    if chosen.first is not None:
        return {plan: bundle.file(chosen.first.file)}, [
            f"{tool} has to come with TensorRT {chosen.first.version}, which wrote the engine"
        ]
    return {GRAPH: bundle.graph, BUILD_SCRIPT: _build_script(bundle.manifest, plan)}, [
        f"the bundle has no TensorRT engine: run ./{BUILD_SCRIPT} on the device first"
    ]


def capability(target: str) -> str:
    """`8.7` of `sm_87`, `12.0` of `sm_120`."""
    digits = target.removeprefix("sm_")
    return f"{digits[:-1]}.{digits[-1]}"


def unfit(bundle: Bundle, faults: Mapping[str, tuple[str, str]]) -> BundleError:
    """The error for a graph that cannot be fed. faults: option of the build -> (what is wrong, value that mends it)."""
    causes = "; ".join(cause for cause, _ in faults.values())
    changes = {option: value for option, (_, value) in faults.items()}
    return BundleError(f"{bundle.path}: its graph {causes}", rebuild_with(bundle.manifest, changes))


def rebuild_with(manifest: Manifest, changes: Mapping[str, str | None]) -> str:
    """The command that builds the bundle again with other options: `{"--input": "uint8"}`; None leaves one out."""
    words = shlex.split(manifest.rebuild or "twins-trt build MODEL --checkpoint FILE --out x.bundle")
    for option, value in changes.items():
        at = words.index(option) if option in words else len(words)
        words[at : at + 2] = [] if value is None else [option, value]
    return shlex.join(words)


def _names(engine: EngineFile) -> tuple[str, str]:
    return engine.file, PurePosixPath(engine.file).name


def _by_target(engines: list[EngineFile], bundle: Bundle) -> dict[str, EngineFile]:
    found: dict[str, EngineFile] = {}
    for engine in engines:
        for target in engine.targets:
            if target in found:
                raise BundleError(
                    f"{bundle.path} has two engines for {target}: {found[target].file}, {engine.file}",
                    f"name one: {spelled('engine', engine.file)}",
                )
            found[target] = engine
    return found


def _rebuild_here(manifest: Manifest) -> str:
    words = rebuild_with(manifest, {"--flavour": FLAVOUR, "--target": None})
    return f"on the GPU that it shall run on: {words}"


def _build_script(manifest: Manifest, plan: str) -> bytes:
    shapes = ""
    if (
        manifest.interface.image.dynamic
        and manifest.interface.image.min
        and manifest.interface.image.opt
        and manifest.interface.image.max
    ):
        profile = zip(
            ("min", "opt", "max"),
            (manifest.interface.image.min, manifest.interface.image.opt, manifest.interface.image.max),
            strict=True,
        )
        shapes = "".join(
            f" --{kind}Shapes={manifest.interface.image.name}:{'x'.join(map(str, dims))}" for kind, dims in profile
        )
    return f"""#!/usr/bin/env bash
# Builds {plan} from {GRAPH} for the GPU of this machine, with TensorRT 10 or later. The graph holds its precision
# itself, so TensorRT has to take it strongly typed.
set -euo pipefail
cd "$(dirname "$0")"
trtexec=${{TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}}
if ! {{ "$trtexec" --help || true; }} 2>&1 | grep -c -e --stronglyTyped > /dev/null; then
    echo "$trtexec has no --stronglyTyped: name one of TensorRT 10 or later, TRTEXEC=/path/to/trtexec $0" >&2
    exit 1
fi
"$trtexec" --onnx={GRAPH} --saveEngine={plan} --stronglyTyped{shapes}
""".encode()

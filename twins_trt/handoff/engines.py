"""The file of a bundle that another program runs: an engine of TensorRT, or the graph."""

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
    from twins_trt.inference.tensors import TensorSpec
    from twins_trt.runtime.bundle import Bundle
    from twins_trt.runtime.manifest import EngineFile

FLAVOUR = "tensorrt"
"""The flavour whose engines other programs load. None of them has the runtime of TensorRT-RTX."""

BUILD_SCRIPT = "build_engine.sh"


@dataclass(frozen=True)
class Chosen:
    """Engines by the target that they run on (`sm_87`); empty if the graph itself is used."""

    engines: Mapping[str, EngineFile]

    @property
    def first(self) -> EngineFile | None:
        return next(iter(self.engines.values()), None)


def choose(bundle: Bundle, wanted: str, *, tool: str) -> Chosen:
    """The engines of `bundle` that `wanted` names, see `HandoffOptions.engine`.

    Raises BundleError if there is no such engine, if two are for one target, or if `tool` cannot load it.
    """
    usable = [engine for engine in bundle.engines if engine.flavour == FLAVOUR]
    if wanted == "onnxruntime":
        return Chosen({})
    if wanted == "auto":
        return Chosen(_by_target(usable, bundle))
    named = [engine for engine in bundle.engines if wanted in (*engine.targets, *_names(engine))]
    if not named:
        has = "; ".join(f"{engine.file} ({', '.join(engine.targets)})" for engine in bundle.engines) or "none"
        raise BundleError(f"{bundle.path} has no engine {wanted}; its engines: {has}", _rebuild_here(bundle))
    if not (loadable := [engine for engine in named if engine in usable]):
        raise BundleError(
            f"{named[0].file} was compiled by {named[0].flavour}, which {tool} does not load", _rebuild_here(bundle)
        )
    by_target = _by_target(loadable, bundle)
    return Chosen({wanted: by_target[wanted]} if wanted in by_target else by_target)


def single_engine(bundle: Bundle, wanted: str, *, tool: str, file: str) -> tuple[dict[str, bytes | Path], list[str]]:
    """Files with one engine, called `file`, or with the graph and BUILD_SCRIPT that makes `file`; and notes on them.

    Raises BundleError as `choose` does, and if it leaves several engines, or if the graph itself is wanted.
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
        return {file: bundle.file(chosen.first.file)}, [
            f"{tool} has to come with TensorRT {chosen.first.version}, which wrote the engine"
        ]
    return {GRAPH: bundle.graph, BUILD_SCRIPT: _build_script(bundle.interface.image, file)}, [
        f"the bundle has no TensorRT engine: run ./{BUILD_SCRIPT} on the device first"
    ]


def capability(target: str) -> str:
    """`8.7` of `sm_87`, `12.0` of `sm_120`."""
    digits = target.removeprefix("sm_")
    return f"{digits[:-1]}.{digits[-1]}"


def unfit(bundle: Bundle, faults: Mapping[str, tuple[str, str]]) -> BundleError:
    """The error for a graph that a program cannot feed. faults: option of the build -> (fault, value that fixes it)."""
    causes = "; ".join(cause for cause, _ in faults.values())
    changes = {option: value for option, (_, value) in faults.items()}
    return BundleError(f"{bundle.path}: its graph {causes}", rebuild_with(bundle.rebuild, changes))


def rebuild_with(command: str, changes: Mapping[str, str | None]) -> str:
    """A bundle's `rebuild` command with other options: `{"--input": "uint8"}`; None leaves an option out."""
    words = shlex.split(command or "twins-trt build MODEL --checkpoint FILE --out x.bundle")
    for option, value in changes.items():
        at = words.index(option) if option in words else len(words)
        words[at : at + 2] = [] if value is None else [option, value]
    return shlex.join(words)


def _names(engine: EngineFile) -> tuple[str, str]:
    return engine.file, PurePosixPath(engine.file).name


def _by_target(engines: list[EngineFile], bundle: Bundle) -> dict[str, EngineFile]:
    by_target: dict[str, EngineFile] = {}
    for engine in engines:
        for target in engine.targets:
            if target in by_target:
                raise BundleError(
                    f"{bundle.path} has two engines for {target}: {by_target[target].file}, {engine.file}",
                    f"name one: {spelled('engine', engine.file)}",
                )
            by_target[target] = engine
    return by_target


def _rebuild_here(bundle: Bundle) -> str:
    words = rebuild_with(bundle.rebuild, {"--flavour": FLAVOUR, "--target": None})
    return f"on the GPU that it shall run on: {words}"


def _build_script(image: TensorSpec, file: str) -> bytes:
    shapes = ""
    if image.dynamic and image.min and image.opt and image.max:
        profile = {"min": image.min, "opt": image.opt, "max": image.max}
        shapes = "".join(f" --{kind}Shapes={image.name}:{'x'.join(map(str, dims))}" for kind, dims in profile.items())
    return f"""#!/usr/bin/env bash
# Builds {file} from {GRAPH} for the GPU of this machine, with TensorRT 10 or later. The graph holds its precision
# itself, so TensorRT has to take it strongly typed.
set -euo pipefail
cd "$(dirname "$0")"
trtexec=${{TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}}
if ! {{ "$trtexec" --help || true; }} 2>&1 | grep -c -e --stronglyTyped > /dev/null; then
    echo "$trtexec has no --stronglyTyped: name one of TensorRT 10 or later, TRTEXEC=/path/to/trtexec $0" >&2
    exit 1
fi
"$trtexec" --onnx={GRAPH} --saveEngine={file} --stronglyTyped{shapes}
""".encode()

"""The file of a bundle that another program runs: an engine of TensorRT, or the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from twins_trt.errors import BundleError, UsageError
from twins_trt.runtime.advice import compile_command, rebuild_with
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

    Raises BundleError if there is no such engine, if two are for one target, or if `tool` cannot load it, UsageError
    for `graph`, which is a device's.
    """
    usable = [engine for engine in bundle.engines if engine.flavour == FLAVOUR]
    if wanted == "onnxruntime":
        return Chosen({})
    if wanted == "graph":
        raise UsageError(
            f"{spelled('engine', wanted)} is for a device, not for {tool}", f"leave {spelled('engine')} out"
        )
    if wanted == "auto":
        return Chosen(_by_target(usable, bundle))
    named = [engine for engine in bundle.engines if wanted in (*engine.targets, *_names(engine))]
    if not named:
        has = "; ".join(f"{engine.file} ({', '.join(engine.targets)})" for engine in bundle.engines) or "none"
        raise BundleError(f"{bundle.path} has no engine {wanted}; its engines: {has}", _compile_there(bundle))
    if not (loadable := [engine for engine in named if engine in usable]):
        raise BundleError(
            f"{named[0].file} was compiled by {named[0].flavour}, which {tool} does not load", _compile_there(bundle)
        )
    by_target = _by_target(loadable, bundle)
    return Chosen({wanted: by_target[wanted]} if wanted in by_target else by_target)


def single_engine(bundle: Bundle, wanted: str, *, tool: str, file: str) -> tuple[dict[str, bytes | Path], list[str]]:
    """Files with one engine, called `file`, or with the graph and BUILD_SCRIPT that makes `file`; and notes on them.

    Raises BundleError as `choose` does, if it leaves several engines, if the graph itself is wanted, and if the graph
    was written for CPUs.
    """
    refuse_cpu_graph(bundle, tool=tool)
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


def refuse_cpu_graph(bundle: Bundle, *, tool: str) -> None:
    """Raises BundleError for a graph that was written for CPUs, which `tool` would run on a GPU."""
    from twins_trt.builders.compile.for_gpu import refuse_cpu_graph

    refuse_cpu_graph(bundle, tool=tool)


def is_for_cpus(bundle: Bundle) -> bool:
    """Whether the bundle's graph was written for CPUs."""
    from twins_trt.builders.compile.for_gpu import is_for_cpus
    from twins_trt.builders.engine import read_header

    return is_for_cpus(read_header(bundle.graph))


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


def _compile_there(bundle: Bundle) -> str:
    """The command that makes the engine on the GPU that it shall run on."""
    words = compile_command(bundle.path, flavour=FLAVOUR)
    if GRAPH not in bundle.files:
        words = rebuild_with(bundle.rebuild, {"--flavour": FLAVOUR, "--target": None, "--jetpack": None})
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

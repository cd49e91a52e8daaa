"""The commands that errors name for a bundle that lacks an engine."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.device import current_device
from twins_trt.errors import BundleError

if TYPE_CHECKING:
    from twins_trt.runtime.engines.protocol import EngineSource

_BUILD = "twins-trt build MODEL --checkpoint FILE --out x.bundle"


def compile_command(path: Path | str, *, flavour: str | None = None, again: bool = False) -> str:
    """The command that compiles the engine of the bundle in `path` for the GPU of its machine.

    flavour: None where `auto` finds the right one. again: also if an engine seems to fit.
    """
    options = [] if flavour is None else ["--flavour", flavour]
    return shlex.join(["twins-trt", "compile", str(path), *options, *(["--again"] if again else [])])


def rebuild_with(command: str, changes: Mapping[str, str | None]) -> str:
    """A bundle's `rebuild` command with other options: `{"--input": "uint8"}`; None leaves an option out."""
    words = shlex.split(command or _BUILD)
    for option, value in changes.items():
        at = words.index(option) if option in words else len(words)
        words[at : at + 2] = [] if value is None else [option, value]
    return shlex.join(words)


def gpu_build_command(rebuild: str, target: str) -> str:
    """The command that builds a bundle for a GPU of this target from the command that built it for CPUs.

    It writes another bundle beside the old one. Precision and opset are left to the build where they were a CPU's.
    """
    given = defaultdict(str, pairwise(shlex.split(rebuild)))
    changes: dict[str, str | None] = {"--opset": None, "--target": target}
    if given["--precision"] == "fp32":
        changes["--precision"] = None  # no compiler fuses float32 attention
    if out := given["--out"]:
        changes["--out"] = f"{out.removesuffix('.bundle')}-gpu.bundle"
    return rebuild_with(rebuild, changes)


def engine_command(source: EngineSource, flavour: str, target: str, *, again: bool = False) -> str:
    """The command that gives `source` an engine of `flavour` for this machine, whose GPU is of `target`.

    A graph that was written for CPUs has to be built anew, where its checkpoint is. So has what is no bundle yet.
    A graph that did not travel with the bundle has to be sent.
    """
    try:
        _ = source.graph
    except BundleError as error:
        return error.fix or source.rebuild
    if for_cpus(source.rebuild):
        return gpu_build_command(source.rebuild, target)
    if not _is_bundle(source):
        return source.rebuild
    return compile_command(source.path, flavour=flavour if _ambiguous(source, flavour, target) else None, again=again)


def command_here(source: EngineSource) -> str | None:
    """The command that gives `source` an engine for the GPU of this machine; None where no GPU or no TensorRT is."""
    device = current_device()
    flavour = next((name for name in ("tensorrt", "tensorrt_rtx") if find_spec(name) is not None), None)
    return None if device is None or flavour is None else engine_command(source, flavour, device.target)


def lacks_engine(source: EngineSource) -> bool:
    """Whether `source` is a bundle for GPUs that no engine was compiled for yet."""
    return not source.engines and not for_cpus(source.rebuild) and _is_bundle(source)


def for_gpus(source: EngineSource) -> bool:
    """Whether engines run `source`, those that it has or those of its device, so that its graph on a CPU is a
    simulation. A bundle whose engines stayed behind holds none, and awaits none that is named."""
    return bool(source.engines) or not for_cpus(source.rebuild)


def for_cpus(rebuild: str) -> bool:
    """Whether the command builds a graph for CPUs, from which no engine is compiled."""
    words = shlex.split(rebuild)
    return ("--target", "cpu") in pairwise(words)


def _is_bundle(source: EngineSource) -> bool:
    from twins_trt.runtime.manifest import MANIFEST  # loads numpy, which the help of a command does without

    return (source.path / MANIFEST).is_file()


def _ambiguous(source: EngineSource, flavour: str, target: str) -> bool:
    """Whether `auto` may choose another flavour: TensorRT where it is installed, or what has an engine already."""
    others = any(engine.flavour != flavour and engine.runs_on(target) for engine in source.engines)
    return others or (flavour == "tensorrt_rtx" and find_spec("tensorrt") is not None)

"""What each command needs, and which of these things are missing."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from twins_trt.diagnosis.packages import PACKAGES
from twins_trt.runtime.engines import KINDS

if TYPE_CHECKING:
    from twins_trt.diagnosis.facts import Facts

Way = tuple[str, ...]
"""Modules that are enough together, and `GPU` where one is needed as well."""

GPU = "gpu"

# The ways in which each engine kind of the runtime can run.
ENGINES: dict[str, tuple[Way, ...]] = {
    "onnxruntime": (("onnxruntime",),),
    "openvino": (("openvino",),),
    "tensorrt": (("tensorrt", "cuda.bindings.driver", GPU), ("tensorrt", "pycuda", GPU)),
    "tensorrt_rtx": (("tensorrt_rtx", "cuda.bindings.driver", GPU), ("tensorrt_rtx", "pycuda", GPU)),
    "torch": (("torch", GPU),),
}
_RUN: tuple[Way, ...] = tuple(way for kind in KINDS for way in ENGINES.get(kind, ()))

# Each command needs one way out of every group.
NEEDS: dict[str, tuple[tuple[Way, ...], ...]] = {
    "predict": ((("numpy",),), (("PIL",),), _RUN),
    "eval": ((("numpy",),), (("PIL",),), (*_RUN, ("torch",))),
    "convert": ((("numpy",),), (("torch",),)),
    "export": ((("numpy",),), (("torch",),), (("onnx",),), (("onnx_graphsurgeon",),)),
    "calibrate": ((("numpy",),), (("PIL",),), (("onnx",),), (("onnxruntime",),)),
    "build": (
        (("numpy",),),
        (("torch",),),
        (("onnx",),),
        (("onnx_graphsurgeon",),),
        (("tensorrt_rtx",), ("tensorrt", GPU)),
    ),
    "compile": ((("numpy",),), (("tensorrt", GPU), ("tensorrt_rtx",))),  # the latter for a GPU that is named
    "gate": ((("numpy",),), (("PIL",),), _RUN),  # from a pack; with --data also torch, which says so itself
    "profile": ((("numpy",),), (("PIL",),), (*_RUN, ("torch",))),
    "train": ((("numpy",),), (("PIL",),), (("torch",),)),
    "export-to": ((("numpy",),),),
    "kernels": ((("torch",),), (("triton",),)),
}

_NAMES = {package.module: package.distribution for package in PACKAGES} | {GPU: "a GPU"}


def commands(facts: Facts, *, engine: str = "auto") -> dict[str, list[str]]:
    """For each command of `NEEDS`, what is missing, in words; empty where the command is ready.

    engine: the kind that has to run bundles; `auto` for any.
    """
    here = {state.package.module for state in facts.packages if state.state == "ok"}
    here |= {GPU} if facts.gpu is not None else set()
    return {command: lacking(command, here, engine=engine) for command in NEEDS}


def lacking(command: str, here: Collection[str], *, engine: str = "auto") -> list[str]:
    """What `command` needs and `here` does not hold, in words.

    here: modules that load, and `GPU` if there is one. engine: as in `commands`.
    """
    groups = NEEDS[command]
    if engine != "auto":
        groups = tuple(ENGINES[engine] if set(_RUN) <= set(group) else group for group in groups)
    return [
        " or ".join(" + ".join(_NAMES.get(module, module) for module in way) for way in group)
        for group in groups
        if not any(set(way) <= set(here) for way in group)
    ]

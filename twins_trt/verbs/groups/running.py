"""What runs, and on what: the engine of a bundle, the device of a model, threads and processes."""

from __future__ import annotations

from os import PathLike, fspath
from typing import TYPE_CHECKING

from twins_trt.errors import MissingDependencyError, UsageError
from twins_trt.runtime.engines import KINDS
from twins_trt.spelling import spelled
from twins_trt.verbs.flags import Flag
from twins_trt.verbs.kinds import WHOLE

if TYPE_CHECKING:
    from twins_trt.runtime import Bundle

THREADS_FLAG = Flag("--threads", "threads", "CPU threads; default: every core", WHOLE, "N")
WORKERS_FLAG = Flag("--workers", "workers", "processes that read images ahead; default: {default}", WHOLE, "N")
ENGINE_FLAG = Flag(
    "--engine",
    "engine",
    "what runs the bundle; default: {default}, the fastest that can run here",
    metavar=f"{{auto,{','.join(KINDS)}}}",
)


def bundle_path(bundle: str | PathLike[str] | Bundle) -> str:
    """The folder of a bundle, given by its path or opened."""
    return fspath(bundle) if isinstance(bundle, (str, PathLike)) else str(bundle.path)


def torch_device(name: str) -> str:
    """`cpu` or `cuda`, for a device called `auto`, `cpu` or `cuda`.

    Raises `UsageError` for another name, `MissingDependencyError` for `cuda` without a GPU.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UsageError(f"there is no device {name!r}", "use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError(
            "PyTorch sees no CUDA device", f"use {spelled('device', 'cpu')}; twins-trt doctor says more"
        )
    return name

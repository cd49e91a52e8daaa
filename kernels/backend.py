"""Which form of an operator runs: its Triton kernels, torch's scaled_dot_product_attention, or the reference."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from twins_trt.errors import EngineError, UsageError, missing
from twins_trt.kernels.case import DTYPES
from twins_trt.kernels.device import interpreting

BACKENDS = ("auto", "triton", "sdpa", "reference")

MIN_CAPABILITY = 80
"""Triton 3.3 and later does not use sm_75's tensor cores: its kernels would be slower there than torch's own."""

MIN_TRITON = (3, 5)
"""With older versions some kernels spill, and the fp32 gradient of LSA does not compile for sm_8x and sm_12x."""

NOT_INSTALLED = "Triton is not installed"

_log = logging.getLogger("twins_trt")


F = TypeVar("F", bound=Callable[..., object])


def _constant_for_compile(function: F) -> F:
    """Makes torch.compile call `function` while it traces and keep the answer, which depends on no tensor's values.

    `torch.compiler.assume_constant_result` does the same, but imports torch._dynamo, which takes seconds.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant_for_compile
def exporting() -> bool:
    """Whether torch is exporting a graph. Other programs run it, so it must hold plain operators.

    torch.compile of torch 2.11 and earlier takes `torch.compiler.is_exporting()` for true, which it is not there:
    hence this is asked while it traces, and not traced itself.
    """
    if torch.onnx.is_in_onnx_export():
        return True
    return hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()  # torch 2.6 and later


FALLBACKS = {"sdpa": "scaled_dot_product_attention", "reference": "plain torch"}
"""What can run on a GPU in place of the kernels, and its name in the log."""


def choose_backend(
    backend: str,
    x: Tensor,
    *,
    op: str,
    unsupported: str | None,
    dtype: torch.dtype | None = None,
    fallback: str = "sdpa",
) -> str:
    """`triton`, `sdpa` or `reference` for this call.

    x: the tensor whose device decides. op: `lsa`, `gsa` and so on, for messages.
    unsupported: why the kernels do not take these sizes, or None where they do.
    dtype: of the kernel, by default that of `x`. fallback: the form that `auto` takes on a GPU without the kernels:
    `sdpa` for attentions, `reference` for operators that have no third form.
    `auto` is `triton` on a GPU that has what the kernels need, else `fallback` there with one line in the log; on a
    CPU, and while a graph is exported, it is `reference`.
    Raises UsageError for an unknown name. For `triton` it raises UsageError where the kernel does not take the sizes or
    the dtype, MissingDependencyError without Triton, and EngineError where the device cannot run it.
    """
    known = [name for name in BACKENDS if name in ("auto", "triton", "reference", fallback)]
    if backend not in known:
        raise UsageError(f"{op} has no backend '{backend}'", f"choose one of {', '.join(known)}")
    kind = str(dtype or x.dtype)
    if exporting():
        return "reference"
    if backend == "auto":
        if x.device.type != "cuda":
            return "reference"
        return _choose_on_gpu(op, kind, device_index=x.device.index, unsupported=unsupported, fallback=fallback)
    if backend == "triton":
        _require_triton(
            op,
            kind,
            device_type=x.device.type,
            device_index=x.device.index,
            unsupported=unsupported,
            fallback=fallback,
        )
    return backend


@_constant_for_compile
def _choose_on_gpu(op: str, dtype: str, *, device_index: int | None, unsupported: str | None, fallback: str) -> str:
    reason = (
        unsupported
        or (None if dtype in DTYPES.values() else f"there is no kernel for {dtype}")
        or triton_problem(installed_triton())
        or gpu_problem(device_index)
    )
    if reason is None:
        return "triton"
    log_once(op, reason, FALLBACKS[fallback])
    return fallback


@_constant_for_compile
def _require_triton(
    op: str, dtype: str, *, device_type: str, device_index: int | None, unsupported: str | None, fallback: str
) -> None:
    fix = f"use backend='auto' or '{fallback}'"
    if unsupported or dtype not in DTYPES.values():
        raise UsageError(f"{op}: {unsupported or f'there is no kernel for {dtype}'}", fix)
    if reason := triton_problem(installed_triton()):
        if reason == NOT_INSTALLED:
            raise missing("triton", extra="triton", purpose=f"{op} with backend='triton'")
        raise EngineError(f"{op}: {reason}", fix)
    if device_type != "cuda" and not runs_interpreted(op, dtype):
        raise EngineError(f"{op}: Triton kernels do not run on a {device_type} tensor", "use backend='auto'")
    if device_type == "cuda" and (reason := gpu_problem(device_index)):
        raise EngineError(f"{op}: {reason}", fix)


def runs_interpreted(op: str, dtype: torch.dtype | str) -> bool:
    """Whether Triton's interpreter runs the kernels on CPU tensors here. op: for messages. dtype: of the kernel.

    Raises EngineError for bfloat16: the interpreter takes its bits for integers in a product, which is off by a factor
    of 1e9, and cuts off where a GPU rounds to it.
    """
    if not interpreting():
        return False
    if str(dtype) == DTYPES["bf16"]:
        raise EngineError(
            f"{op}: Triton's interpreter computes bfloat16 wrongly",
            "pass float16 or float32, or unset TRITON_INTERPRET",
        )
    return True


@functools.cache
def installed_triton() -> str | None:
    """The version of the Triton that can be imported; None without one."""
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


@functools.cache
def triton_problem(version: str | None) -> str | None:
    """Why kernels do not run with this version of Triton; None where they do. version: None where it is absent."""
    if version is None:
        return NOT_INSTALLED
    if tuple(int(part) for part in version.split(".")[:2]) >= MIN_TRITON:
        return None
    return f"Triton {version} is older than {MIN_TRITON[0]}.{MIN_TRITON[1]}"


@functools.cache
def gpu_problem(device_index: int | None) -> str | None:
    """Why kernels do not run on this GPU; None where they do. device_index: None is the current device."""
    if torch.version.hip:
        return "the kernels are made for NVIDIA GPUs"
    major, minor = torch.cuda.get_device_capability(device_index)
    if 10 * major + minor >= MIN_CAPABILITY:
        return None
    return f"Triton has no tensor cores on sm_{10 * major + minor}"


@functools.cache
def log_once(op: str, reason: str, instead: str) -> None:
    """Says once a process that an operator runs in another form than its kernels, and why."""
    _log.warning("%s: %s; using %s", op, reason, instead)

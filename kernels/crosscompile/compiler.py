"""Compiles one kernel for one GPU, with Triton and its bundled ptxas, and reads its resources with `cuobjdump`."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twins_trt.errors import BuildError, EngineError, UsageError, missing
from twins_trt.kernels.backend import installed_triton
from twins_trt.kernels.case import Case

SHARED_LIMIT = {
    "sm_80": 163,
    "sm_86": 99,
    "sm_87": 163,
    "sm_89": 99,
    "sm_90": 227,
    "sm_100": 227,
    "sm_103": 227,
    "sm_110": 227,
    "sm_120": 99,
    "sm_121": 99,
}
"""KiB of shared memory that one block can have (CUDA C++ Programming Guide, technical specifications)."""

TARGETS = tuple(SHARED_LIMIT)
MAX_TMEM = 512  # columns of tensor memory; a kernel that wants more compiles, without an error, to a bare `trap`


@dataclass(frozen=True)
class Resources:
    """What one kernel takes.

    registers, spills: per thread, spills in bytes. shared, tmem, threads: per block: bytes of shared memory, columns of
    tensor memory, threads. wide_loads, narrow_loads: instructions in the PTX that read 16 bytes or more of global
    memory for a thread, and those that read less. The same data takes eight times as many loads of two bytes.
    """

    registers: int
    spills: int
    shared: int
    tmem: int
    threads: int
    wide_loads: int
    narrow_loads: int


@dataclass(frozen=True)
class Compiled:
    """A kernel for one target: the binary, the PTX it was made from, and its entry point's name."""

    case: Case
    target: str
    entry: str
    cubin: bytes
    ptx: str
    resources: Resources


def capability(target: str) -> int:
    """90 for `sm_90`, `SM90` or `90`. Raises UsageError for a target that kernels are not made for."""
    digits = target.lower().removeprefix("sm").removeprefix("_")
    if f"sm_{digits}" not in SHARED_LIMIT:
        fix = "Triton has no tensor cores there: use backend='sdpa'" if digits == "75" else f"choose from {TARGETS}"
        raise UsageError(f"there are no kernels for target '{target}'", fix)
    return int(digits)


def triton_version() -> str:
    """The compiler's version. Raises MissingDependencyError without Triton."""
    version = installed_triton()
    if version is None:
        raise missing("triton", extra="triton", purpose="compiling kernels")
    return version


def compile_case(case: Case, target: str, *, ptx_version: int | None = None) -> Compiled:
    """Compiles a kernel for a GPU, which this machine need not have.

    ptx_version: 85 for JetPack 6 and 90 for JetPack 7.0, whose drivers compile the PTX; by default the newest that the
    bundled ptxas knows.
    Raises BuildError where the compiler refuses, MissingDependencyError without Triton,
    EngineError in a process that interprets kernels.
    """
    sm = capability(target)
    triton_version()
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = case.function()
    if not hasattr(function, "cache_key"):  # the interpreter's functions have none
        raise EngineError("this process interprets kernels, so it cannot compile them", "unset TRITON_INTERPRET")
    arguments = case.arguments()
    constants = dict(case.tiling.constants)
    signature = {name: arguments.get(name, "constexpr") for name in function.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(function.arg_names)
        if name.startswith("p_") or name in case.aligned
    }
    options: dict[str, Any] = case.tiling.compile_options()
    if ptx_version is not None:
        options["ptx_version"] = ptx_version
    try:
        kernel = triton.compile(
            ASTSource(function, signature, constants, aligned), target=GPUTarget("cuda", sm, 32), options=options
        )
    except Exception as error:  # Triton hands on any error of its passes
        raise BuildError(f"{case.name} does not compile for sm_{sm}: {error}") from error
    resources = resources_of(kernel, f"{case.name} for sm_{sm}")
    return Compiled(case, f"sm_{sm}", kernel.metadata.name, kernel.asm["cubin"], kernel.asm["ptx"], resources)


def resources_of(kernel: Any, name: str) -> Resources:
    """What a kernel takes. kernel: as Triton compiled it. name: for messages.

    Raises BuildError for a kernel that wants scratch memory, MissingDependencyError without `cuobjdump`.
    """
    meta = kernel.metadata
    if getattr(meta, "global_scratch_size", 0) or getattr(meta, "profile_scratch_size", 0):
        raise BuildError(f"{name} wants scratch memory, which a plain launch does not give it")
    registers, spills = _usage(kernel.asm["cubin"])
    tmem = getattr(meta, "tmem_size", None) or 0
    wide, narrow = count_loads(kernel.asm["ptx"])
    return Resources(registers, spills, meta.shared, tmem, 32 * meta.num_warps, wide, narrow)


def problems(resources: Resources, target: str) -> list[str]:
    """Why this kernel would be slow, wrong or refused on the target; empty for a good one."""
    limit = 1024 * SHARED_LIMIT[target]
    checks = {
        f"spills {resources.spills} bytes per thread": resources.spills > 0,
        f"takes {resources.shared} bytes of shared memory of {limit}": resources.shared > limit,
        f"wants {resources.tmem} columns of tensor memory of {MAX_TMEM}: it is a trap": resources.tmem > MAX_TMEM,
    }
    return [problem for problem, present in checks.items() if present]


_LOAD = re.compile(r"^.*\bld\.global\S*?(?:\.v(?P<count>\d))?\.[a-z]+(?P<bits>\d+)\s", re.MULTILINE)
_COPY = re.compile(r"^.*\bcp\.async\.c[ag]\S*\s+\[[^\]]*\],\s*\[[^\]]*\],\s*(?P<bytes>0x[0-9a-f]+|\d+)", re.MULTILINE)


def count_loads(ptx: str) -> tuple[int, int]:
    """How many instructions read 16 bytes or more of global memory for a thread, and how many read less.

    Both loads into registers (`ld.global`, its width is count times bits) and copies to shared memory (`cp.async`, its
    width is an operand). Source: PTX ISA, sections on ld, cp.async.
    """
    widths = [int(load["count"] or 1) * int(load["bits"]) // 8 for load in _LOAD.finditer(ptx)]
    widths += [int(copy["bytes"], 0) for copy in _COPY.finditer(ptx)]
    wide = sum(width >= 16 for width in widths)
    return wide, len(widths) - wide


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack, which kernels without calls use for spills alone."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([cuobjdump(), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if match is None:
        raise BuildError(f"cuobjdump does not say what a kernel takes: {text.strip()!r}")
    return int(match[1]), int(match[2])


def cuobjdump() -> str:
    """The disassembler that comes with Triton, or the CUDA toolkit's."""
    import triton.backends.nvidia

    bundled = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    program = str(bundled) if bundled.is_file() else shutil.which("cuobjdump")
    if program is None:
        raise missing("cuobjdump", extra="triton", purpose="reading what kernels take")
    return program

"""Kernels as files, for programs that are not written in Python."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from twins_trt.errors import BuildError
from twins_trt.files import whole_file
from twins_trt.kernels.case import Case
from twins_trt.kernels.crosscompile.compiler import Compiled, compile_case, problems
from twins_trt.progress import Progress, silent


def write_cubins(
    folder: Path,
    work: Sequence[tuple[Case, str]],
    *,
    ptx_version: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write kernels as cubin and PTX below `folder/<target>/`, and `folder/kernels.json`.

    work: which kernel for which target, as `select` gives them.
    ptx_version: 85 for JetPack 6, 90 for JetPack 7.0, so that the device's driver can compile the PTX.
    progress: called after each kernel with step `compiled`, and its target and name.
    Returns the path of the JSON. For each kernel it has the file and sha256, the entry point, threads per block, bytes
    of dynamic shared memory, arguments in order, constants and grid.
    Raises BuildError for a kernel that spills or cannot run, MissingDependencyError without Triton.
    """
    progress = progress or silent
    entries: list[dict[str, object]] = []
    for case, target in work:
        compiled = compile_case(case, target, ptx_version=ptx_version)
        if faults := problems(compiled.resources, target):
            raise BuildError(f"{case.name} for {target} {'; it '.join(faults)}")
        entries.append(_write(folder, compiled))
        progress("compiled", f"{target} {case.name}", len(entries) / len(work))
    path = folder / "kernels.json"
    _write_file(path, (json.dumps({"version": 1, "kernels": entries}, indent=1) + "\n").encode())
    return path


def _write(folder: Path, compiled: Compiled) -> dict[str, object]:
    case, resources = compiled.case, compiled.resources
    path = folder / compiled.target / f"{case.name.replace(' ', '_')}.cubin"
    _write_file(path, compiled.cubin)
    _write_file(path.with_suffix(".ptx"), compiled.ptx.encode())
    arguments = [{"name": name, "type": kind} for name, kind in case.arguments().items()]
    # Triton's kernels end in two pointers to scratch memory, which these do not read
    arguments += [{"name": name, "type": "*i8", "value": "null"} for name in ("global_scratch", "profile_scratch")]
    return {
        "kernel": case.name.split()[0],
        "dtype": case.dtype,
        "head_dim": case.head_dim,
        "variant": case.variant,
        "target": compiled.target,
        "cubin": path.relative_to(folder).as_posix(),
        "ptx": path.with_suffix(".ptx").relative_to(folder).as_posix(),
        "sha256": hashlib.sha256(compiled.cubin).hexdigest(),
        "entry": compiled.entry,
        "threads": resources.threads,
        "shared_bytes": resources.shared,
        "registers": resources.registers,
        "arguments": arguments,
        "multiples_of_16": list(case.aligned),
        "constants": dict(case.tiling.constants),
        "grid": case.grid,
    }


def _write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, durable=False) as file:
        file.write(content)

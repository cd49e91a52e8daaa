"""`twins-trt kernels`: lists, checks or writes the Triton kernels, also for GPUs that this machine lacks."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twins_trt.cli.console import Console, table
from twins_trt.verbs.kernels import FLAGS

if TYPE_CHECKING:
    from twins_trt.kernels.case import Case

EXAMPLE = (
    "twins-trt kernels --target sm_87 --dtypes fp16 --out cubins --ptx-version 85\n\n"
    "Lists the resources of kernels, as recorded. --check compiles them again and fails (exit code 1) where one\n"
    "spills, takes more than is recorded, or has lost its 16-byte loads. --out writes cubins, PTX and kernels.json,\n"
    "for programs in other languages than Python."
)

FIGURES = (  # key in JSON, field of the record's resources, head of the table's column
    ("registers", "registers", "registers"),
    ("shared_bytes", "shared", "shared bytes"),
    ("threads", "threads", "threads"),
    ("wide_loads", "wide_loads", "16-byte loads"),
    ("narrow_loads", "narrow_loads", "narrower loads"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    FLAGS.add_to(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """List, check or write."""
    request = FLAGS.read(arguments)
    selected = request.select()
    if request.out is not None:
        return _write(Path(request.out), selected, request.ptx_version, console)
    if request.check:
        return _check(selected, request.workers or os.cpu_count() or 1, console)
    return _list(selected, console)


def _list(selected: list[tuple[Case, str]], console: Console) -> int:
    from twins_trt.kernels.crosscompile import read_record

    record = read_record()
    rows = []
    for case, target in selected:
        resources = record.resources.get(case.name, {}).get(target)
        figures = {key: getattr(resources, field) if resources else None for key, field, _ in FIGURES}
        rows.append({**_named(case, target), **figures})
    head = ("target", "kernel", "dtype", "head dim", "variant", *(words for _, _, words in FIGURES))
    cells = [tuple("" if value is None else str(value) for value in row.values()) for row in rows]
    note = f"{len(rows)} kernels; figures as compiled by Triton {record.triton} on {record.date}, {record.machine}"
    value = {"triton": record.triton, "date": record.date, "machine": record.machine, "kernels": rows}
    console.result(value, f"{table([head, *cells], right=frozenset((3, 5, 6, 7, 8, 9)))}\n\n{note}")
    return 0


def _check(selected: list[tuple[Case, str]], workers: int, console: Console) -> int:
    from twins_trt.kernels.crosscompile import read_record, sweep, triton_version

    record, version = read_record(), triton_version()
    wrong: list[dict[str, Any]] = []
    for done, (case, target, resources) in enumerate(sweep(selected, workers=workers), 1):
        console.progress("compiling", f"{target} {case.name}", done / len(selected))
        if faults := record.exceeded(case.name, target, resources, triton=version):
            wrong.append({**_named(case, target), "problems": faults})
    lines = [f"{row['target']} {_title(row)}: {'; '.join(row['problems'])}" for row in wrong]
    lines.append(
        f"{len(selected)} kernels compiled by Triton {version}, {len(wrong)} of them beyond what is recorded or the "
        "GPUs' limits"
    )
    if version != record.triton:
        lines.append(f"registers and shared memory were not compared: they are recorded of Triton {record.triton}")
    console.result({"triton": version, "compiled": len(selected), "wrong": wrong}, "\n".join(lines))
    return 1 if wrong else 0


def _write(folder: Path, selected: list[tuple[Case, str]], ptx_version: int | None, console: Console) -> int:
    from twins_trt.kernels.crosscompile import write_cubins

    path = write_cubins(folder, selected, ptx_version=ptx_version, progress=console.progress)
    console.result({"kernels": len(selected), "file": str(path)}, f"{len(selected)} kernels, described in {path}")
    return 0


def _named(case: Case, target: str) -> dict[str, Any]:
    kernel = case.name.split()[0]
    return {
        "target": target,
        "kernel": kernel,
        "dtype": case.dtype,
        "head_dim": case.head_dim or None,
        "variant": case.variant,
    }


def _title(row: dict[str, Any]) -> str:
    words = (row["kernel"], row["dtype"], row["head_dim"], row["variant"])
    return " ".join(str(word) for word in words if word)

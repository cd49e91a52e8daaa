"""`twins-trt kernels`: the Triton kernels for GPUs that need not be there: list, check, or write them as files."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twins_trt.cli.console import Console, table
from twins_trt.cli.parsing import split_list
from twins_trt.errors import UsageError

if TYPE_CHECKING:
    from twins_trt.kernels.case import Case

EXAMPLE = (
    "twins-trt kernels --target sm_87 --dtypes fp16 --out cubins --ptx-version 85\n\n"
    "Lists what kernels take, as recorded. --check compiles them anew and fails (exit code 1) where one spills\n"
    "or takes more than is recorded. --out writes cubins, PTX and kernels.json, for programs that are not Python."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Which kernels, for which GPUs, and what to do with them."""
    group = parser.add_argument_group("which", "by default all of them, for all targets")
    group.add_argument("--target", default="", metavar="SM,...", help="GPUs, such as sm_87,sm_90")
    group.add_argument("--kernels", default="", metavar="NAME,NAME", help="such as lsa_forward,resize_argmax")
    group.add_argument("--dtypes", default="", metavar="{fp32,fp16,bf16}", help="one or several, with commas")
    group.add_argument("--head-dims", default="", metavar="N,N", help="such as 32; kernels without one are always in")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="compile them and compare with what is recorded")
    what.add_argument("--out", metavar="DIR", help="compile them and write cubins, PTX and kernels.json there")
    parser.add_argument("--ptx-version", type=int, metavar="N", help="with --out: 85 for JetPack 6, 90 for JetPack 7.0")
    parser.add_argument("--workers", type=int, metavar="N", help="with --check: processes; default: one a core")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """List, check or write."""
    if arguments.ptx_version is not None and not arguments.out:
        raise UsageError("--ptx-version says how PTX is written", "give --out DIR too")
    if arguments.workers is not None and (arguments.workers < 1 or not arguments.check):
        raise UsageError("--workers is the number of processes that --check compiles on", "give --check --workers 2")
    selected = _select(arguments)
    if arguments.out:
        return _write(Path(arguments.out), selected, arguments.ptx_version, console)
    if arguments.check:
        return _check(selected, arguments.workers or os.cpu_count() or 1, console)
    return _list(selected, console)


def _select(arguments: argparse.Namespace) -> list[tuple[Case, str]]:
    from twins_trt.kernels.case import DTYPES
    from twins_trt.kernels.crosscompile import TARGETS, all_cases, select

    dims = split_list(arguments.head_dims)
    known = {
        "--kernels": {case.name.split()[0] for target in TARGETS for case in all_cases(target)},
        "--dtypes": set(DTYPES),
        "--head-dims": {str(case.head_dim) for case in all_cases(TARGETS[0])} - {"0"},
    }
    for option, given in (
        ("--kernels", split_list(arguments.kernels)),
        ("--dtypes", split_list(arguments.dtypes)),
        ("--head-dims", dims),
    ):
        if unknown := [word for word in given if word not in known[option]]:
            raise UsageError(f"{option} has no {unknown[0]!r}", f"choose from {', '.join(sorted(known[option]))}")
    return select(
        split_list(arguments.target) or TARGETS,
        kernels=split_list(arguments.kernels),
        dtypes=split_list(arguments.dtypes),
        head_dims=[int(dim) for dim in dims],
    )


def _list(selected: list[tuple[Case, str]], console: Console) -> int:
    from twins_trt.kernels.crosscompile import read_record

    record = read_record()
    rows = []
    for case, target in selected:
        resources = record.resources.get(case.name, {}).get(target)
        rows.append(
            {
                **_named(case, target),
                "registers": resources.registers if resources else None,
                "shared_bytes": resources.shared if resources else None,
                "threads": resources.threads if resources else None,
            }
        )
    head = ("target", "kernel", "dtype", "head dim", "variant", "registers", "shared bytes", "threads")
    cells = [tuple("" if value in (None, 0) else str(value) for value in row.values()) for row in rows]
    note = f"{len(rows)} kernels; figures as compiled by Triton {record.triton} on {record.date}, {record.machine}"
    value = {"triton": record.triton, "date": record.date, "machine": record.machine, "kernels": rows}
    console.result(value, f"{table([head, *cells], right=frozenset((3, 5, 6, 7)))}\n\n{note}")
    return 0


def _check(selected: list[tuple[Case, str]], workers: int, console: Console) -> int:
    from twins_trt.kernels.crosscompile import read_record, sweep, triton_version

    record, version = read_record(), triton_version()
    wrong: list[dict[str, Any]] = []
    for done, (case, target, resources) in enumerate(sweep(selected, workers=workers), 1):
        console.progress("compiling", f"{target} {case.name}", done / len(selected))
        if found := record.exceeded(case.name, target, resources, triton=version):
            wrong.append({**_named(case, target), "problems": found})
    lines = [f"{row['target']} {_title(row)}: {'; '.join(row['problems'])}" for row in wrong]
    held = "what is recorded and the GPUs' limits" if version == record.triton else "the GPUs' limits"
    lines.append(f"{len(selected)} kernels compiled by Triton {version}, {len(wrong)} of them beyond {held}")
    console.result({"triton": version, "compiled": len(selected), "wrong": wrong}, "\n".join(lines))
    return 1 if wrong else 0


def _write(folder: Path, selected: list[tuple[Case, str]], ptx_version: int | None, console: Console) -> int:
    from twins_trt.kernels.crosscompile import write_cubins

    done = 0

    def progress(name: str) -> None:
        nonlocal done
        console.progress("compiled", name, (done := done + 1) / len(selected))

    path = write_cubins(folder, selected, ptx_version=ptx_version, progress=progress)
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

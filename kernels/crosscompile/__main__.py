"""`python -m twins_trt.kernels.crosscompile`: check kernels against the record, renew it, or write cubins."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
from pathlib import Path

from twins_trt.errors import TwinsError
from twins_trt.kernels.crosscompile.compiler import TARGETS, Resources, capability
from twins_trt.kernels.crosscompile.cubins import write_cubins
from twins_trt.kernels.crosscompile.record import RECORD, Record, render_table
from twins_trt.kernels.crosscompile.sweep import select, sweep

DOCS = Path(__file__).parents[2] / "docs" / "kernels.md"
MARKS = ("<!-- resources: written by python -m twins_trt.kernels.crosscompile --record -->\n", "<!-- end -->")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m twins_trt.kernels.crosscompile", description=__doc__)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), metavar="SM", help="as in sm_87 (default: all)")
    parser.add_argument("--kernels", nargs="+", default=[], metavar="NAME", help="as in lsa_forward (default: all)")
    parser.add_argument("--dtypes", nargs="+", default=[], choices=["fp32", "fp16", "bf16"], metavar="DTYPE")
    parser.add_argument("--head-dims", nargs="+", type=int, default=[], metavar="N")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name} and the table in docs/kernels.md")
    parser.add_argument("--cubins", type=Path, metavar="FOLDER", help="write cubins, PTX and kernels.json there")
    parser.add_argument("--ptx-version", type=int, help="of the PTX: 85 for JetPack 6, 90 for JetPack 7.0")
    options = parser.parse_args(argv)
    try:
        return _write(options) if options.cubins else _check(options)
    except TwinsError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _write(options: argparse.Namespace) -> int:
    path = write_cubins(
        options.cubins,
        targets=options.targets,
        kernels=options.kernels,
        dtypes=options.dtypes,
        head_dims=options.head_dims,
        ptx_version=options.ptx_version,
        progress=print,
    )
    print(path)
    return 0


def _check(options: argparse.Namespace) -> int:
    import triton

    before = Record.from_json(RECORD.read_text()) if RECORD.is_file() else Record("", "", "")
    targets = [f"sm_{capability(target)}" for target in options.targets]
    work = select(targets, kernels=options.kernels, dtypes=options.dtypes, head_dims=options.head_dims)
    rows: dict[str, dict[str, Resources]] = {}
    wrong = 0
    for case, target, resources in sweep(work, workers=options.workers):
        rows.setdefault(case.name, {})[target] = resources
        found = before.exceeded(case.name, target, resources, triton=triton.__version__)
        wrong += bool(found)
        print(target, case.name, resources, *(f"<- {problem}" for problem in found), sep="  ", flush=True)
    print(f"{len(work)} kernels, {wrong} of them against the record or a limit")
    if not options.record:
        return 1 if wrong else 0
    # a partial run renews what it compiled; a full one also drops what no longer exists
    full = not (options.kernels or options.dtypes or options.head_dims) and set(targets) == set(TARGETS)
    kept = {} if full else {name: dict(row) for name, row in before.resources.items()}
    for name, row in rows.items():
        kept.setdefault(name, {}).update(row)
    record = Record(
        triton.__version__,
        datetime.date.today().isoformat(),
        f"{platform.system()} {platform.machine()}, no GPU",
        kept,
    )
    RECORD.write_text(record.to_json(), encoding="utf-8")
    if DOCS.is_file():
        DOCS.write_text(with_table(DOCS.read_text(encoding="utf-8"), record), encoding="utf-8")
    return 0


def with_table(text: str, record: Record) -> str:
    """The page with its table rendered anew."""
    before, _, rest = text.partition(MARKS[0])
    return before + MARKS[0] + render_table(record) + MARKS[1] + rest.partition(MARKS[1])[2]


if __name__ == "__main__":
    sys.exit(main())

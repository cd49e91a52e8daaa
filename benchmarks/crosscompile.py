"""Compiles every Triton kernel for every GPU and records its resources: a budget for later changes, and a table.

python -m benchmarks.crosscompile                           compiles all of them
python -m benchmarks.crosscompile --kernels lsa_forward     renews only the rows of this kernel
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform


def main() -> int:
    from twins_trt.kernels.crosscompile import (
        RECORD,
        TARGETS,
        Record,
        Resources,
        all_cases,
        problems,
        read_record,
        select,
        sweep,
        triton_version,
    )

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.crosscompile", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--kernels", nargs="+", default=[], metavar="NAME", help="only these; the other rows are kept")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    options = parser.parse_args()
    exist = {(case.name, target) for target in TARGETS for case in all_cases(target)}
    rows: dict[str, dict[str, Resources]] = {}
    if options.kernels:
        for name, row in read_record().resources.items():
            rows[name] = {target: resources for target, resources in row.items() if (name, target) in exist}
    for case, target, resources in sweep(select(TARGETS, kernels=options.kernels), workers=options.workers):
        if faults := problems(resources, target):
            raise SystemExit(f"{case.name} for {target} {'; it '.join(faults)}: nothing was recorded")
        rows.setdefault(case.name, {})[target] = resources
        print(target, case.name, resources, sep="  ", flush=True)
    machine = f"{platform.system()} {platform.machine()}, no GPU"
    record = Record(triton_version(), datetime.date.today().isoformat(), machine, {k: v for k, v in rows.items() if v})
    RECORD.write_text(record.to_json(), encoding="utf-8")
    print(f"{RECORD.name}; now python -m benchmarks.render")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

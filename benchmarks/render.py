"""Writes the tables of the documentation: from results files, from the zoo and from the code itself.

    python -m benchmarks.render             rewrites what is out of date
    python -m benchmarks.render --check     says what is out of date, and fails if anything is

A table is between `<!-- begin NAME ... -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import code_tables, cpu_tables, int8_tables, kernel_tables, profile_tables
from benchmarks.gpu import tables as gpu_tables
from benchmarks.results import RESULTS

ROOT = Path(__file__).parents[1]

SECTIONS: dict[str, tuple[str, Callable[[], str]]] = {
    "zoo": ("README.md", code_tables.zoo),
    "commands": ("README.md", code_tables.commands),
    "kernels-short": ("README.md", kernel_tables.kernels_short),
    "kernels": ("docs/measurements.md", kernel_tables.kernels),
    "build-cost": ("docs/measurements.md", kernel_tables.build_cost),
    "cpu": ("docs/measurements.md", cpu_tables.cpu),
    "cpu-int8": ("docs/measurements.md", cpu_tables.cpu_int8),
    "accuracy": ("docs/measurements.md", cpu_tables.accuracy),
    "profile-camvid": ("docs/measurements.md", profile_tables.profile_camvid),
    "profile-blocks": ("docs/measurements.md", profile_tables.profile_blocks),
    "ladder-short": ("README.md", int8_tables.ladder_short),
    "ladder": ("docs/int8.md", int8_tables.ladder),
    "int8-kernels": ("docs/int8.md", int8_tables.int8_kernels),
    "islands": ("docs/export.md", code_tables.islands),
    "resources": ("docs/kernels.md", code_tables.resources),
    "gpu-short": ("README.md", gpu_tables.short),
    "gpu-attentions": ("docs/measurements.md", gpu_tables.attentions),
    "gpu-small-kernels": ("docs/measurements.md", gpu_tables.small_kernels),
    "gpu-models": ("docs/measurements.md", gpu_tables.models),
    "gpu-engine-default": ("docs/measurements.md", gpu_tables.engine_default),
    "gpu-traces": ("docs/measurements.md", gpu_tables.traces),
    "gpu-training": ("docs/measurements.md", gpu_tables.training),
    "compilers": ("docs/engines.md", code_tables.compilers),
    "targets": ("docs/engines.md", code_tables.targets),
    "errors": ("docs/errors.md", code_tables.errors),
    "flags": ("docs/api.md", code_tables.flags),
}


FIGURES: dict[str, Callable[[], str]] = {"docs/images/kernels.svg": kernel_tables.kernels_figure}


def replace_section(text: str, name: str, content: str) -> str:
    """`text` with `content` between the markers of `name`. Raises ValueError unless these are there exactly once."""
    pattern = re.compile(rf"(<!-- begin {re.escape(name)}\b[^>]*-->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"the markers of {name} must stand exactly once")
    return pattern.sub(lambda match: f"{match[1]}\n{content}\n\n{match[2]}", text)


def outdated(names: Sequence[str] | None = None) -> dict[Path, str]:
    """Files that are out of date, with their new content. names: the sections to check, by default all."""
    contents: dict[Path, str] = {}
    if names is None:
        contents = {ROOT / file: function() for file, function in FIGURES.items()}
    for name in SECTIONS if names is None else names:
        file, function = SECTIONS[name]
        path = ROOT / file
        contents[path] = replace_section(contents.get(path) or path.read_text(encoding="utf-8"), name, function())
    return {path: text for path, text in contents.items() if not path.exists() or path.read_text("utf-8") != text}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table is out of date")
    arguments = parser.parse_args()
    missing = [name for name in ("kernels", "cpu", "cpu_int8", "accuracy") if not (RESULTS / f"{name}.json").is_file()]
    if missing:
        sys.exit(f"no results of {', '.join(missing)}: run python -m benchmarks.{missing[0]}")
    stale = outdated()
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)} {'is out of date' if arguments.check else 'rewritten'}")
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())

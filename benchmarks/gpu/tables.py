"""Tables of the documentation from the results of every GPU that was measured; a sentence where none was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.markdown import table

Row = Mapping[str, Any]

NONE = (
    "Not measured yet: the repository holds no results of a GPU. `python -m benchmarks.gpu` makes them on a machine "
    "that has one."
)


def measured(folder: Path) -> list[dict[str, Any]]:
    """The results files in `folder` of GPUs in which no check is red."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("gpu-*.json"))]
    return [file for file in files if all(row["passed"] for row in file["rows"] if row["section"] == "checks")]


def attentions(*, folder: Path = results.RESULTS) -> str:
    """Each attention of each stage: ours, its share of the ceilings, and how many times as long the others take."""
    return _for_each(folder, _attentions)


def models(*, folder: Path = results.RESULTS) -> str:
    """Whole models, image to mask."""
    head = ("model", "batch", "form", "ms", "90 %", "99 %", "images/s", "peak MiB", "timed")
    note = "Peak memory is of the eager forms alone: torch does not count what the CUDA graphs of the others hold."
    return _for_each(
        folder, lambda file: f"{table(head, [_model_row(row) for row in _rows(file, 'models')])}\n\n{note}"
    )


def training(*, folder: Path = results.RESULTS) -> str:
    """A training step."""
    head = ("model", "batch", "form", "ms", "90 %", "99 %", "images/s", "peak MiB", "timed")
    return _for_each(folder, lambda file: table(head, [_model_row(row) for row in _rows(file, "training")]))


def _attentions(file: Row) -> str:
    ceilings = {row["name"]: row["rate"] for row in _rows(file, "ceilings")}
    cells: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in _rows(file, "kernels"):
        if row["what"] in ("lsa", "gsa"):
            key = (row["what"], row["model"], row["stage"], row["batch"], row["direction"])
            cells.setdefault(key, {})[row["form"]] = row
    others = ("mmseg eager", "mmseg compiled", "sdpa flash", "sdpa efficient", "sdpa cudnn", "flex")
    lines = []
    for key, forms in cells.items():
        ours = forms.get("ours")
        if ours is None:
            continue
        seconds = 1e-3 * ours["ms"]
        lines.append(
            (
                *key,
                f"{1e3 * ours['ms']:.1f}",
                _share(ours["bytes"] / seconds, ceilings.get("copy")),
                _share(ours["flops"] / seconds, ceilings.get("matmul")),
                _share(ours["exponentials"] / seconds, ceilings.get("exp2")) if key[-1] == "forward" else "",
                *(f"{forms[name]['ms'] / ours['ms']:.1f}" if name in forms else "" for name in others),
            )
        )
    head = ("", "model", "stage", "batch", "direction", "ours, µs", "of copying", "of matmul", "of exp2", *others)
    note = (
        "Shares are of what copying, a large matrix product and exponentials alone reached in the same run; the other "
        "columns say how many times as long a form takes, with the copies it needs. Empty: it does not exist there."
    )
    return f"{table(head, lines)}\n\n{note}"


def _rows(file: Row, section: str) -> list[Row]:
    return [row for row in file["rows"] if row["section"] == section and "error" not in row]


def _model_row(row: Row) -> tuple[object, ...]:
    memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
    times = (f"{row[key]:.3f}" for key in ("ms", "ms_p90", "ms_p99"))
    name = f"`{row['model']}`"
    return (name, row["batch"], row["form"], *times, f"{row['images_per_second']:.0f}", memory, row["timed"])


def _share(rate: float, ceiling: float | None) -> str:
    return "" if not ceiling else f"{100 * rate / ceiling:.0f} %"


def _for_each(folder: Path, render: Callable[[Row], str]) -> str:
    parts = [f"{render(file)}\n\n<sub>{results.describe_run(file)}.</sub>" for file in measured(folder)]
    return "\n\n".join(parts) or NONE

"""Tables of the documentation from the results of every GPU that was measured; a sentence where none was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.gpu.jobs import kind_of
from benchmarks.gpu.store import red_checks
from benchmarks.markdown import table

Row = Mapping[str, Any]

NONE = (
    "Not measured yet: the repository holds no results of a GPU. `python -m benchmarks.gpu` makes them on a machine "
    "that has one."
)

NOT_MADE = frozenset(("error", "excluded", "given_up"))
"""Keys of rows that hold no figure. A trace, which holds many, has no `ms`."""

MODEL_HEAD = ("model", "batch", "form", "ms", "90 %", "99 %", "images/s", "peak MiB", "timed")
ENGINE_FORMS = ("ours", "ours compiled", "ours autotuned")
"""What the torch engine could run. The first is what it runs."""

TRACED_KERNELS = 20
LONG_NAME = 100
EMPTY = "empty kernel"
UNTRACED = "No replay was traced."


def measured(folder: Path) -> list[dict[str, Any]]:
    """The results files in `folder`, each with the rows that were measured and rest on no red check."""
    files = [results.read_results(path.stem, folder=folder) for path in sorted(folder.glob("gpu-*.json"))]
    return [{**file, "rows": _trusted(file["rows"])} for file in files]


def attentions(*, folder: Path = results.RESULTS) -> str:
    """Each attention of each stage: ours, its share of the ceilings, and how many times as long the others take."""
    return _for_each(folder, _attentions)


def small_kernels(*, folder: Path = results.RESULTS) -> str:
    """The kernels before and after the network beside an empty one: once with a cold cache, and many in a row."""
    return _for_each(folder, _small_kernels)


def models(*, folder: Path = results.RESULTS) -> str:
    """Whole models, image to mask."""
    head = (*MODEL_HEAD, "first call, s", "equal pixels")
    note = (
        "Peak memory is that of a call from Python, weights included: torch does not count what CUDA graphs hold. That "
        "is more where parts of a graph run side by side. Forms with graphs of torch's own have no such call. "
        "Equal pixels are those of `eager fp32`; where they are few, a form does not do the same work."
    )
    return _for_each(
        folder, lambda file: f"{table(head, [_whole_model_row(row) for row in _rows(file, 'models')])}\n\n{note}"
    )


def short(*, folder: Path = results.RESULTS) -> str:
    """Whole models in the torch engine's form, beside the best of the others: a line a model."""
    return _for_each(folder, _short)


def engine_default(*, folder: Path = results.RESULTS) -> str:
    """What the torch engine could run, and the best of the others, of every model and batch."""
    return _for_each(folder, _engine_default)


def traces(*, folder: Path = results.RESULTS) -> str:
    """The kernels of one replay of the torch engine."""
    return _for_each(folder, lambda file: "\n\n".join(map(_trace, _rows(file, "traces"))) or UNTRACED)


def training(*, folder: Path = results.RESULTS) -> str:
    """A training step."""
    return _for_each(folder, lambda file: table(MODEL_HEAD, [_model_row(row) for row in _rows(file, "training")]))


def _attentions(file: Row) -> str:
    ceilings = {row["name"]: row["rate"] for row in _rows(file, "ceilings") if "rate" in row}
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
                _in_row(ours),
                _share(ours["bytes"] / seconds, ceilings.get("copy")),
                _share(ours["flops"] / seconds, ceilings.get("matmul")),
                _share(ours["exponentials"] / seconds, ceilings.get("exp2")) if key[-1] == "forward" else "",
                *(f"{forms[name]['ms'] / ours['ms']:.1f}" if name in forms else "" for name in others),
            )
        )
    head = (
        "",
        "model",
        "stage",
        "batch",
        "direction",
        "ours, µs",
        "in a row, µs",
        "of copying",
        "of matmul",
        "of exp2",
        *others,
    )
    note = (
        "Shares are of what copying, a large matrix product and exponentials alone reached on this GPU; the other "
        "columns say how many times as long a form takes, with the copies it needs. Empty: it does not exist there, or "
        "was not measured. "
        "In a row: each of many in one graph, with a warm cache and without a launch of its own."
    )
    notes = (f"`{row['name']}` was measured {row['note']}." for row in _rows(file, "ceilings") if "note" in row)
    return f"{table(head, lines)}\n\n{' '.join(filter(None, (note, *notes, _empty_kernel(file))))}"


def _small_kernels(file: Row) -> str:
    lines = []
    for row in _rows(file, "kernels"):
        if row["what"] not in ("lsa", "gsa"):
            rate = f"{row['bytes'] / (1e-3 * row['ms']) / 1e9:.0f}"
            lines.append((f"`{row['what']}`", row["batch"], row["form"], *_microseconds(row), rate))
    for row in _rows(file, "ceilings"):
        if row["name"] == EMPTY:
            lines.append((EMPTY, "", "", *_microseconds(row), ""))
    head = ("", "batch", "form", "once, µs", "90 %", "99 %", "in a row, µs", "GB/s")
    return f"{table(head, lines)}\n\n{_empty_kernel(file)}".rstrip()


def _empty_kernel(file: Row) -> str:
    """A sentence with the empty kernel's times; empty where it was not measured."""
    for row in _rows(file, "ceilings"):
        if row["name"] == EMPTY:
            return (
                f"An empty kernel takes {1e3 * row['ms']:.1f} µs once and {_in_row(row)} µs in a row: so much of every "
                "kernel's time is its launch."
            )
    return ""


def _short(file: Row) -> str:
    cells = _whole_models(file)
    batches = sorted({batch for _, batch in cells})
    lines = []
    for model in dict.fromkeys(model for model, _ in cells):
        by_batch = [cells.get((model, batch), {}) for batch in batches]
        if not any("ours" in forms for forms in by_batch):
            continue
        line = [f"`{model}`"]
        for forms in by_batch:
            compiled = [row for row in _others(forms) if kind_of(row["form"]) in ("compiled", "autotuned")]
            best = min(compiled, key=_ms, default=None)
            line.append(f"{forms['ours']['ms']:.2f}" if "ours" in forms else "")
            line.append("" if best is None else f"{best['ms']:.2f} ({best['form']})")
        lines.append(line)
    head = [cell for batch in batches for cell in (f"batch {batch}, ms", "torch.compile")]
    size = "x".join(map(str, file["settings"]["size"]))
    note = (
        f"{size}, a uint8 image to a uint8 mask on one {file['settings']['gpu']}, in FP16, as a CUDA graph. "
        "torch.compile: the fastest of its forms that was measured. Empty: not measured."
    )
    return f"{table(('model', *head), lines)}\n\n{note}"


def _engine_default(file: Row) -> str:
    lines = []
    for (model, batch), forms in _whole_models(file).items():
        best = min(_others(forms), key=_ms, default=None)
        candidates = [forms[name] for name in ENGINE_FORMS if name in forms]
        if not candidates:
            continue
        lines.append(
            (
                f"`{model}`",
                batch,
                *(f"{forms[name]['ms']:.3f}" if name in forms else "" for name in ENGINE_FORMS),
                min(candidates, key=_ms)["form"],
                "" if best is None else f"{best['ms']:.3f} ({best['form']})",
            )
        )
    return table(
        ("model", "batch", *(f"{name}, ms" for name in ENGINE_FORMS), "fastest", "best of the others, ms"), lines
    )


def _whole_models(file: Row) -> dict[tuple[str, int], dict[str, Row]]:
    """The rows of each model and batch, by form."""
    cells: dict[tuple[str, int], dict[str, Row]] = {}
    for row in _rows(file, "models"):
        cells.setdefault((row["model"], row["batch"]), {})[row["form"]] = row
    return cells


def _others(forms: Mapping[str, Row]) -> list[Row]:
    return [row for name, row in forms.items() if not name.startswith("ours")]


def _ms(row: Row) -> float:
    return float(row["ms"])


def _trace(row: Row) -> str:
    shown = row["kernels"][:TRACED_KERNELS]
    lines = [_traced(kernel, kernel["name"]) for kernel in shown]
    rest = row["kernels"][TRACED_KERNELS:]
    if rest:
        sums = {key: sum(kernel[key] for kernel in rest) for key in ("count", "us", "share")}
        lines.append(_traced(sums, f"{len(rest)} others"))
    graphs = "as a CUDA graph" if row["graph_launches"] else "not as a CUDA graph"
    said = (
        f"`{row['model']}`, batch {row['batch']}, {graphs}: {row['launches']} kernels run for {row['busy_us']:.0f} µs, "
        f"and between them nothing runs for {row['idle_us']:.0f} µs, with the profiler attached."
    )
    return f"{said}\n\n{table(('kernel', 'count', 'µs', 'share'), lines)}"


def _traced(kernel: Row, name: str) -> tuple[object, ...]:
    short = name if len(name) <= LONG_NAME else f"{name[: LONG_NAME - 1]}…"
    return (f"`{short.replace('|', '/')}`", kernel["count"], f"{kernel['us']:.1f}", f"{100 * kernel['share']:.1f} %")


def _trusted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    wrong = {part for covers in red_checks(rows).values() for part in covers}
    made = (row for row in rows if row["section"] not in ("checks", "sanitizer") and NOT_MADE.isdisjoint(row))
    return [row for row in made if wrong.isdisjoint(row.get("rests_on", ()))]


def _rows(file: Row, section: str) -> list[Row]:
    return [row for row in file["rows"] if row["section"] == section]


def _model_row(row: Row) -> tuple[object, ...]:
    memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
    times = (f"{row[key]:.3f}" for key in ("ms", "ms_p90", "ms_p99"))
    name = f"`{row['model']}`"
    return (name, row["batch"], row["form"], *times, f"{row['images_per_second']:.0f}", memory, row["timed"])


def _whole_model_row(row: Row) -> tuple[object, ...]:
    first = f"{row['first_s']:.1f}" if "first_s" in row else ""
    equal = f"{100 * row['same_pixels']:.2f} %" if "same_pixels" in row else ""
    return (*_model_row(row), first, equal)


def _microseconds(row: Row) -> tuple[str, ...]:
    return (*(f"{1e3 * row[key]:.1f}" for key in ("ms", "ms_p90", "ms_p99")), _in_row(row))


def _in_row(row: Row) -> str:
    return f"{1e3 * row['ms_in_row']:.2f}" if "ms_in_row" in row else ""


def _share(rate: float, ceiling: float | None) -> str:
    return "" if not ceiling else f"{100 * rate / ceiling:.0f} %"


def _for_each(folder: Path, render: Callable[[Row], str]) -> str:
    parts = [f"{render(file)}\n\n<sub>{results.describe_run(file)}.</sub>" for file in measured(folder) if file["rows"]]
    return "\n\n".join(parts) or NONE

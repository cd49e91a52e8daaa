"""Tables and the figure of benchmarks/kernels.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.figure import bars
from benchmarks.markdown import fused, how, megabytes, table
from benchmarks.results import read_results

Row = Mapping[str, Any]


def kernels() -> str:
    """Our graphs beside mmsegmentation's, all models."""
    results = read_results("kernels")
    rows = []
    for name, ours, theirs in _kernel_rows(results):
        rows.append(
            (
                f"`{name}`",
                f"**{ours['kernels']}**",
                theirs["kernels"] if theirs else "",
                f"**{fused(ours)}**",
                fused(theirs) if theirs else "",
                f"**{ours['copies']}**",
                theirs["copies"] if theirs else "",
                f"**{megabytes(ours)}**",
                megabytes(theirs) if theirs else "",
            )
        )
    head = ("model", "kernels", "mmseg", "attentions fused", "mmseg", "copies", "mmseg", "MB moved", "mmseg")
    note = (
        "Ours take a uint8 image and give a uint8 mask at full size; mmsegmentation's export takes normalized floats "
        "and stops at quarter-size logits, so it has less to do. Its better opset of "
        f"{' and '.join(map(str, _opsets(results)))} is shown."
    )
    return f"{table(head, rows)}\n\n{note} {_conditions(results)}\n\n{how(results)}"


def build_cost() -> str:
    """Build time, size and memory, all models."""
    results = read_results("kernels")
    rows = [
        (
            f"`{name}`",
            f"{ours['export_seconds']:.1f}",
            f"{ours['build_seconds']:.1f}",
            f"{ours['plan_bytes'] / 1e6:.0f}",
            f"{ours['peak_host_mib'] / 1024:.1f}",
        )
        for name, ours, _ in _kernel_rows(results)
    ]
    head = ("model", "weights and export, s", "engine, s", "engine, MB", "peak memory of both, GiB")
    note = f"Load average before the run: {results['settings']['load_before']}."
    return f"{table(head, rows)}\n\n{note}\n\n{how(results)}"


def kernels_short() -> str:
    """Three models for the README."""
    results = read_results("kernels")
    chosen = ("twins_svt-s_upernet", "twins_svt-s_fpn", "twins_pcpvt-s_fpn")
    rows = [
        (
            f"`{name}`",
            ours["kernels"],
            theirs["kernels"] if theirs else "",
            fused(ours),
            fused(theirs) if theirs else "",
            megabytes(ours),
            megabytes(theirs) if theirs else "",
        )
        for name, ours, theirs in _kernel_rows(results)
        if name in chosen
    ]
    head = ("FP16, 512x512", "kernels", "mmseg's export", "fused attentions", "mmseg's", "MB moved", "mmseg's")
    note = f"Counted in engines that {_compiler(results)} built without a GPU; none of them was timed."
    return f"{table(head, rows)}\n\n{note}"


def kernels_figure() -> str:
    """Kernels of all models as bars."""
    pairs = [
        (name, ours["kernels"], theirs["kernels"] if theirs else None)
        for name, ours, theirs in _kernel_rows(read_results("kernels"))
    ]
    return bars(pairs, legend=("kernels, twins-trt (image to mask)", "mmsegmentation's export (to logits)"))


def _kernel_rows(results: Row) -> list[tuple[str, Row, Row | None]]:
    """Model, our row, and mmsegmentation's row with the fewest kernels."""
    ours = [row for row in results["rows"] if row["graph"] == "twins-trt"]
    theirs: dict[str, Row] = {}
    for row in results["rows"]:
        if row["graph"] == "mmseg" and row["kernels"] < theirs.get(row["model"], {"kernels": 1 << 30})["kernels"]:
            theirs[row["model"]] = row
    return [(row["model"], row, theirs.get(row["model"])) for row in ours]


def _opsets(results: Row) -> list[int]:
    return sorted({row["opset"] for row in results["rows"] if row["graph"] == "mmseg"})


def _compiler(results: Row) -> str:
    return f"TensorRT-RTX {results['versions']['tensorrt-rtx-cu13']}"


def _conditions(results: Row) -> str:
    settings = results["settings"]
    size, targets = "x".join(map(str, settings["size"])), ", ".join(settings["targets"])
    return f"{settings['precision'].upper()}, {size}, batch {settings['batch']}, one engine for {targets}."

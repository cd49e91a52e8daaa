"""The tables of docs/int8.md."""

from __future__ import annotations

from benchmarks.markdown import fused, how, megabytes, table
from benchmarks.results import read_results


def ladder() -> str:
    """One trained model at every precision."""
    results = read_results("ladder")
    rows = [
        (
            row["name"],
            f"{row['miou']:.2f}",
            f"{row['drop']:+.3f}",
            f"{row['drop_low']:+.3f} to {row['drop_high']:+.3f}",
            "yes" if row["passed"] else "no",
            f"{100 * row['agreement']:.2f}",
            f"{row['engine_bytes'] / 1e6:.0f}" if "engine_bytes" in row else "",
            row.get("kernels", ""),
            fused(row) if "kernels" in row else "",
            "" if row["cpu_ms"] is None else f"{row['cpu_ms']:.0f}",
        )
        for row in results["rows"]
    ]
    settings, first = results["settings"], results["rows"][0]
    compilers = {row["compiler"] for row in results["rows"] if "compiler" in row}
    searched = settings["searched_strength"]
    note = (
        f"`{settings['model']}`, {settings['data']} val ({first['images']} images of "
        f"{'x'.join(map(str, settings['size']))}), ranges from {settings['calibrated_on']} training images; PyTorch "
        f"float32 has {first['reference_miou']:.2f} mIoU. Masks are ONNX Runtime's on a CPU, a simulation of the "
        "engines: INT8 rows leave FP16 in float32 save `as built`, which is the graph as it ships. The observer is mse "
        "where none is named. SmoothQuant's search "
        f"{'turned it down' if searched is None else f'took {searched}'}. Engines ({', '.join(sorted(compilers))}, "
        f"{', '.join(settings['targets'])}) were built and counted, not run; CPU times are medians of "
        f"{settings['rounds']} with {settings['threads']} threads."
    )
    head = (
        "graph",
        "mIoU",
        "drop",
        "95 % interval",
        "passes",
        "pixels equal, %",
        "engine, MB",
        "kernels",
        "fused",
        "CPU, ms",
    )
    return f"{table(head, rows)}\n\n{note}\n\n{how(results)}"


def ladder_short() -> str:
    """Precisions alone, for the README."""
    results = read_results("ladder")
    rows = [
        (
            row["name"],
            f"{row['miou']:.2f}",
            f"{row['drop']:+.2f}",
            f"{row['drop_low']:+.2f} to {row['drop_high']:+.2f}",
            "yes" if row["passed"] else "no",
            f"{row['engine_bytes'] / 1e6:.0f}",
            fused(row),
        )
        for row in results["rows"]
        if "engine_bytes" in row
    ]
    head = ("CamVid val", "mIoU", "points lost", "95 % interval", "passes", "engine, MB", "fused attentions")
    note = f"`{results['settings']['model']}`; masks by ONNX Runtime in place of the engines, which no GPU has run yet."
    return f"{table(head, rows)}\n\n{note}"


def int8_kernels() -> str:
    """INT8 engines of all models."""
    results = read_results("int8_kernels")
    fp16 = {row["model"]: row["kernels"] for row in read_results("kernels")["rows"] if row["graph"] == "twins-trt"}
    rows = [
        (
            f"`{row['model']}`",
            row["level"],
            f"{row['planned'] - len(row['not_int8'])}/{row['planned']}",
            fused(row),
            row["kernels"],
            fp16.get(row["model"], ""),
            megabytes(row),
            f"{row['plan_bytes'] / 1e6:.0f}",
        )
        for row in results["rows"]
    ]
    head = ("model", "level", "products in INT8", "attentions fused", "kernels", "FP16's", "MB moved", "engine, MB")
    settings = results["settings"]
    note = (
        f"{'x'.join(map(str, settings['size']))}, batch {settings['batch']}, one engine for "
        f"{', '.join(settings['targets'])}; read from the layer lists of {results['rows'][0]['compiler']}, not timed."
    )
    return f"{table(head, rows, align='ll' + 'r' * 6)}\n\n{note}\n\n{how(results)}"

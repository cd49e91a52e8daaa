"""Tables of what was measured on a CPU: benchmarks/cpu.py, cpu_int8.py and accuracy.py."""

from __future__ import annotations

from benchmarks.markdown import how, table
from benchmarks.results import read_results


def cpu() -> str:
    """ONNX Runtime on a CPU."""
    results = read_results("cpu")
    rows = [
        (
            f"`{row['model']}`",
            "mmsegmentation's export, logits" if row["graph"] == "mmseg" else row["graph"],
            f"{row['milliseconds']:.0f}",
            f"{row['ratio']:.2f}",
            "" if row["graph"] == "mmseg" else f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}",
        )
        for row in results["rows"]
    ]
    settings = results["settings"]
    head = ("model", "graph", "ms", "times as fast", "95 % interval")
    note = (
        f"Medians of {settings['rounds']} rounds with {settings['threads']} threads, float32, "
        f"{'x'.join(map(str, settings['size']))}; load average before the run {settings['load_before']}. "
        "A mask costs a resize of every class to the image's size and an argmax, which mmsegmentation's export leaves "
        "to its caller."
    )
    return f"{table(head, rows, align='llrrr')}\n\n{note}\n\n{how(results)}"


def cpu_int8() -> str:
    """INT8 and OpenVINO on a CPU."""
    results = read_results("cpu_int8")
    names = {"mmseg": "mmsegmentation's", "ours": "ours"}
    runtimes = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    rows = [
        (
            names[row["graph"]],
            row["precision"],
            runtimes[row["engine"]],
            f"{row['milliseconds']:.0f}",
            f"{row['ratio']:.2f}",
            f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}",
            "" if "open_seconds" not in row else f"{row['open_seconds']:.1f}",
        )
        for row in results["rows"]
    ]
    settings = results["settings"]
    head = ("graph", "precision", "run by", "ms", "times as fast as our FP32", "95 % interval", "s to open")
    note = (
        f"`{settings['model']}` to logits, {'x'.join(map(str, settings['size']))}. Medians of {settings['rounds']} "
        f"rounds with {settings['threads']} threads; load average before the run {settings['load_before']}. "
        "The weights are seeded: nothing here tells of accuracy."
    )
    return f"{table(head, rows, align='lllrrrr')}\n\n{note}\n\n{how(results)}"


def accuracy() -> str:
    """One trained model, from PyTorch to the FP16 graph."""
    results = read_results("accuracy")
    rows = [
        (
            row["what"],
            f"{row['miou']:.2f}",
            "" if row["difference"] is None else f"{round(row['difference'], 4) + 0.0:+.4f}",
        )
        for row in results["rows"]
    ]
    settings = results["settings"]
    note = (
        f"`{settings['model']}`, {settings['data']} ({settings['images']} images), whole images of "
        f"{'x'.join(map(str, settings['size']))}; graphs run by ONNX Runtime on the CPU, so this is the graph's "
        "accuracy, not a GPU engine's."
    )
    head = ("computed by", "mIoU", "difference")
    return f"{table(head, rows)}\n\n{note}\n\n{how(results)}"

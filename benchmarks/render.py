"""Writes the tables of the documentation: from results files, from the zoo and from the code itself.

    python -m benchmarks.render             rewrites what is out of date
    python -m benchmarks.render --check     says what is out of date and fails if anything is

A table stands between `<!-- begin NAME ... -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figure import bars
from benchmarks.gpu import tables
from benchmarks.int8_tables import int8_kernels, ladder, ladder_short
from benchmarks.markdown import fused, how, megabytes, table
from benchmarks.profile_tables import profile_blocks, profile_camvid
from benchmarks.results import RESULTS, read_results

ROOT = Path(__file__).parents[1]
MODELS_PAGE = "https://github.com/open-mmlab/mmsegmentation/tree/main/configs/twins"

Row = Mapping[str, Any]


def zoo() -> str:
    """Models with what was published for them."""
    from twins_trt.models import get_spec, list_models

    rows = []
    for spec in map(get_spec, list_models()):
        size = "x".join(map(str, spec.crop_size))
        scores = (f"{spec.miou:.2f}", f"{spec.miou_ms_flip:.2f}", f"{spec.schedule_iterations // 1000}k")
        rows.append((f"`{spec.name}`", size, *scores, f"`{spec.weights_sha256_prefix}`"))
    head = ("model", "crop", "mIoU", "mIoU, ms + flip", "schedule", "weights' sha256")
    source = (
        f"Published on ADE20K val, 150 classes, percent: [mmsegmentation's Twins page]({MODELS_PAGE}). "
        "Nothing in this table was measured here."
    )
    return f"{table(head, rows)}\n\n{source}"


def commands() -> str:
    """The command line at a glance."""
    from twins_trt.cli import COMMANDS

    return table(("command", "what for"), [(f"`{name}`", text) for name, text in COMMANDS.items()], align="ll")


VERBS = {"build": "build", "calibrate": "calibrate", "gate": "gate", "evaluate": "eval", "profile": "profile"}
"""The verbs that Python has too, and their commands."""


def flags() -> str:
    """What each verb can be asked, as Python and the command line call it."""
    from importlib import import_module

    parts = []
    for verb, command in VERBS.items():
        table_of = import_module(f"twins_trt.verbs.{verb}").FLAGS
        rows = []
        for flag in table_of.flags:
            asked = flag.field if flag.sets is None else f"{flag.field}={flag.sets}"
            cells = (f"`{asked}`", f"`{flag.option}`", table_of.help_of(flag))
            rows.append(tuple(cell.replace("|", "\\|") for cell in cells))
        parts.append(table((f"`{verb}`", f"`twins-trt {command}`", ""), rows, align="lll"))
    return "\n\n".join(parts)


def errors() -> str:
    """Typed errors and their exit codes."""
    from twins_trt import errors as module

    found = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, module.TwinsError)]
    rows = [
        (f"`{each.__name__}`", each.exit_code, (each.__doc__ or "").strip().split("\n")[0].rstrip("."))
        for each in found
    ]
    return table(("error", "exit code", "when"), rows, align="lcl")


def islands() -> str:
    """What stays float32 in an FP16 graph, by the part of the graph and the reason given in the code."""
    from twins_trt.builders.export import ExportOptions
    from twins_trt.builders.export.export import build_graph
    from twins_trt.models import build_model

    options = ExportOptions(height=64, width=64, precision="fp16", outputs=("mask", "logits"))
    _, info = build_graph(build_model("twins_svt-s_fpn"), options)
    rows = dict.fromkeys((name.split("/", 1)[0], reason) for name, reason in info.islands.items())
    return table(("part", "why it stays float32"), [(f"`{part}`", reason) for part, reason in rows], align="ll")


def offers() -> str:
    """What each TensorRT version offers, by the code that asks for it, from the recorded names of its bindings."""
    from twins_trt.builders.engine import Compiler

    sys.path.insert(0, str(ROOT / "tests"))
    try:
        import fake_tensorrt
    finally:
        sys.path.pop(0)
    rows = []
    for version in fake_tensorrt.versions():
        module = fake_tensorrt.fake_module(version)
        compiler = Compiler.of(module, module.__name__)
        rows.append(
            (
                compiler.name,
                {"always": "strong, always", "flag": "strong, by flag", "none": "weak"}[compiler.typing],
                compiler.opset or "",
                " ".join(compiler.targets) or "its own GPU",
                ", ".join(f"`{level}`" for level in compiler.hardware_compatibility),
                *("yes" if has else "" for has in (compiler.timing_cache, compiler.progress, compiler.attention)),
            )
        )
    head = (
        "",
        "typing",
        "opset up to",
        "targets",
        "hardware compatibility",
        "timing cache",
        "progress",
        "ONNX Attention",
    )
    return table(head, rows, align="llclcccc")


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
    return f"{table(head, rows)}\n\n{note} {_settings(results)}\n\n{how(results)}"


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


def resources() -> str:
    """What every Triton kernel takes on every GPU: a row for each kernel, dtype and head dim."""
    from twins_trt.kernels.crosscompile import TARGETS, Resources, read_record

    record = read_record()
    every = [each for row in record.resources.values() for each in row.values()]
    groups: dict[tuple[str, ...], dict[str, list[Resources]]] = {}
    for name, row in record.resources.items():
        cells = groups.setdefault(tuple(name.split()[:3]), {})
        for target, each in row.items():
            cells.setdefault(target, []).append(each)
    rows = [
        (f"`{kernel}`", dtype, dim if dim != "0" else "", *(_largest(cells.get(target, [])) for target in TARGETS))
        for (kernel, dtype, dim), cells in sorted(groups.items())
    ]
    note = (
        f"Registers per thread / KiB of shared memory per block, as compiled by Triton {record.triton} on "
        f"{record.date} ({record.machine}). A kernel's variants share a row, the largest counts. Of {len(every)} "
        f"compilations {sum(r.spills > 0 for r in every)} spill; the most tensor memory is "
        f"{max(r.tmem for r in every)} columns."
    )
    return f"{note}\n\n{table(('kernel', 'dtype', 'head dim', *TARGETS), rows, align='llr' + 'c' * len(TARGETS))}"


def _largest(variants: Sequence[Any]) -> str:
    if not variants:
        return ""
    return f"{max(r.registers for r in variants)} / {-(-max(r.shared for r in variants) // 1024)}"


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


def _settings(results: Row) -> str:
    settings = results["settings"]
    size, targets = "x".join(map(str, settings["size"])), ", ".join(settings["targets"])
    return f"{settings['precision'].upper()}, {size}, batch {settings['batch']}, one engine for {targets}."


SECTIONS: dict[str, tuple[str, Callable[[], str]]] = {
    "zoo": ("README.md", zoo),
    "commands": ("README.md", commands),
    "kernels-short": ("README.md", kernels_short),
    "kernels": ("docs/measurements.md", kernels),
    "build-cost": ("docs/measurements.md", build_cost),
    "cpu": ("docs/measurements.md", cpu),
    "cpu-int8": ("docs/measurements.md", cpu_int8),
    "accuracy": ("docs/measurements.md", accuracy),
    "profile-camvid": ("docs/measurements.md", profile_camvid),
    "profile-blocks": ("docs/measurements.md", profile_blocks),
    "ladder-short": ("README.md", ladder_short),
    "ladder": ("docs/int8.md", ladder),
    "int8-kernels": ("docs/int8.md", int8_kernels),
    "islands": ("docs/export.md", islands),
    "resources": ("docs/kernels.md", resources),
    "gpu-attentions": ("docs/measurements.md", lambda: tables.attentions(table)),
    "gpu-models": ("docs/measurements.md", lambda: tables.models(table)),
    "gpu-training": ("docs/measurements.md", lambda: tables.training(table)),
    "offers": ("docs/engines.md", offers),
    "errors": ("docs/errors.md", errors),
    "flags": ("docs/api.md", flags),
}


FIGURES: dict[str, Callable[[], str]] = {"docs/images/kernels.svg": kernels_figure}


def replace_section(text: str, name: str, content: str) -> str:
    """`text` with `content` between the markers of `name`. Raises ValueError where they are not there exactly once."""
    pattern = re.compile(rf"(<!-- begin {re.escape(name)}\b[^>]*-->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"the markers of {name} must stand exactly once")
    return pattern.sub(lambda match: f"{match[1]}\n{content}\n\n{match[2]}", text)


def outdated(names: Sequence[str] | None = None) -> dict[Path, str]:
    """Files that are out of date, with what they should hold. `names`: sections to look at, by default all."""
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

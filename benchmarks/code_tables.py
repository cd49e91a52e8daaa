"""Tables that come from the code itself: models, commands, flags, errors, compilers, kernels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.markdown import table

ROOT = Path(__file__).parents[1]
MODELS_PAGE = "https://github.com/open-mmlab/mmsegmentation/tree/main/configs/twins"

VERBS = {
    "build": "build",
    "calibrate": "calibrate",
    "compile_engine": "compile",
    "gate": "gate",
    "compare_speed": "gate --against",
    "evaluate": "eval",
    "profile": "profile",
}
"""The verbs that Python has too, and their commands."""


def zoo() -> str:
    """The models with their published scores."""
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


def flags() -> str:
    """The parameters of each verb, in Python and on the command line."""
    from importlib import import_module

    import twins_trt

    parts = []
    for verb, command in VERBS.items():
        table_of = import_module(getattr(twins_trt, verb).__module__).FLAGS
        rows = []
        for flag in table_of.flags:
            in_python = flag.field if flag.sets is None else f"{flag.field}={flag.sets}"
            cells = (f"`{in_python}`", f"`{flag.option}`", table_of.help_of(flag))
            rows.append(tuple(cell.replace("|", "\\|") for cell in cells))
        parts.append(table((f"`{verb}`", f"`twins-trt {command}`", ""), rows, align="lll"))
    return "\n\n".join(parts)


def errors() -> str:
    """Typed errors and their exit codes."""
    from twins_trt import errors as module

    classes = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, module.TwinsError)]
    rows = [
        (f"`{each.__name__}`", each.exit_code, (each.__doc__ or "").strip().split("\n")[0].rstrip("."))
        for each in classes
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


def compilers() -> str:
    """What each TensorRT version can do, as our code reads it from the recorded names in its bindings."""
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


def targets() -> str:
    """What a graph may hold for each device that a build can name; devices of which the same holds share a row."""
    from twins_trt.builders.engine.devices import DEVICES, RTX_TARGETS, Abilities, abilities, nearest_target

    found: dict[tuple[str, Abilities], tuple[list[str], list[str]]] = {}
    for device in DEVICES:
        for each in abilities(device):
            names, jetpacks = found.setdefault((device.target, replace(each, jetpack="")), ([], []))
            names += [f"`{device.name}`"] if f"`{device.name}`" not in names else []
            jetpacks += [each.jetpack] if each.jetpack and each.jetpack not in jetpacks else []
    typing = {"always": "strong, always", "flag": "strong, by flag", "none": "weak", "": ""}
    rows = []
    for (target, each), (names, jetpacks) in found.items():
        ahead = target in RTX_TARGETS
        tensorrt = f"{each.tensorrt} (JetPack {', '.join(jetpacks)})" if jetpacks else "RTX" if ahead else "its own"
        rows.append(
            (
                target,
                ", ".join(names),
                tensorrt,
                each.opset or "",
                typing[each.typing],
                *("yes" if has else "" for has in (each.int8, each.fp8)),
                "" if ahead else nearest_target(target, RTX_TARGETS),
            )
        )
    head = ("target", "names", "TensorRT", "opset up to", "typing", "INT8", "FP8", "audited in its place")
    return table(head, rows, align="lllclccl")


def resources() -> str:
    """Registers and shared memory of the Triton kernels on every GPU: a row for each kernel, dtype and head dim."""
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
        f"{max(r.tmem for r in every)} columns. {sum(r.wide_loads > 0 for r in every)} read 16 bytes at a time, "
        f"{sum(r.wide_loads > 0 and r.narrow_loads == 0 for r in every)} of them nothing narrower."
    )
    return f"{note}\n\n{table(('kernel', 'dtype', 'head dim', *TARGETS), rows, align='llr' + 'c' * len(TARGETS))}"


def _largest(variants: Sequence[Any]) -> str:
    if not variants:
        return ""
    return f"{max(r.registers for r in variants)} / {-(-max(r.shared for r in variants) // 1024)}"

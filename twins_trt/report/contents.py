"""The sections on the bundle itself: what was built, its precision plan, the audit, and where it came from."""

from __future__ import annotations

from collections import Counter
from typing import Any

from twins_trt.report.blocks import Block, Code, Column, Facts, Note, Section, Table, number, text
from twins_trt.report.inputs import Inputs, pick, pick_list, pick_number, pick_text
from twins_trt.runtime.advice import for_cpus


def built_section(inputs: Inputs) -> Section:
    """Model, graph and engines."""
    manifest = inputs.bundle.manifest
    size = "dynamic" if manifest.interface.size is None else "×".join(map(str, manifest.interface.size))
    facts = Facts(
        (
            ("Model", manifest.model),
            ("Classes", f"{manifest.interface.num_classes}: {', '.join(manifest.interface.classes)}"),
            ("Precision", manifest.precision),
            ("Input", ", ".join(map(str, manifest.interface.inputs))),
            ("Output", ", ".join(map(str, manifest.interface.outputs))),
            ("Height × width", size),
            ("Padding", manifest.padding),
            ("ONNX opset", str(manifest.opset)),
            ("Weights", _weights(inputs)),
        )
    )
    awaited = tuple(Note(f"Engine {each.where}. twins-trt compile makes it there.") for each in manifest.awaits)
    if not manifest.engines:
        on_cpu = for_cpus(manifest.rebuild)
        runs = "ONNX Runtime runs it on a CPU" if on_cpu else "twins-trt compile makes one on the device"
        alone = Note(f"The bundle holds the graph alone, and no engine was compiled; {runs}.")
        return Section("built", "What was built", (facts, *(awaited or (alone,))))
    sizes = {entry.path: entry.size for entry in manifest.files}
    rows = tuple(
        (
            text(engine.file),
            text(engine.flavour),
            text(engine.version),
            text(", ".join(engine.targets)),
            number(sizes[engine.file] / 1e6, 1),
        )
        for engine in manifest.engines
    )
    columns = (Column("Engine"), Column("Compiler"), Column("Version"), Column("GPUs"), Column("MB", numeric=True))
    return Section("built", "What was built", (facts, Table("Engines", columns, rows), *awaited))


def plan_section(inputs: Inputs) -> list[Section]:
    """The precision of each block; no section for a bundle without a plan."""
    blocks = pick(inputs.plan, "blocks")
    if not isinstance(blocks, dict):
        return []
    counts = Counter(map(str, blocks.values()))
    facts = Facts(
        (
            ("Set out from", pick_text(inputs.plan, "level")),
            ("Blocks", ", ".join(f"{count} {level}" for level, count in counts.most_common())),
            ("SmoothQuant", pick_text(inputs.plan, "smooth")),
            *_calibration(inputs.calibration),
        )
    )
    start = pick_text(inputs.plan, "level")
    rows = tuple(
        (text(str(name)), text(str(level), mood="plain" if level == start else "warn"))
        for name, level in blocks.items()
    )
    table = Table(
        "Level of each block; a longer name overrides the block it is in", (Column("Block"), Column("Level")), rows
    )
    return [Section("plan", "Precision plan", (facts, table))]


def audit_section(inputs: Inputs) -> Section:
    """The kernels and tensors that the compiler made of the graph, engine by engine."""
    engines = pick_list(inputs.audit, "engines")
    if not engines:
        nothing = Note("No engine was compiled, so nothing was audited.")
        return Section("audit", "Audit", (nothing, *_not_audited(inputs)))
    blocks: list[Block] = []
    for engine in engines:
        audit = pick(engine, "audit")
        targets = ", ".join(map(str, pick_list(engine, "targets")))
        unfused = [str(name) for name in pick_list(audit, "unfused_attentions")]
        moved = pick_number(audit, "bytes_moved")
        dynamic = pick(audit, "dynamic") is True
        blocks.append(
            Facts(
                (
                    ("Engine", f"{pick_text(engine, 'file') or 'none that shipped'} ({targets})"),
                    ("In place of", _stands_for(engine)),
                    ("Compiler", f"{pick_text(engine, 'flavour')} {pick_text(engine, 'version')}"),
                    ("Kernels", pick_text(audit, "kernels")),
                    ("Fused attentions", _fused(audit)),
                    ("Unfused", ", ".join(unfused)),
                    ("Copies", pick_text(audit, "copies")),
                    ("Point-wise kernels", pick_text(audit, "pointwise")),
                    ("Kernels with float32", str(len(pick_list(audit, "float32")))),
                    ("Moved", "" if moved is None or dynamic else f"{moved / 1e6:.1f} MB between kernels"),
                )
            )
        )
        if unfused:
            blocks.append(Note("Attentions that are not fused are slow.", "warn"))
        blocks += _kernel_tables(audit)
    note = Note("Read from the compiler's own layer list when the engine was built. It says nothing of speed.")
    return Section("audit", "Audit", (note, *blocks, *_not_audited(inputs)))


def provenance_section(inputs: Inputs) -> Section:
    """Files with their sha256, versions, figures, and the command that builds the bundle again."""
    manifest = inputs.bundle.manifest
    blocks: list[Block] = [
        Facts((("Created", manifest.created), ("Weights", _weights(inputs)), ("Gate", manifest.gate))),
        Note("To build the same again:"),
        Code(manifest.rebuild),
    ]
    if manifest.figures:
        rows = tuple(
            (
                text(figure.name),
                number(figure.value, 3),
                text(figure.unit),
                text(figure.measured_on),
                text("yes" if figure.simulated else "no", mood="warn" if figure.simulated else "plain"),
            )
            for figure in manifest.figures
        )
        columns = (
            Column("Figure"),
            Column("Value", numeric=True),
            Column("Unit"),
            Column("Measured on"),
            Column("Simulated"),
        )
        blocks.append(Table("Figures of the manifest", columns, rows))
    files = tuple((text(entry.path), number(entry.size / 1e3, 1), text(entry.sha256)) for entry in manifest.files)
    heads = (Column("File"), Column("kB", numeric=True), Column("sha256"))
    blocks.append(Table("Files; each was read and compared for this report", heads, files))
    versions = tuple((text(name), text(version)) for name, version in manifest.tools.items())
    blocks.append(Table("Versions that built it", (Column("Tool"), Column("Version")), versions))
    for name, profile in inputs.profiles:
        tools = tuple((text(tool), text(version)) for tool, version in profile.versions.items())
        blocks.append(Note(f"{name} was written by:"))
        blocks.append(Code(profile.command))
        blocks.append(Table(f"Versions that measured {name}", (Column("Tool"), Column("Version")), tools))
    return Section("provenance", "Provenance", tuple(blocks))


def _stands_for(engine: Any) -> str:
    """The targets whose engine the device compiles itself, if this engine was audited as the nearest."""
    targets = ", ".join(map(str, pick_list(engine, "stands_for")))
    return f"{targets}, which the device compiles: the nearest architecture was audited" if targets else ""


def _not_audited(inputs: Inputs) -> list[Note]:
    missing = pick(inputs.audit, "not_audited")
    missing = missing if isinstance(missing, dict) else {}
    return [Note(f"Nothing was audited in place of {target}: {why}.") for target, why in missing.items()]


def _kernel_tables(audit: Any) -> list[Table]:
    kinds = pick(audit, "by_type")
    kinds = kinds if isinstance(kinds, dict) else {}
    most = max((count for count in kinds.values() if isinstance(count, int)), default=1)
    rows = tuple(
        (text(str(kind)), number(count, 0, share=count / most))
        for kind, count in kinds.items()
        if isinstance(count, int)
    )
    tables = [Table("Kernels by kind", (Column("Kind"), Column("Kernels", numeric=True)), rows)] if rows else []
    large = []
    for tensor in pick_list(audit, "largest"):
        nbytes = pick_number(tensor, "nbytes")
        shape = "×".join(map(str, pick_list(tensor, "shape")))
        size = number(None if nbytes is None else nbytes / 1e6)
        large.append((text(pick_text(tensor, "kernel")), text(f"{shape} {pick_text(tensor, 'dtype')}"), size))
    columns = (Column("Written by"), Column("Tensor"), Column("MB", numeric=True))
    return [*tables, Table("Largest tensors in memory", columns, tuple(large))] if large else tables


def _calibration(calibration: Any) -> list[tuple[str, str]]:
    images = pick_text(calibration, "images") or pick_text(calibration, "collection", "images")
    return [("Calibrated on", f"{images} images")] if images else []


def _weights(inputs: Inputs) -> str:
    source = inputs.bundle.manifest.source
    if source.seeded:
        return "random, from a seed"
    return f"{source.checkpoint or 'unknown'}, sha256 {source.sha256 or 'unknown'}"


def _fused(audit: Any) -> str:
    """How many attentions are fused, of how many; or that the compiler does not list it."""
    fused, expected = pick_number(audit, "attentions"), pick_number(audit, "expected_attentions")
    if pick_list(audit, "opaque"):
        return "not known: this compiler does not list it"
    if fused is None:
        return ""
    return f"{fused:.0f}" if expected is None else f"{fused:.0f} of {expected:.0f}"

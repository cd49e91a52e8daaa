"""`twins-trt inspect`: what a bundle, a graph or a checkpoint is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twins_trt.cli.console import Console, megabytes, table
from twins_trt.errors import BuildError, BundleError, ProfileError, UsageError
from twins_trt.spelling import spelled
from twins_trt.verbs.inspect import FLAGS, InspectRequest

if TYPE_CHECKING:
    from twins_trt.builders.engine.layers import Layer
    from twins_trt.runtime import Bundle

EXAMPLE = (
    "twins-trt inspect x.bundle\n"
    "  twins-trt inspect graph.onnx --target sm_89 --layers\n"
    "  twins-trt inspect checkpoint.pth\n\n"
    "With --target a graph is compiled by TensorRT-RTX, which needs no GPU, and audited: kernels, fused attentions,\n"
    "float32 left-overs, copies, memory traffic."
)

_ENGINE_SUFFIXES = (".engine", ".plan", ".trt")


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    FLAGS.add_to(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Describe one path."""
    from twins_trt.runtime.archive import holds_bundle
    from twins_trt.runtime.engines import check_kind

    request = FLAGS.read(arguments)
    check_kind(request.engine)
    path = Path(request.path)
    if path.name == "manifest.json":
        path = path.parent
    is_graph = path.suffix.lower() == ".onnx"
    if request.compiles and not is_graph:
        names = f"{spelled('targets')} and {spelled('layers')}"
        raise UsageError(f"{path} is no graph to compile", f"name an .onnx file, or leave {names} out")
    if path.is_dir() or path.suffix == ".bundle" or holds_bundle(path):
        value, text = _bundle(path, verify=request.verify, engine=request.engine)
    elif path.suffix.lower() in _ENGINE_SUFFIXES:
        raise UsageError(
            f"{path} is an engine, which only its compiler's runtime can read", "inspect the bundle that it lies in"
        )
    elif is_graph:
        value, text = _graph(path)
        if request.compiles:
            console.progress("compile", str(path))
            compiled, shown = _compiled(path, value["info"], request)
            value, text = {**value, **compiled}, f"{text}\n\n{shown}"
    else:
        from twins_trt.cli.inspect_checkpoint import describe_checkpoint

        value, text = describe_checkpoint(path, request)
    console.result(value, text)
    return 0


def _bundle(path: Path, *, verify: bool, engine: str) -> tuple[dict[str, Any], str]:
    from twins_trt.builders.engine.audit import Audit
    from twins_trt.runtime import open_bundle
    from twins_trt.runtime.judged import gate_outdated
    from twins_trt.runtime.manifest import AUDIT, GATE

    bundle = open_bundle(path, verify=verify)
    manifest, source = bundle.manifest, bundle.manifest.source
    audits = bundle.read_json(AUDIT)
    judged = bundle.read_json(GATE)
    here = _runs_here(bundle, engine)
    found, speed = _speed(bundle)
    weights = "random (seeded): its masks mean nothing" if source.seeded else f"{source.checkpoint} {source.sha256}"
    rows = [
        ("bundle", str(path)),
        ("model", f"{manifest.model}, {manifest.interface.num_classes} classes, padding {manifest.padding}"),
        ("weights", weights),
        ("graph", f"{manifest.precision}, opset {manifest.opset}"),
        *(("input", str(spec)) for spec in manifest.interface.inputs),
        *(("output", str(spec)) for spec in manifest.interface.outputs),
        *(("engine", f"{e.file} ({e.flavour} {e.version}: {', '.join(e.targets)})") for e in manifest.engines),
        *(("compiled", f"{e.file} {e.compiled.how}") for e in manifest.engines if e.compiled is not None),
        *(("engine", f"{awaited.where}; twins-trt compile makes it there") for awaited in manifest.awaits),
        *(("runs here", f"{kind}: {why or 'yes'}") for kind, why in here.items()),
        *(("gate", line) for line in _gate(bundle, judged)),
        *([("speed", speed)] if speed else []),
        *(("figure", f"{f.name} {f.value} {f.unit} ({f.measured_on})") for f in manifest.figures),
        ("classes", ", ".join(manifest.interface.classes)),
        ("created", manifest.created),
        ("tools", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())),
        ("rebuild", manifest.rebuild),
        *(("file", f"{entry.path}  {megabytes(entry.size)}") for entry in manifest.files),
    ]
    text = _rows(rows)
    for entry in [] if audits is None else audits["engines"]:
        try:
            text += f"\n\naudit of {_audited(entry)}\n{Audit.from_json(entry['audit']).table()}"
        except (KeyError, TypeError) as error:
            raise BundleError(f"{path}: {AUDIT} cannot be read: {error!r}", manifest.rebuild) from error
    for target, why in ({} if audits is None else audits.get("not_audited", {})).items():
        text += f"\n\nnothing audited in place of {target}: {why}"
    value = {"kind": "bundle", "path": str(path), "verified": verify, "manifest": manifest.to_json(), "audit": audits}
    if isinstance(judged, dict):
        judged = {**judged, "outdated": gate_outdated(bundle)}
    value |= {"gate": judged, "speed": found}
    value["runs_here"] = {kind: {"ready": why is None, "why_not": why} for kind, why in here.items()}
    return value, text


def _audited(entry: dict[str, Any]) -> str:
    """What an entry of audit.json is of: an engine of the bundle, or the nearest architecture of one that it awaits."""
    from twins_trt.builders.engine.devices import also_nearest_title, nearest_title

    if "stands_for" not in entry:
        return str(entry["file"])
    if entry["file"] is None:
        return f"{nearest_title(entry['targets'][0], entry['stands_for'])}; this engine did not ship"
    return also_nearest_title(entry["file"], entry["stands_for"])


def _runs_here(bundle: Bundle, engine: str) -> dict[str, str | None]:
    """By engine kind: the reason why it cannot run the bundle on this machine, None if it can."""
    from twins_trt.runtime.engines import KINDS, why_not

    kinds = tuple(KINDS) if engine == "auto" else (engine,)
    return {kind: why_not(bundle, kind) for kind in kinds}


def _speed(bundle: Bundle) -> tuple[dict[str, Any] | None, str]:
    """The speed verdict as plain values with why it counts no more, if so, and in one line; nothing without one."""
    from twins_trt.profiling.speed import in_short, outdated, read_speed
    from twins_trt.runtime.tensorrt.selection import engine_here

    try:
        found = read_speed(bundle)
    except ProfileError as error:  # of a newer version, say: the rest can be shown
        return None, f"cannot be read: {error.cause}"
    if found is None:
        return None, ""
    manifest, runs = bundle.manifest, engine_here(bundle)
    return {**found.to_json(), "outdated": outdated(found, manifest, runs=runs)}, in_short(found, manifest, runs=runs)


def _gate(bundle: Bundle, judged: Any) -> list[str]:
    """The gate's status and what it found, and whether that still counts. Below it why the bundle failed, and what a
    simulation had found before a device judged.

    judged: the content of gate.json, None without one.
    """
    from twins_trt.report.accuracy import finding_text, simulation_text
    from twins_trt.report.inputs import pick_list
    from twins_trt.runtime.judged import gate_outdated, judge_again

    manifest = bundle.manifest
    if manifest.gate == "ungated":
        unknown = ": nobody has measured what INT8 costs in mIoU" if manifest.precision == "int8" else ""
        return [f"{manifest.gate}{unknown}"]
    simulated = " in simulation" if isinstance(judged, dict) and judged.get("simulated") is True else ""
    found, before = finding_text(judged), simulation_text(judged)
    stale = gate_outdated(bundle)
    now = "" if stale is None else f"counts no more ({stale}), was "
    return [
        f"{now}{manifest.gate}{simulated}{found and f': {found}'}",
        *(f"because {reason}" for reason in pick_list(judged, "reasons")),
        *([] if stale is None else [f"judge it again, on the device: {judge_again(bundle)}"]),
        *([f"in simulation it had {before}"] if before else []),
    ]


def _graph(path: Path) -> tuple[dict[str, Any], str]:
    from twins_trt.builders.engine import read_header
    from twins_trt.codec import encode

    header = read_header(path)
    try:
        info = json.loads(header.metadata.get("twins_trt.info", "null"))
    except ValueError as error:
        raise BuildError(f"{path}: what twins-trt wrote into it is damaged: {error}", "export it again") from error
    rows = [("graph", f"{path}, {megabytes(path.stat().st_size)}, by {header.producer or 'an unnamed exporter'}")]
    if info is None:
        rows.append(("model", "not known: twins-trt did not export it"))
    else:
        rows.append(("model", f"{info['model']}, {info['num_classes']} classes, padding {info['padding']}"))
        rows.append(("precision", header.metadata.get("twins_trt.precision", info["options"]["precision"])))
        rows.append(("attentions", str(info["attentions"])))
        rows.append(("float32 in it", f"{len(info['islands'])} nodes" if info["islands"] else "-"))
    rows += [("opset", str(header.opset)), ("weights", ", ".join(sorted(header.weight_dtypes)))]
    for kind, tensors in (("input", header.inputs), ("output", header.outputs)):
        rows += [(kind, f"{p.name} {p.dtype} [{', '.join(map(str, p.shape))}]") for p in tensors]
    nodes = sum(header.operators.values())
    rows.append(("operators", f"{nodes}: " + ", ".join(f"{count} {name}" for name, count in header.operators.items())))
    value = {
        "kind": "graph",
        "path": str(path),
        "size": path.stat().st_size,
        "info": info,
        "header": {**encode(header), "weight_dtypes": sorted(header.weight_dtypes)},
    }
    return value, _rows(rows)


def _compiled(path: Path, info: dict[str, Any] | None, request: InspectRequest) -> tuple[dict[str, Any], str]:
    """Compiles a graph and audits it. info: the facts that twins-trt wrote into the graph."""
    from twins_trt.builders.engine import EngineOptions, build_engine
    from twins_trt.builders.engine.audit import audit_layers
    from twins_trt.builders.engine.devices import read_targets
    from twins_trt.codec import encode

    targets = tuple(each.target for each in read_targets(request.targets))
    options = EngineOptions(targets=targets, profile=dict(request.shapes) or None)
    built = build_engine(path, options)
    audit = audit_layers(built.layers, expected_attentions=None if info is None else info["attentions"])
    peak = "" if built.peak_host_mib is None else f", {built.peak_host_mib:.0f} MiB at most"
    text = f"{audit.table()}\n{'engine':<17} {megabytes(len(built.serialized))} in {built.seconds:.1f} s{peak}, "
    text += f"{built.flavour} {built.version}"
    if request.layers:
        text = "\n".join([*map(_layer, range(len(built.layers)), built.layers), "", text])
    return {"audit": audit.to_json(), "layers": encode(built.layers) if request.layers else None}, text


def _layer(index: int, layer: Layer) -> str:
    """Type and name, the tensors that it reads and writes, the graph nodes that it computes."""
    reads, writes = (
        ", ".join(f"{'x'.join(map(str, tensor.shape))} {tensor.dtype}" for tensor in tensors)
        for tensors in (layer.inputs, layer.outputs)
    )
    return f"{index:3} {layer.type:<16} {layer.name}\n      {reads} -> {writes}\n      {', '.join(layer.nodes)}"


def _rows(rows: list[tuple[str, str]]) -> str:
    """Two columns; a repeated name is shown once."""
    shown = [("" if i and rows[i - 1][0] == name else name, text) for i, (name, text) in enumerate(rows)]
    return table([(name, text) for name, text in shown])

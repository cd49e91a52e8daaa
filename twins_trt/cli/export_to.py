"""`twins-trt export-to`: a bundle as devices and other programs take it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from twins_trt.cli.console import Console, megabytes
from twins_trt.codec import encode
from twins_trt.errors import UsageError
from twins_trt.files import sha256_of
from twins_trt.handoff import TARGETS, resolve_handoff, write_handoff
from twins_trt.handoff.device import next_steps
from twins_trt.handoff.folder import check_place
from twins_trt.verbs.export_to import FLAGS

EXAMPLE = (
    "twins-trt export-to device x.bundle --pack x.pack --out x.tar\n"
    "  twins-trt export-to device x.bundle --engine sm_87 --out x-orin.bundle\n"
    "  twins-trt export-to triton-server x.bundle --out models\n"
    "  twins-trt export-to deepstream x.bundle --out deepstream --max-batch 4\n"
    "  twins-trt export-to isaac-ros x.bundle --out isaac --engine sm_87\n\n"
    "For a device: the least of the bundle that runs there, which is a bundle again, as a folder or packed in a tar\n"
    "file. There, twins-trt compile unpacks it, compares every sha256 and compiles its engine.\n"
    "For another program: configuration, engine or graph, labels, and a README.md that says how to start it.\n"
    "A bundle whose graph the program cannot feed is refused, with the command that builds one that it can.\n"
    "TensorRT-RTX engines run in none of them: without an engine of TensorRT itself the graph is handed over."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """TARGET, BUNDLE, --out, the engine and what Triton asks for."""
    FLAGS.add_to(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be written")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Write one hand-off."""
    request = FLAGS.read(arguments)
    if request.target not in TARGETS:
        raise UsageError(f"there is no target {request.target!r}", f"use one of: {', '.join(TARGETS)}")
    from twins_trt.runtime import open_bundle

    options, out = request.options, Path(request.out)
    check_place(out, overwrite=request.overwrite, bundled=request.target == "device")
    handoff = resolve_handoff(open_bundle(request.bundle), request.target, options=options)
    value: dict[str, Any] = {
        "target": handoff.target,
        "out": str(out),
        "files": sorted(handoff.files),
        "notes": list(handoff.notes),
    }
    steps = None
    if handoff.manifest is not None:
        steps = next_steps(handoff, out)
        value |= {"contents": encode(handoff.manifest.files), "next": steps.to_json()}
    lines = [f"  {name}  {megabytes(_size(content))}" for name, content in sorted(handoff.files.items())]
    if arguments.dry_run:
        lines = [f"{out} would hold:", *lines]
        value["dry_run"] = True
    else:
        console.progress("write", str(out))
        write_handoff(handoff, out, overwrite=request.overwrite)
        lines = [f"{out}: {handoff.bundle.manifest.model} for {handoff.target}", *lines]
        if out.is_file():
            value |= {"size": out.stat().st_size, "sha256": sha256_of(out)}
            lines.append(f"sha256 of {out.name}: {value['sha256']}")
    lines += [f"note: {note}" for note in handoff.notes]
    console.result(value, "\n".join([*lines, *([] if steps is None else [steps.text()])]))
    return 0


def _size(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)

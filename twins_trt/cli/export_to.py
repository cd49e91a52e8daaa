"""`twins-trt export-to`: a bundle as other programs take it."""

from __future__ import annotations

import argparse
from pathlib import Path

from twins_trt.cli.console import Console, megabytes
from twins_trt.errors import UsageError
from twins_trt.handoff import TARGETS, resolve_handoff, write_handoff
from twins_trt.handoff.folder import check_place
from twins_trt.verbs.export_to import FLAGS

EXAMPLE = (
    "twins-trt export-to triton-server x.bundle --out models\n"
    "  twins-trt export-to deepstream x.bundle --out deepstream --max-batch 4\n"
    "  twins-trt export-to isaac-ros x.bundle --out isaac --engine sm_87\n\n"
    "The folder holds everything: configuration, engine or graph, labels, and a README.md that says how to start it.\n"
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
    check_place(out, overwrite=request.overwrite)
    handoff = resolve_handoff(open_bundle(request.bundle), request.target, options=options)
    value = {"target": handoff.target, "out": str(out), "files": sorted(handoff.files), "notes": list(handoff.notes)}
    if arguments.dry_run:
        console.result({"dry_run": True, **value}, _text(f"{out} would hold:", sorted(handoff.files), handoff.notes))
        return 0
    console.progress("write", str(out))
    write_handoff(handoff, out, overwrite=request.overwrite)
    files = [f"{name}  {megabytes((out / name).stat().st_size)}" for name in sorted(handoff.files)]
    console.result(value, _text(f"{out}: {handoff.bundle.manifest.model} for {handoff.target}", files, handoff.notes))
    return 0


def _text(head: str, files: list[str], notes: tuple[str, ...]) -> str:
    return "\n".join([head, *(f"  {file}" for file in files), *(f"note: {note}" for note in notes)])

"""`twins-trt export-to`: a bundle as other programs take it."""

from __future__ import annotations

import argparse
from pathlib import Path

from twins_trt.cli.console import Console, megabytes
from twins_trt.errors import UsageError
from twins_trt.handoff import TARGETS, HandoffOptions, plan_handoff, write_handoff
from twins_trt.handoff.folder import check_out

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
    parser.add_argument("target", metavar=f"{{{','.join(TARGETS)}}}", help="the program that shall run the bundle")
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder that twins-trt build wrote")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier hand-off that is there")
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be written")
    parser.add_argument(
        "--engine",
        default="auto",
        metavar="{auto,onnxruntime,sm_NN,FILE}",
        help="what it runs: the bundle's TensorRT engines, else the graph (auto, default); the graph; or one engine",
    )
    parser.add_argument("--max-batch", type=int, metavar="N", help="images at once at most; default: the graph's limit")
    group = parser.add_argument_group("Triton")
    group.add_argument("--name", help="the model's name in requests; default: the model's own")
    group.add_argument("--instances", type=int, default=1, metavar="N", help="copies of the model; default: 1")
    group.add_argument(
        "--queue-delay", type=int, default=500, metavar="US", help="a request waits so long for others; default: 500"
    )


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Write one hand-off."""
    if arguments.target not in TARGETS:
        raise UsageError(f"there is no target {arguments.target!r}", f"use one of: {', '.join(TARGETS)}")
    from twins_trt.runtime import open_bundle

    options = HandoffOptions(
        engine=arguments.engine,
        name=arguments.name,
        max_batch=arguments.max_batch,
        instances=arguments.instances,
        queue_delay=arguments.queue_delay,
    )
    out = Path(arguments.out)
    check_out(out, overwrite=arguments.overwrite)
    handoff = plan_handoff(open_bundle(arguments.bundle), arguments.target, options=options)
    value = {"target": handoff.target, "out": str(out), "files": sorted(handoff.files), "notes": list(handoff.notes)}
    if arguments.dry_run:
        console.result({"dry_run": True, **value}, _text(f"{out} would hold:", sorted(handoff.files), handoff.notes))
        return 0
    console.progress("write", str(out))
    write_handoff(handoff, out, overwrite=arguments.overwrite)
    files = [f"{name}  {megabytes((out / name).stat().st_size)}" for name in sorted(handoff.files)]
    console.result(value, _text(f"{out}: {handoff.bundle.manifest.model} for {handoff.target}", files, handoff.notes))
    return 0


def _text(head: str, files: list[str], notes: tuple[str, ...]) -> str:
    return "\n".join([head, *(f"  {file}" for file in files), *(f"note: {note}" for note in notes)])

"""`twins-trt profile`: how fast, how large and how hungry bundles, plain ONNX files and a PyTorch model are."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twins_trt.cli.console import Console, table
from twins_trt.cli.parsing import add_weights_options, check_engine, new_parser, parse_size, split_list, torch_device
from twins_trt.errors import UsageError
from twins_trt.models.zoo import get_spec

if TYPE_CHECKING:
    from twins_trt.profiling.candidates import Candidate
    from twins_trt.profiling.compare import Comparison
    from twins_trt.profiling.power import Meter
    from twins_trt.profiling.results import Profile, Settings

EXAMPLE = (
    "twins-trt profile fp16.bundle int8.bundle --out profile.json\n"
    "  twins-trt profile x.bundle --onnx plain.onnx --torch twins_svt-s_fpn --checkpoint F.pth --threads 2\n"
    "  twins-trt profile --compare before.json after.json\n\n"
    "All candidates are measured in one run, in rounds in which each has its turn; ratios are taken within rounds\n"
    "and come with their 95 % interval. End to end is from the picture's file to its mask in host memory. Ctrl-C\n"
    "ends the measuring: the whole rounds so far are shown and written, and the exit code is 130."
)
INTERRUPTED = 130


def configure(parser: argparse.ArgumentParser) -> None:
    """What to measure, how, and where the results go."""
    parser.add_argument("bundles", nargs="*", metavar="BUNDLE", help="bundles to measure")
    parser.add_argument("--onnx", action="append", default=[], metavar="FILE", help="a plain ONNX file as well")
    parser.add_argument("--torch", metavar="MODEL", help="a model in PyTorch, eager, as well; with its weights below")
    parser.add_argument("--engine", default="auto", metavar="KIND,...", help="what runs bundles; several: each of them")
    parser.add_argument("--baseline", metavar="NAME", help="whom the others are compared with; default: the first")
    group = parser.add_argument_group("measuring")
    group.add_argument("--image", metavar="FILE", help="the picture; default: one is drawn, at the graph's own size")
    group.add_argument("--rounds", type=int, default=20, metavar="N", help="default: 20")
    group.add_argument("--calls", type=int, default=5, metavar="N", help="timed calls of each in a round; default: 5")
    group.add_argument("--warm-up", type=float, default=30.0, metavar="S", help="at most so many seconds; default: 30")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: every core")
    group.add_argument(
        "--batches", default="1,2,4,8", metavar="N,...", help="throughput at these, as far as a graph allows; or none"
    )
    group.add_argument("--no-layers", action="store_true", help="do not time layers")
    group.add_argument(
        "--power",
        default="auto",
        metavar="{auto,nvml,ina3221,tegrastats,none}",
        help="what reads power; default: what is there",
    )
    group.add_argument("--power-seconds", type=float, default=5.0, metavar="S", help="of each candidate; default: 5")
    group.add_argument("--device", default="auto", metavar="{auto,cpu,cuda}", help="where the PyTorch model runs")
    group.add_argument("--size", metavar="HxW", help="of the PyTorch model; default: the first bundle's")
    parser.add_argument("--out", metavar="FILE", help="write the results, with every sample, to this JSON file")
    parser.add_argument("--save", action="store_true", help="put them into the bundles too (profile.json)")
    parser.add_argument(
        "--compare", nargs=2, metavar=("A.json", "B.json"), help="measure nothing: compare two results files"
    )
    parser.add_argument("--dry-run", action="store_true", help="open everything and say what would be measured")
    add_weights_options(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Measure, or compare two results."""
    if arguments.compare is not None:
        return _compare(arguments, console)
    settings = read_settings(arguments)
    candidates = find_candidates(arguments)
    if arguments.out is not None and not Path(arguments.out).absolute().parent.is_dir():
        raise UsageError(f"--out is {arguments.out}, in a folder that does not exist", "make it first")
    if arguments.dry_run:
        text = "\n".join(["would be measured in turn:", *(f"  {each.label}" for each in candidates)])
        console.result({"dry_run": True, "candidates": [each.label for each in candidates]}, text)
        return 0
    from twins_trt.profiling.measure import profile
    from twins_trt.profiling.power import open_meter
    from twins_trt.profiling.results import write_profile

    meter: Meter | None = open_meter(arguments.power)
    try:
        found = profile(
            candidates,
            settings,
            picture=arguments.image,
            baseline=arguments.baseline,
            meter=meter,
            command=command_of(arguments),
            progress=console.progress,
        )
    finally:
        if meter is not None:
            meter.close()
    if arguments.out is not None:
        write_profile(arguments.out, found)
    if arguments.save and not found.interrupted:  # half of a run must not take the place of a whole one
        from twins_trt.profiling.saved import save_profile
        from twins_trt.runtime import open_bundle

        for path in dict.fromkeys(arguments.bundles):
            save_profile(open_bundle(path), found)
    console.result(found.to_json(), text_of(found))
    return INTERRUPTED if found.interrupted else 0


def read_settings(arguments: argparse.Namespace) -> Settings:
    """How to measure. Raises UsageError for numbers that cannot be."""
    from twins_trt.profiling.results import Settings

    texts = () if arguments.batches == "none" else split_list(arguments.batches)
    if not all(text.isdecimal() and int(text) > 0 for text in texts):
        raise UsageError(f"--batches is {arguments.batches!r}", "write numbers such as 1,2,4,8, or none")
    for name in ("rounds", "calls"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name} is {getattr(arguments, name)}", "give at least 1")
    for name in ("warm_up", "power_seconds"):
        if not 0 <= getattr(arguments, name) < 86400:
            raise UsageError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}", "give seconds, 0 or more")
    return Settings(
        rounds=arguments.rounds,
        calls=arguments.calls,
        warm_up_s=arguments.warm_up,
        batches=tuple(map(int, texts)),
        threads=arguments.threads,
        layers=not arguments.no_layers,
        power_s=arguments.power_seconds,
    )


def find_candidates(arguments: argparse.Namespace) -> list[Candidate]:
    """Everything the command line names, bundles on each engine first. Nothing is opened yet but manifests."""
    from twins_trt.profiling.candidates import bundle_candidate, onnx_candidate

    engines = split_list(arguments.engine) or ("auto",)
    for kind in engines:
        check_engine(kind)
    paths = list(map(Path, arguments.bundles))
    names = [path.name for path in paths]
    found = []
    for path in paths:
        if path.suffix == ".onnx":
            raise UsageError(f"{path} is an ONNX file, not a bundle", f"--onnx {path}")
        alike = names.count(path.name) > 1
        for kind in engines:
            name = str(path) if alike else path.name.removesuffix(".bundle")
            found.append(bundle_candidate(path, kind, label=name if len(engines) == 1 else f"{name} on {kind}"))
    found += [onnx_candidate(path) for path in arguments.onnx]
    if arguments.torch is not None:
        found.append(_torch(arguments))
    elif arguments.checkpoint is not None or arguments.seeded:
        raise UsageError("--checkpoint and --seeded are the PyTorch model's", "name it: --torch MODEL")
    if not found:
        raise UsageError("there is nothing to measure", "name a bundle, or give --onnx FILE or --torch MODEL")
    return found


def _torch(arguments: argparse.Namespace) -> Candidate:
    from twins_trt.builders.weights import find_weights, load_weights
    from twins_trt.models.segmentor import Segmentor
    from twins_trt.profiling.candidates import torch_candidate, usual_size
    from twins_trt.runtime import Source, open_bundle

    name = arguments.torch
    spec = get_spec(name)
    find_weights(name, checkpoint=arguments.checkpoint, seeded=arguments.seeded)
    first = open_bundle(arguments.bundles[0], verify=False).manifest if arguments.bundles else None
    size = None if first is None else usual_size(first)
    if arguments.size is not None:
        height, width = parse_size(arguments.size)
        if not (isinstance(height, int) and isinstance(width, int)):
            raise UsageError(f"--size is {arguments.size}", "give one size, such as 512x512")
        size = (height, width)
    classes = arguments.num_classes
    if arguments.seeded and classes is None and first is not None:
        classes = first.num_classes

    def load() -> tuple[Segmentor, Source]:
        model, facts = load_weights(
            name,
            checkpoint=arguments.checkpoint,
            seeded=arguments.seeded,
            num_classes=classes,
            padding=arguments.padding,
            attention="reference",  # as mmsegmentation computes it; on a GPU ours would run kernels of their own
        )
        return model, facts.source

    return torch_candidate(name, load, size=size or spec.crop_size, device=torch_device(arguments.device))


def command_of(arguments: argparse.Namespace) -> str:
    """The command line again, without what is left at its default."""
    parser = new_parser("twins-trt profile", summary="", example="")
    configure(parser)
    words = ["twins-trt", "profile", *arguments.bundles]
    for name, value in vars(arguments).items():
        option = f"--{name.replace('_', '-')}"
        if name in ("bundles", "json", "verbose", "out", "save") or value == parser.get_default(name):
            continue
        for each in value if isinstance(value, list) else [value]:
            words += [option] if each is True else [option, str(each)]
    return shlex.join(words)


def text_of(profile: Profile) -> str:
    """All tables, one under another, and what is to be doubted."""
    from twins_trt.profiling import tables

    picture, rounds = profile.settings.picture, profile.measurements[0].rounds("end_to_end")
    head = f"milliseconds end to end, from file to mask; {len(rounds)} rounds of {len(rounds[0])} calls; {picture}"
    parts = [f"{head}\n{_table(tables.latencies(profile))}", f"median of each stage\n{_table(tables.stages(profile))}"]
    for rows in (tables.throughput(profile), tables.resources(profile)):
        if rows:
            parts.append(_table(rows))
    for measurement in profile.measurements:
        if rows := tables.blocks(measurement):
            parts.append(f"{measurement.subject.label}: layers by block\n{_table(rows)}")
    parts.append("\n".join(f"note: {each}" for each in profile.warnings))
    return "\n\n".join(filter(None, parts))


def _compare(arguments: argparse.Namespace, console: Console) -> int:
    from twins_trt.profiling.compare import compare
    from twins_trt.profiling.results import read_profile

    if arguments.bundles or arguments.onnx or arguments.torch:
        raise UsageError("--compare measures nothing", "leave the candidates out, or leave --compare out")
    found = compare(*map(read_profile, arguments.compare))
    console.result(found.to_json(), _comparison_text(found))
    return 0


def _comparison_text(found: Comparison) -> str:
    from twins_trt.profiling.tables import ms, speed_up

    rows: list[tuple[str, ...]] = [("", "first, ms", "second, ms", "times as fast")]
    rows += [(each.label, ms(each.before_ms), ms(each.after_ms), speed_up(each)) for each in found.changes]
    lines = [_table(rows), ""]
    if not found.comparable:
        lines += ["no comparison: these are not the same in both", *(f"  {each}" for each in found.differences)]
    return "\n".join([*lines, *(f"note: {each}" for each in found.notes)])


def _table(rows: Any) -> str:
    return table(rows, right=frozenset(range(1, len(rows[0]))))

"""`twins-trt targets`: the devices that a build can name."""

from __future__ import annotations

import argparse
import itertools
from typing import TYPE_CHECKING

from twins_trt.bindings import NAMES
from twins_trt.cli.console import Console, table
from twins_trt.verbs.targets import FLAGS, TargetFacts, list_targets

if TYPE_CHECKING:
    from twins_trt.builders.engine.devices import Abilities

EXAMPLE = (
    "twins-trt targets jetson-orin sm_86\n"
    "  twins-trt targets --json\n\n"
    "A build takes these names and compute capabilities, mixed: --target rtx-4090,sm_86,jetson-orin.\n"
    "What this machine cannot compile for, the device compiles from the bundle: twins-trt compile BUNDLE."
)

_TYPING = {"always": "strong, always", "flag": "strong, by flag", "none": "weak", "": ""}
_HEAD = ("name", "GPU", "target", "JetPack", "TensorRT", "opset up to", "typing", "INT8", "FP8", "engine")


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    FLAGS.add_to(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Print the devices as a table, or everything about them as JSON."""
    listed = list_targets(FLAGS.read(arguments))
    text = table([_HEAD, *(row for facts in listed for row in _rows(facts))])
    notes = ["INT8: beside FP16. FP8: what GPU and TensorRT have; no build makes FP8 graphs yet."]
    if any(facts.assumed for facts in listed):
        notes.insert(0, "*: assumed, or a later one; another is named with build --jetpack VERSION.")
    console.result({"targets": [facts.to_json() for facts in listed]}, "\n\n".join([text, "\n".join(notes)]))
    return 0


def _rows(facts: TargetFacts) -> list[tuple[str, ...]]:
    """One for each TensorRT of a Jetson; the device is named in the first."""
    rows: list[tuple[str, ...]] = []
    for _, group in itertools.groupby(facts.abilities, key=lambda each: each.tensorrt):
        jetpacks = list(group)
        device = ("", "", "") if rows else (facts.name, facts.gpus, facts.target)
        rows.append((*device, *_cells(jetpacks, facts.assumed), "" if rows else _engine(facts)))
    return rows


def _cells(jetpacks: list[Abilities], assumed: str) -> tuple[str, ...]:
    """What the JetPacks of one TensorRT have in common."""
    each = jetpacks[0]
    shown = (f"{one.jetpack}*" if assumed and one.jetpack == assumed else one.jetpack for one in jetpacks)
    return (
        ", ".join(shown) or "-",
        each.tensorrt or "its own",
        str(each.opset or "-"),
        _TYPING[each.typing] or "-",
        "yes" if each.int8 else "no",
        "yes" if each.fp8 else "no",
    )


def _engine(facts: TargetFacts) -> str:
    if facts.compiler is not None:
        return f"compiled here, by {NAMES[facts.compiler]}"
    return "on the device" if facts.nearest is None else f"on the device; {facts.nearest} is audited here"

"""`twins-trt models`: the zoo."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from twins_trt.cli.console import Console, table
from twins_trt.models.fetch import cached_path
from twins_trt.models.zoo import ModelSpec, get_spec, list_models

EXAMPLE = "twins-trt models --json"


def configure(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Print the zoo as a table, or every field of it as JSON."""
    specs = [get_spec(name) for name in list_models()]
    head = ("model", "crop", "mIoU", "ms+flip", "schedule", "weights")
    rows = [head, *(_row(spec) for spec in specs)]
    text = table(rows, right=frozenset({2, 3, 4}))
    text += "\n\nPublished for ADE20K (150 classes), mIoU in percent. Weights: twins-trt fetch MODEL."
    console.result({"models": [_record(spec) for spec in specs]}, text)
    return 0


def _row(spec: ModelSpec) -> tuple[str, ...]:
    height, width = spec.crop_size
    return (
        spec.name,
        f"{height}x{width}",
        f"{spec.miou:.2f}",
        f"{spec.miou_ms_flip:.2f}",
        f"{spec.schedule_iterations // 1000}k",
        "fetched" if cached_path(spec.name).is_file() else "-",
    )


def _record(spec: ModelSpec) -> dict[str, Any]:
    path = cached_path(spec.name)
    derived = {
        "attentions": spec.attentions,
        "weights_url": spec.weights_url,
        "weights_file": spec.weights_file,
        "weights_sha256_prefix": spec.weights_sha256_prefix,
        "fetched": str(path) if path.is_file() else None,
    }
    return {**dataclasses.asdict(spec), **derived}

"""From an ONNX graph to a serialised plan and its layer list."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from twins_trt.builders.engine import versions
from twins_trt.builders.engine.log import BuildLog, logger_for
from twins_trt.builders.engine.options import EngineOptions
from twins_trt.builders.layers import Layer, parse_build_log
from twins_trt.errors import BuildError, UsageError

Progress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class BuiltEngine:
    """A finished engine: `plan` exactly as serialised, `layers` as the compiler reports them, `seconds` of building."""

    plan: bytes
    layers: tuple[Layer, ...]
    flavour: str
    version: str
    targets: tuple[str, ...]
    seconds: float


def build_engine(graph: Path | str, options: EngineOptions, *, progress: Progress | None = None) -> BuiltEngine:
    """Builds `graph` as `options` say."""
    started = time.perf_counter()
    module = versions.load(options.flavour)
    offer = versions.describe(module, options.flavour)
    if offer.targets and not options.targets:
        raise UsageError("no targets to build for", f"choose from {', '.join(offer.targets)}")
    build_log = BuildLog()
    logger = logger_for(module, build_log)
    builder = module.Builder(logger)
    network = versions.create_network(module, offer, builder)
    parser = module.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise BuildError(f"{offer.name} cannot read {graph}: {'; '.join(str(error) for error in errors)}")
    config = builder.create_builder_config()
    versions.configure(module, offer, config, options)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"{offer.name} cannot build {graph}: {'; '.join(build_log.errors)}")
    layers = parse_build_log(build_log.layers)
    return BuiltEngine(
        bytes(plan), layers, options.flavour, offer.version, options.targets, time.perf_counter() - started
    )

"""Everything that differs between TensorRT versions and flavours, in one place.

`load` imports a flavour; `describe` looks at what the module offers; the functions below apply a setting in that
version's way, or raise BuildError when it has none. Names are looked up on the module: the integers behind them move
between majors.
"""

from __future__ import annotations

import importlib
import logging
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from twins_trt.builders.engine.options import EngineOptions
from twins_trt.errors import BuildError, missing

log = logging.getLogger("twins_trt")


@dataclass(frozen=True)
class Offer:
    """What one installed TensorRT can do, as far as a build needs it.

    `targets`: what it compiles for without a device; empty when it builds for the GPU it runs on.
    `typing`: "always" (11, RTX), "flag" (10) or "none" (8.6: precision comes from builder flags).
    `hardware_compatibility`: the levels it takes, "none" left out.
    `timing_cache`: "file", or "no-op" where the calls exist and nothing is ever timed.
    `attention`: whether it knows ONNX's fused Attention operator.
    """

    flavour: str
    version: str
    targets: tuple[str, ...]
    typing: str
    explicit_batch: bool
    hardware_compatibility: tuple[str, ...]
    workspace_pool: bool
    optimization_level: bool
    timing_cache: str
    progress: bool
    attention: bool

    @property
    def name(self) -> str:
        return f"{'TensorRT-RTX' if self.flavour == 'tensorrt_rtx' else 'TensorRT'} {self.version}"


def load(flavour: str) -> ModuleType:
    """The bindings of a flavour. Raises MissingDependencyError when they are absent or cannot be loaded."""
    try:
        return importlib.import_module(flavour)
    except (ImportError, OSError, RuntimeError) as error:
        if flavour == "tensorrt_rtx":
            raise missing("tensorrt-rtx-cu13", extra="rtx", purpose="building TensorRT-RTX engines") from error
        raise missing("tensorrt", extra="tensorrt", purpose="building TensorRT engines") from error


def members(module: ModuleType, enum: str) -> tuple[str, ...]:
    """Names of an enum of the module, in its own order; empty when the module has no such enum."""
    return tuple(getattr(getattr(module, enum, None), "__members__", ()))


def describe(module: ModuleType, flavour: str) -> Offer:
    """What `module` offers, derived from the names it has."""
    config = getattr(module, "IBuilderConfig", None)
    targets = tuple(
        f"sm_{match[1]}" for name in members(module, "ComputeCapability") if (match := re.fullmatch(r"SM(\d+)", name))
    )
    creation = members(module, "NetworkDefinitionCreationFlag")
    if "STRONGLY_TYPED" not in creation:
        typing = "none"
    else:
        typing = "flag" if "FP16" in members(module, "BuilderFlag") else "always"
    levels = () if targets else members(module, "HardwareCompatibilityLevel")
    return Offer(
        flavour=flavour,
        version=str(getattr(module, "__version__", "?")),
        targets=tuple(sorted(targets, key=lambda target: int(target[3:]))),
        typing=typing,
        # Ignored since 10.0 and gone in 11; where networks are weakly typed it is still an error to leave it out.
        explicit_batch="EXPLICIT_BATCH" in creation and typing == "none",
        hardware_compatibility=tuple(level.lower() for level in levels if level != "NONE"),
        workspace_pool="WORKSPACE" in members(module, "MemoryPoolType"),
        optimization_level=hasattr(config, "builder_optimization_level"),
        timing_cache="no-op" if targets else "file",
        progress=hasattr(module, "IProgressMonitor"),
        attention=hasattr(getattr(module, "INetworkDefinition", None), "add_attention"),
    )


def create_network(module: ModuleType, offer: Offer, builder: Any) -> Any:
    """An empty network with the strongest typing this version has."""
    flags = 0
    creation = getattr(module, "NetworkDefinitionCreationFlag", None)
    if offer.explicit_batch:
        flags |= 1 << int(creation.EXPLICIT_BATCH)  # type: ignore[union-attr]
    if offer.typing != "none":
        flags |= 1 << int(creation.STRONGLY_TYPED)  # type: ignore[union-attr]
    return builder.create_network(flags)


def configure(module: ModuleType, offer: Offer, config: Any, options: EngineOptions) -> None:
    """Writes the options into a builder configuration. Raises BuildError for one that this version lacks."""
    # Without DETAILED neither the log nor the inspector names the layers, and there is nothing to audit.
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if offer.targets:
        config.num_compute_capabilities = len(options.targets)
        for index, target in enumerate(options.targets):
            capability = getattr(module.ComputeCapability, f"SM{target[3:]}", None)
            if capability is None or not config.set_compute_capability(capability, index):
                raise BuildError(
                    f"{offer.name} has no target {target}", f"choose from {', '.join(offer.targets)}"
                )
    if options.workspace_mib is not None:
        if not offer.workspace_pool:
            raise BuildError(f"{offer.name} has no workspace pool", "leave workspace_mib out")
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.optimization_level is not None:
        if not offer.optimization_level:
            raise BuildError(f"{offer.name} has no builder optimisation level", "leave optimization_level out")
        config.builder_optimization_level = options.optimization_level
    if options.hardware_compatibility != "none":
        if options.hardware_compatibility not in offer.hardware_compatibility:
            choice = ", ".join(("none", *offer.hardware_compatibility))
            raise BuildError(
                f"{offer.name} has no hardware compatibility {options.hardware_compatibility!r}",
                f"choose from: {choice}" if not offer.targets else "list the GPUs as targets instead",
            )
        level = getattr(module.HardwareCompatibilityLevel, options.hardware_compatibility.upper())
        config.hardware_compatibility_level = level

"""Everything that differs between TensorRT versions and flavours, in one place.

`load` imports a flavour; `describe` looks at what the module offers; the other functions do one thing in that version's
way, or raise BuildError when it has none. Names are looked up on the module: the integers behind them move between
majors, and what a version lacks is not there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from twins_trt.bindings import NAMES, load_bindings, members, release
from twins_trt.builders.engine.header import GraphHeader
from twins_trt.builders.engine.options import EngineOptions
from twins_trt.device import Device
from twins_trt.errors import BuildError, MissingDependencyError, UsageError
from twins_trt.spelling import spelled

# The highest ONNX opset of a version's parser, by the support matrices; not something a module tells.
_OPSETS = {(8, 6): 17, (10, 3): 20, (10, 13): 24, (11, 0): 25}


@dataclass(frozen=True)
class Compiler:
    """What one installed TensorRT can do, as far as a build needs it.

    `targets`: what it compiles for without a device; empty when it builds for the GPU it runs on.
    `typing`: "always" (11, RTX), "flag" (10) or "none" (8.6: precision comes from builder flags).
    `hardware_compatibility`: the levels it takes besides "none".
    `timing_cache`: false where nothing is ever timed.
    `attention`: whether it imports ONNX's fused Attention operator.
    `inspector`: "log" where the build prints the layer list, "engine" where a device has to be asked.
    """

    flavour: str
    version: str
    targets: tuple[str, ...]
    typing: str
    explicit_batch: bool
    hardware_compatibility: tuple[str, ...]
    workspace: bool
    optimization_level: bool
    timing_cache: bool
    progress: bool
    attention: bool
    inspector: str

    @property
    def name(self) -> str:
        return f"{NAMES[self.flavour]} {self.version}"

    @property
    def ahead_of_time(self) -> bool:
        return bool(self.targets)

    @property
    def opset(self) -> int | None:
        """The highest ONNX opset this version is known to read; None where that is not on record."""
        if self.flavour != "tensorrt":
            return None
        return max((opset for version, opset in _OPSETS.items() if version <= release(self.version)), default=None)


def load(flavour: str) -> ModuleType:
    """The bindings of a flavour. Raises MissingDependencyError when they are absent, broken or another flavour's."""
    return load_bindings(
        flavour, purpose=f"building {NAMES[flavour]} engines", needs=("Builder", "OnnxParser", "IBuilderConfig")
    )


def describe(module: ModuleType, flavour: str) -> Compiler:
    """What `module` offers, derived from the names it has. Raises BuildError for a TensorRT before 8.6."""
    version = str(getattr(module, "__version__", "unknown"))
    if flavour == "tensorrt" and (0, 0) < release(version) < (8, 6):
        raise BuildError(f"TensorRT {version} is too old to build with", "install 8.6 or newer (JetPack 6)")
    config = getattr(module, "IBuilderConfig", None)
    targets = [
        f"sm_{match[1]}" for name in members(module, "ComputeCapability") if (match := re.fullmatch(r"SM(\d+)", name))
    ]
    creation = members(module, "NetworkDefinitionCreationFlag")
    if "STRONGLY_TYPED" not in creation:
        typing = "none"
    else:
        typing = "flag" if "FP16" in members(module, "BuilderFlag") else "always"
    # TensorRT-RTX has the enum and ignores it; its list of targets says the same thing better.
    levels = () if targets else members(module, "HardwareCompatibilityLevel")
    return Compiler(
        flavour=flavour,
        version=version,
        targets=tuple(sorted(targets, key=lambda target: int(target[3:]))),
        typing=typing,
        # Ignored since 10.0 and gone in 11; where networks are weakly typed it is still an error to leave it out.
        explicit_batch="EXPLICIT_BATCH" in creation and typing == "none",
        hardware_compatibility=tuple(level.lower() for level in levels if level != "NONE"),
        workspace="WORKSPACE" in members(module, "MemoryPoolType") and hasattr(config, "set_memory_pool_limit"),
        optimization_level=hasattr(config, "builder_optimization_level"),
        timing_cache=not targets and hasattr(config, "create_timing_cache"),
        progress=hasattr(module, "IProgressMonitor") and hasattr(config, "progress_monitor"),
        attention=hasattr(getattr(module, "INetworkDefinition", None), "add_attention"),
        inspector="log" if targets else "engine",
    )


def group_targets(targets: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The targets split into plans that cost each other nothing.

    A plan holds one program for all of its targets, compiled for what the weakest can do. SM75 among them turns fused
    GEMM epilogues into kernels of their own for every other target (measured, TensorRT-RTX 1.7), so it goes alone.
    """
    turing = tuple(target for target in targets if target == "sm_75")
    others = tuple(target for target in targets if target != "sm_75")
    return tuple(group for group in (others, turing) if group)


def settle_targets(compiler: Compiler, options: EngineOptions, device: Device | None) -> tuple[str, ...]:
    """The targets that a build of `options` is for.

    Raises UsageError for targets this version cannot build for, MissingDependencyError when it needs a GPU that is not
    there.
    """
    if compiler.ahead_of_time:
        unknown = [target for target in options.targets if target not in compiler.targets]
        if unknown:
            raise UsageError(
                f"{compiler.name} has no target {unknown[0]}", f"choose from {', '.join(compiler.targets)}"
            )
        if options.targets:
            return options.targets
        if device is not None and device.target in compiler.targets:
            return (device.target,)
        here = "there is no GPU here" if device is None else f"{compiler.name} does not list this GPU ({device.target})"
        raise UsageError(f"no targets to build for, and {here}", f"name some of {', '.join(compiler.targets)}")
    if device is None:
        raise MissingDependencyError(
            f"{compiler.name} times kernels on the GPU it builds for, and there is no CUDA device or driver here",
            f"build on the device itself, or choose {spelled('flavour', 'tensorrt_rtx')}, which needs no GPU",
        )
    if options.targets and options.targets != (device.target,):
        raise UsageError(
            f"{compiler.name} builds for the GPU it runs on, {device.name} ({device.target}), not for "
            f"{', '.join(options.targets)}",
            f"leave {spelled('targets')} out, build on the other device, or choose "
            f"{spelled('flavour', 'tensorrt_rtx')}",
        )
    return (device.target,)


def create_network(module: ModuleType, compiler: Compiler, builder: Any) -> Any:
    """An empty network with the strongest typing this version has."""
    flags = 0
    if compiler.explicit_batch:
        flags |= 1 << int(module.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if compiler.typing != "none":
        flags |= 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return builder.create_network(flags)


def configure(
    module: ModuleType, compiler: Compiler, config: Any, options: EngineOptions, targets: tuple[str, ...]
) -> None:
    """Writes the options into a builder configuration. Raises BuildError for one that this version lacks."""
    # Without DETAILED neither the log nor the inspector names the layers, and there is nothing to audit.
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if compiler.ahead_of_time:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            capability = getattr(module.ComputeCapability, f"SM{target[3:]}")
            if not config.set_compute_capability(capability, index):
                raise BuildError(f"{compiler.name} refuses {target} among {', '.join(targets)}", "build it on its own")
    if options.workspace_mib is not None:
        if not compiler.workspace:
            raise BuildError(f"{compiler.name} has no workspace limit", f"leave {spelled('workspace')} out")
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.optimization_level is not None:
        if not compiler.optimization_level:
            raise BuildError(
                f"{compiler.name} has no builder optimization level", f"leave {spelled('optimization_level')} out"
            )
        config.builder_optimization_level = options.optimization_level
    if options.hardware_compatibility != "none":
        if options.hardware_compatibility not in compiler.hardware_compatibility:
            choice = ", ".join(("none", *compiler.hardware_compatibility))
            raise BuildError(
                f"{compiler.name} has no hardware compatibility {options.hardware_compatibility!r}",
                f"list the GPUs in {spelled('targets')} instead" if compiler.ahead_of_time else f"choose from {choice}",
            )
        level = getattr(module.HardwareCompatibilityLevel, options.hardware_compatibility.upper())
        config.hardware_compatibility_level = level


def set_precision(module: ModuleType, compiler: Compiler, config: Any, network: Any, header: GraphHeader) -> None:
    """Holds a weakly typed network (8.6) to the precision its graph was written in; later versions need nothing.

    FP16 and INT8 have to be allowed by flags, and then float32 layers kept from sinking into them: each layer is pinned
    to the type that the graph gave its output. Not checked on a device.
    """
    if compiler.typing != "none":
        return
    dtypes = header.weight_dtypes | {port.dtype for port in header.inputs}
    if "float16" in dtypes:
        config.set_flag(module.BuilderFlag.FP16)
    if any(operator in header.operators for operator in ("QuantizeLinear", "DequantizeLinear")):
        config.set_flag(module.BuilderFlag.INT8)
    config.set_flag(module.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    # These have no precision of their own: their types are those of what they copy or convert.
    free = {"CONSTANT", "SHAPE", "CAST", "IDENTITY", "QUANTIZE", "DEQUANTIZE"}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name in free or layer.num_outputs == 0:
            continue
        dtype = layer.get_output(0).dtype
        if dtype in (module.DataType.FLOAT, module.DataType.HALF):
            layer.precision = dtype
            for output in range(layer.num_outputs):
                layer.set_output_type(output, dtype)

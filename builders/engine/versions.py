"""Everything that differs between TensorRT versions and flavours, in one place.

`open_compiler` imports a flavour. A `Compiler` lists what its version can do, and does each thing in that version's
way, or raises BuildError if there is none. Names are looked up on the module: the integers behind them change between
major versions, and a name that a version lacks is absent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from twins_trt.bindings import NAMES, load_bindings, members, release
from twins_trt.builders.engine.header import GraphHeader
from twins_trt.builders.engine.options import EngineOptions
from twins_trt.device import Device
from twins_trt.errors import BuildError, MissingDependencyError, UsageError
from twins_trt.spelling import spelled

# The highest ONNX opset that a version's parser reads, by the support matrices. No module tells it.
_OPSETS = {(8, 6): 17, (10, 3): 20, (10, 13): 24, (11, 0): 25}


def opset_ceiling(version: str) -> int | None:
    """The highest ONNX opset that a version of TensorRT is known to read; None if none is on record."""
    return max((opset for since, opset in _OPSETS.items() if since <= release(version)), default=None)


def typing_of(version: str) -> str:
    """How a version of TensorRT types networks, as `Compiler.typing`, for a version that is not installed here."""
    major = release(version)[0]
    return "none" if major < 10 else "flag" if major == 10 else "always"


def open_compiler(flavour: str) -> Compiler:
    """The installed compiler of a flavour.

    Raises MissingDependencyError when its bindings are absent, broken or another flavour's, BuildError for a TensorRT
    before 8.6.
    """
    needs = ("Builder", "OnnxParser", "IBuilderConfig")
    return Compiler.of(load_bindings(flavour, purpose=f"building {NAMES[flavour]} engines", needs=needs), flavour)


@dataclass(frozen=True)
class Compiler:
    """An installed TensorRT and what it can do, as far as a build needs it.

    `module`: its bindings.
    `targets`: what it compiles for without a device; empty when it builds for the GPU it runs on.
    `typing`: "always" (11, RTX), "flag" (10) or "none" (8.6: precision comes from builder flags).
    `hardware_compatibility`: the levels it takes besides "none".
    `timing_cache`: false for a compiler that times nothing.
    `attention`: whether it imports ONNX's fused Attention operator.
    `inspector`: "log" if the build prints the layer list, "engine" if a device has to be asked.
    """

    module: ModuleType = field(repr=False, compare=False)
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

    @classmethod
    def of(cls, module: ModuleType, flavour: str) -> Compiler:
        """The compiler in `module`, described by the names that it has. Raises BuildError for a TensorRT before 8.6."""
        version = str(getattr(module, "__version__", "unknown"))
        if flavour == "tensorrt" and (0, 0) < release(version) < (8, 6):
            raise BuildError(f"TensorRT {version} is too old to build with", "install 8.6 or newer (JetPack 6)")
        config = getattr(module, "IBuilderConfig", None)
        capabilities = [re.fullmatch(r"SM(\d+)", name) for name in members(module, "ComputeCapability")]
        targets = [f"sm_{match[1]}" for match in capabilities if match]
        creation = members(module, "NetworkDefinitionCreationFlag")
        if "STRONGLY_TYPED" not in creation:
            typing = "none"
        else:
            typing = "flag" if "FP16" in members(module, "BuilderFlag") else "always"
        # TensorRT-RTX has the enum and ignores it; it has a list of targets instead.
        levels = () if targets else members(module, "HardwareCompatibilityLevel")
        return cls(
            module=module,
            flavour=flavour,
            version=version,
            targets=tuple(sorted(targets, key=lambda target: int(target[3:]))),
            typing=typing,
            # Ignored since 10.0 and gone in 11. Where networks are weakly typed, leaving it out is an error.
            explicit_batch="EXPLICIT_BATCH" in creation and typing == "none",
            hardware_compatibility=tuple(level.lower() for level in levels if level != "NONE"),
            workspace="WORKSPACE" in members(module, "MemoryPoolType") and hasattr(config, "set_memory_pool_limit"),
            optimization_level=hasattr(config, "builder_optimization_level"),
            timing_cache=not targets and hasattr(config, "create_timing_cache"),
            progress=hasattr(module, "IProgressMonitor") and hasattr(config, "progress_monitor"),
            attention=hasattr(getattr(module, "INetworkDefinition", None), "add_attention"),
            inspector="log" if targets else "engine",
        )

    @property
    def name(self) -> str:
        """The flavour in words and the full version: `TensorRT 10.3.0`."""
        return f"{NAMES[self.flavour]} {self.version}"

    @property
    def ahead_of_time(self) -> bool:
        """Whether it compiles for GPUs that are not there."""
        return bool(self.targets)

    @property
    def opset(self) -> int | None:
        """The highest ONNX opset that this version is known to read; None if none is on record."""
        return opset_ceiling(self.version) if self.flavour == "tensorrt" else None

    def settle_targets(self, options: EngineOptions, device: Device | None) -> tuple[str, ...]:
        """The targets that a build of `options` is for.

        Raises UsageError for targets that this version cannot build for, MissingDependencyError when it needs a GPU and
        none is there.
        """
        if self.ahead_of_time:
            unknown = [target for target in options.targets if target not in self.targets]
            if unknown:
                raise UsageError(f"{self.name} has no target {unknown[0]}", f"choose from {', '.join(self.targets)}")
            if options.targets:
                return options.targets
            if device is not None and device.target in self.targets:
                return (device.target,)
            here = "there is no GPU here" if device is None else f"{self.name} does not list this GPU ({device.target})"
            raise UsageError(f"no targets to build for, and {here}", f"name some of {', '.join(self.targets)}")
        if device is None:
            raise MissingDependencyError(
                f"{self.name} times kernels on the GPU it builds for, and there is no CUDA device or driver here",
                f"build on the device itself, or choose {spelled('flavour', 'tensorrt_rtx')}, which needs no GPU",
            )
        if options.targets and options.targets != (device.target,):
            raise UsageError(
                f"{self.name} builds for the GPU it runs on, {device.name} ({device.target}), not for "
                f"{', '.join(options.targets)}",
                f"leave {spelled('targets')} out, build on the other device, or choose "
                f"{spelled('flavour', 'tensorrt_rtx')}",
            )
        return (device.target,)

    def new_network(self, builder: Any) -> Any:
        """An empty network with the strongest typing that this version has."""
        flags = 0
        if self.explicit_batch:
            flags |= 1 << int(self.module.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
        if self.typing != "none":
            flags |= 1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return builder.create_network(flags)

    def configure(self, config: Any, options: EngineOptions, targets: tuple[str, ...]) -> None:
        """Writes the options into a builder configuration. Raises BuildError for an option that this version lacks."""
        # Without DETAILED neither the log nor the inspector names the layers, and nothing could be audited.
        config.profiling_verbosity = self.module.ProfilingVerbosity.DETAILED
        if self.ahead_of_time:
            config.num_compute_capabilities = len(targets)
            for index, target in enumerate(targets):
                capability = getattr(self.module.ComputeCapability, f"SM{target[3:]}")
                if not config.set_compute_capability(capability, index):
                    raise BuildError(f"{self.name} refuses {target} among {', '.join(targets)}", "build it on its own")
        if options.workspace_mib is not None:
            if not self.workspace:
                raise BuildError(f"{self.name} has no workspace limit", f"leave {spelled('workspace')} out")
            config.set_memory_pool_limit(self.module.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        if options.optimization_level is not None:
            if not self.optimization_level:
                raise BuildError(
                    f"{self.name} has no builder optimization level", f"leave {spelled('optimization_level')} out"
                )
            config.builder_optimization_level = options.optimization_level
        if options.hardware_compatibility != "none":
            if options.hardware_compatibility not in self.hardware_compatibility:
                choice = ", ".join(("none", *self.hardware_compatibility))
                raise BuildError(
                    f"{self.name} has no hardware compatibility {options.hardware_compatibility!r}",
                    f"list the GPUs in {spelled('targets')} instead" if self.ahead_of_time else f"choose from {choice}",
                )
            level = getattr(self.module.HardwareCompatibilityLevel, options.hardware_compatibility.upper())
            config.hardware_compatibility_level = level

    def keep_precision(self, config: Any, network: Any, header: GraphHeader) -> None:
        """Keeps a weakly typed network (8.6) at the precision of its graph; later versions need nothing.

        Flags allow FP16 and INT8. The compiler could then lower float32 layers too, so each layer is set to the type
        that the graph gave its output. Not checked on a device.
        """
        if self.typing != "none":
            return
        dtypes = header.weight_dtypes | {tensor.dtype for tensor in header.inputs}
        if "float16" in dtypes:
            config.set_flag(self.module.BuilderFlag.FP16)
        if any(operator in header.operators for operator in ("QuantizeLinear", "DequantizeLinear")):
            config.set_flag(self.module.BuilderFlag.INT8)
        config.set_flag(self.module.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        # These take their types from what they copy or convert.
        free = {"CONSTANT", "SHAPE", "CAST", "IDENTITY", "QUANTIZE", "DEQUANTIZE"}
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if layer.type.name in free or layer.num_outputs == 0:
                continue
            dtype = layer.get_output(0).dtype
            if dtype in (self.module.DataType.FLOAT, self.module.DataType.HALF):
                layer.precision = dtype
                for output in range(layer.num_outputs):
                    layer.set_output_type(output, dtype)


def group_targets(targets: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The targets in groups that can share an engine at no cost.

    An engine holds one program for all of its targets, compiled for what the weakest can do. With SM75 among them,
    fused GEMM epilogues become separate kernels for every other target (measured, TensorRT-RTX 1.7), so SM75 gets an
    engine of its own.
    """
    turing = tuple(target for target in targets if target == "sm_75")
    others = tuple(target for target in targets if target != "sm_75")
    return tuple(group for group in (others, turing) if group)

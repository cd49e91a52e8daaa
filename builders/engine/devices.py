"""The devices that an engine can be built for, by name: compute capability, JetPacks and their TensorRT.

Sources. Compute capabilities: NVIDIA's page "CUDA GPU Compute Capability". JetPacks and their TensorRT: the release
notes of JetPack 6.0 to 7.2; that 7.2 has TensorRT 10.16 for Orin as well as Thor, and that 7.0 and 7.1 have none for
Orin: roboflow/inference#2531 and NVIDIA-ISAAC-ROS/isaac-ros-cli#22. Data types by compute capability: TensorRT's
support matrix, "Hardware and Precision".
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from twins_trt.builders.engine.options import parse_target
from twins_trt.builders.engine.versions import opset_ceiling, typing_of
from twins_trt.errors import UsageError
from twins_trt.spelling import spelled

CPU = "cpu"
"""The target of a graph that ONNX Runtime runs, without an engine."""

RTX_TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
"""What TensorRT-RTX compiles for ahead of time. An installed one tells itself: this list is for where there is none."""

FIRST_INT8_OPSET = 19
"""INT8 beside FP16, and FP8, need `QuantizeLinear` with FP16 scales, which ONNX has from this opset on."""

_GENERATIONS = {
    "sm_75": "Turing",
    "sm_80": "Ampere",
    "sm_86": "Ampere",
    "sm_87": "Ampere",
    "sm_89": "Ada",
    "sm_90": "Hopper",
    "sm_100": "Blackwell",
    "sm_103": "Blackwell",
    "sm_110": "Blackwell",
    "sm_120": "Blackwell",
    "sm_121": "Blackwell",
}
KNOWN_TARGETS = tuple(_GENERATIONS)
"""Every compute capability on record."""

_WITH_FP8 = {"Ada", "Hopper", "Blackwell"}


@dataclass(frozen=True)
class JetPack:
    """A release of a Jetson's system. version: `6.1`. tensorrt: major and minor version of the TensorRT in it."""

    version: str
    tensorrt: str


@dataclass(frozen=True)
class DeviceSpec:
    """A device that can be named as a target.

    name: as it is typed. target: its compute capability. gpus: what it is, in words. jetpacks: of a Jetson, the oldest
    first; empty for a desktop or server. default: of a Jetson, the JetPack that is assumed: this one or a later one.
    """

    name: str
    target: str
    gpus: str
    jetpacks: tuple[JetPack, ...] = ()
    default: str = ""

    @property
    def is_jetson(self) -> bool:
        return bool(self.jetpacks)

    def jetpack(self, version: str | None) -> JetPack:
        """A JetPack of this Jetson; without a version the assumed one. Raises UsageError for one that it lacks."""
        wanted = self.default if version is None else version
        for each in self.jetpacks:
            if each.version == wanted:
                return each
        has = ", ".join(each.version for each in self.jetpacks)
        raise UsageError(f"{self.name} has no JetPack {wanted}", f"{self.name} has JetPack {has}")


_ORIN = (
    JetPack("6.0", "8.6"),
    JetPack("6.1", "10.3"),
    JetPack("6.2", "10.3"),
    JetPack("6.2.1", "10.3"),
    JetPack("7.2", "10.16"),
    JetPack("7.2.2", "11.4"),
)
_THOR = (JetPack("7.0", "10.13"), JetPack("7.1", "10.13"), JetPack("7.2", "10.16"), JetPack("7.2.2", "11.4"))

DEVICES = (
    DeviceSpec("jetson-orin", "sm_87", "Jetson AGX Orin", _ORIN, "6.1"),
    DeviceSpec("jetson-orin-nx", "sm_87", "Jetson Orin NX", _ORIN, "6.1"),
    DeviceSpec("jetson-orin-nano", "sm_87", "Jetson Orin Nano", _ORIN, "6.1"),
    DeviceSpec("jetson-thor", "sm_110", "Jetson AGX Thor", _THOR, "7.0"),
    DeviceSpec("t4", "sm_75", "T4"),
    DeviceSpec("rtx-2080-ti", "sm_75", "GeForce RTX 2080 Ti"),
    DeviceSpec("a100", "sm_80", "A100"),
    DeviceSpec("a30", "sm_80", "A30"),
    DeviceSpec("a10", "sm_86", "A10"),
    DeviceSpec("a40", "sm_86", "A40"),
    DeviceSpec("rtx-a2000", "sm_86", "RTX A2000"),
    DeviceSpec("rtx-a6000", "sm_86", "RTX A6000"),
    DeviceSpec("rtx-3060", "sm_86", "GeForce RTX 3060"),
    DeviceSpec("rtx-3070", "sm_86", "GeForce RTX 3070"),
    DeviceSpec("rtx-3080", "sm_86", "GeForce RTX 3080"),
    DeviceSpec("rtx-3090", "sm_86", "GeForce RTX 3090"),
    DeviceSpec("l4", "sm_89", "L4"),
    DeviceSpec("l40s", "sm_89", "L40S"),
    DeviceSpec("rtx-6000-ada", "sm_89", "RTX 6000 Ada Generation"),
    DeviceSpec("rtx-4060", "sm_89", "GeForce RTX 4060"),
    DeviceSpec("rtx-4070", "sm_89", "GeForce RTX 4070"),
    DeviceSpec("rtx-4080", "sm_89", "GeForce RTX 4080"),
    DeviceSpec("rtx-4090", "sm_89", "GeForce RTX 4090"),
    DeviceSpec("h100", "sm_90", "H100"),
    DeviceSpec("h200", "sm_90", "H200"),
    DeviceSpec("b200", "sm_100", "B200"),
    DeviceSpec("rtx-5070", "sm_120", "GeForce RTX 5070"),
    DeviceSpec("rtx-5080", "sm_120", "GeForce RTX 5080"),
    DeviceSpec("rtx-5090", "sm_120", "GeForce RTX 5090"),
    DeviceSpec("rtx-pro-6000", "sm_120", "RTX PRO 6000 Blackwell"),
    DeviceSpec("dgx-spark", "sm_121", "DGX Spark (GB10)"),
)

JETPACKS = tuple(
    sorted({each.version for device in DEVICES for each in device.jetpacks}, key=lambda v: [*map(int, v.split("."))])
)
"""Every JetPack on record, the oldest first."""

_BY_NAME = {device.name: device for device in DEVICES}


@dataclass(frozen=True)
class Target:
    """A target of a build.

    text: as a command line names it: `jetson-orin` or `sm_87`. target: its compute capability. device: what is known of
    it, for a Jetson also where only the compute capability was named; None for a GPU without a name.
    tensorrt: of a Jetson, major and minor version of its TensorRT, such as `10.3`; empty for other GPUs.
    """

    text: str
    target: str
    device: DeviceSpec | None = None
    tensorrt: str = ""

    @property
    def name(self) -> str:
        """The device's name; empty where only the compute capability was named."""
        return self.text if self.text in _BY_NAME else ""

    @property
    def opset(self) -> int | None:
        """The highest ONNX opset that the device's TensorRT reads; None if its TensorRT is not known."""
        return opset_ceiling(self.tensorrt) if self.tensorrt else None


def find_device(name: str) -> DeviceSpec:
    """The device of a name. Raises UsageError with the nearest names."""
    key = name.strip().lower().replace("_", "-")
    if key in _BY_NAME:
        return _BY_NAME[key]
    near = difflib.get_close_matches(key, _BY_NAME, n=3, cutoff=0.5)
    near += [other for other in _BY_NAME if key and key in other and other not in near]
    listed = f"did you mean {' or '.join(near[:4])}? " if near else ""
    raise UsageError(
        f"{name!r} is not a GPU target", f"{listed}name one of twins-trt targets, or a compute capability like sm_86"
    )


def read_target(text: str, jetpack: str | None = None) -> Target:
    """The target of a name (`jetson-orin`) or a compute capability (`sm_87`, `87`, `SM87`).

    jetpack: of a Jetson, by default the one that the device assumes; ignored for other GPUs. Raises UsageError for
    what is neither, and for a JetPack that the device does not have.
    """
    if re.fullmatch(r"(?:sm_?)?\d{2,3}", text.strip().lower()):
        target = spoken = parse_target(text)
        device = next((each for each in DEVICES if each.target == target and each.is_jetson), None)
    else:
        device = find_device(text)
        target, spoken = device.target, device.name
    tensorrt = device.jetpack(jetpack).tensorrt if device is not None and device.is_jetson else ""
    return Target(spoken, target, device, tensorrt)


def read_targets(texts: tuple[str, ...], jetpack: str | None = None) -> tuple[Target, ...]:
    """The targets, each once.

    Raises UsageError as `read_target` does, and for a JetPack where no target is a Jetson.
    """
    if jetpack is not None and jetpack not in JETPACKS:
        raise UsageError(
            f"there is no JetPack {jetpack} on record",
            f"use one of {', '.join(JETPACKS)}; for another release, the last of them before it",
        )
    targets = tuple(dict.fromkeys(read_target(text, jetpack) for text in texts))
    if jetpack is not None and not any(target.tensorrt for target in targets):
        raise UsageError(
            f"{spelled('jetpack')} applies only to a Jetson, and none is among the targets",
            f"leave it out, or name one: {spelled('targets', 'jetson-orin')}",
        )
    return targets


def nearest_target(target: str, available: tuple[str, ...]) -> str | None:
    """The target among `available` whose kernels are likely the most like those of `target`; None if there is none.

    One of the same generation comes first, because a compiler chooses its kernels by what the tensor cores of a
    generation take: Orin (sm_87) is an Ampere like sm_86, Thor (sm_110) a Blackwell like sm_120. Where none is of the
    generation, as for Hopper, and among several, the nearest number is taken; of two as near, the lower.
    """
    generation = _GENERATIONS.get(target)
    alike = [each for each in available if _GENERATIONS.get(each) == generation and generation is not None]
    return min(alike or available, key=lambda each: (abs(_number(each) - _number(target)), _number(each)), default=None)


def nearest_title(target: str, stands_for: Sequence[str]) -> str:
    """What an audit is of that was made in place of engines that await their device, in words."""
    what = "the same architecture" if tuple(stands_for) == (target,) else "the nearest architecture"
    return f"{target}, {what}, in place of {', '.join(stands_for)}"


def also_nearest_title(file: str, stands_for: Sequence[str]) -> str:
    """What the audit of a bundle's own engine is of that also serves in place of engines of devices, in words."""
    return f"{file}, also in place of {', '.join(stands_for)}, whose nearest architecture it is for"


def has_fp8(target: str) -> bool:
    """Whether the tensor cores of a GPU take FP8."""
    return _GENERATIONS.get(target) in _WITH_FP8


@dataclass(frozen=True)
class Abilities:
    """What a graph for one device may hold.

    jetpack, tensorrt: of a Jetson; for other GPUs empty, since they run any TensorRT. opset: the highest; None if it
    depends on the TensorRT. typing: as `Compiler.typing`; empty if it depends on the TensorRT. int8: INT8 beside FP16.
    fp8: whether GPU and TensorRT have FP8, which no graph of ours uses yet.
    """

    jetpack: str
    tensorrt: str
    opset: int | None
    typing: str
    int8: bool
    fp8: bool


def abilities(device: DeviceSpec) -> tuple[Abilities, ...]:
    """One for each JetPack of a Jetson; one for any other GPU."""
    if not device.is_jetson:
        typing = "always" if device.target in RTX_TARGETS else ""
        return (Abilities("", "", None, typing, True, has_fp8(device.target)),)
    found = []
    for jetpack in device.jetpacks:
        opset = opset_ceiling(jetpack.tensorrt)
        quantized = opset is not None and opset >= FIRST_INT8_OPSET
        fp8 = quantized and has_fp8(device.target)
        found.append(Abilities(jetpack.version, jetpack.tensorrt, opset, typing_of(jetpack.tensorrt), quantized, fp8))
    return tuple(found)


def _number(target: str) -> int:
    return int(target.removeprefix("sm_"))

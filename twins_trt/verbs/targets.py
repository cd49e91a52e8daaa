"""`targets`: the devices that a build can name, and what this machine can compile for: request, flags and call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twins_trt.verbs.flags import Flag, FlagTable, settle

if TYPE_CHECKING:
    from twins_trt.builders.engine.devices import Abilities


@dataclass(frozen=True)
class TargetsRequest:
    """Which devices to list. names: of devices or compute capabilities; empty for all.

    Raises `UsageError` for a value of the wrong kind.
    """

    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settle(self, TABLE)


TABLE: tuple[Flag, ...] = (
    Flag("NAME", "names", "devices (jetson-orin) or compute capabilities (sm_86); none: all", nargs="*"),
)

FLAGS = FlagTable(TargetsRequest, TABLE)


@dataclass(frozen=True)
class TargetFacts:
    """A device, and who compiles its engine.

    name: as `--target` takes it. target: its compute capability. gpus: what it is. abilities: one for each JetPack of a
    Jetson, one for another GPU. assumed: the JetPack that a build assumes, or a later one; empty for other GPUs.
    compiler: the flavour that compiles for it on this machine; None where the device compiles its own engine. nearest:
    the architecture that is audited here in place of that engine; None if there is none.
    """

    name: str
    target: str
    gpus: str
    abilities: tuple[Abilities, ...]
    assumed: str
    compiler: str | None
    nearest: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        from twins_trt.codec import encode

        plain: dict[str, Any] = encode(self)
        return plain


def list_targets(request: TargetsRequest | None = None) -> tuple[TargetFacts, ...]:
    """The devices that a build can name, in the order of their table.

    Raises `UsageError`, with the nearest names, for a name that no device has, and for a compute capability that none
    of the devices has.
    """
    from twins_trt.builders.engine.devices import DEVICES, abilities, nearest_target

    wanted = _wanted(() if request is None else request.names)
    compilers = _compilers()
    ahead = tuple(target for target, flavour in compilers.items() if flavour == "tensorrt_rtx")
    facts = []
    for device in DEVICES:
        if wanted is not None and device.name not in wanted:
            continue
        compiler = compilers.get(device.target)
        nearest = nearest_target(device.target, ahead) if compiler is None else None
        facts.append(
            TargetFacts(device.name, device.target, device.gpus, abilities(device), device.default, compiler, nearest)
        )
    return tuple(facts)


def _wanted(names: tuple[str, ...]) -> set[str] | None:
    """The names of the devices that are asked for; None for all."""
    from twins_trt.builders.engine.devices import DEVICES, read_target
    from twins_trt.errors import UsageError

    if not names:
        return None
    wanted: set[str] = set()
    for name in names:
        target = read_target(name)
        found = {target.name} if target.name else {each.name for each in DEVICES if each.target == target.target}
        if not found:
            known = ", ".join(dict.fromkeys(each.target for each in DEVICES))
            raise UsageError(f"no device on record is of {target.target}", f"use a name, or one of {known}")
        wanted |= found
    return wanted


def _compilers() -> dict[str, str]:
    """By compute capability, the flavour that compiles for it here: TensorRT-RTX for all that it has, TensorRT for the
    GPU of this machine."""
    from twins_trt.builders.engine.versions import open_compiler
    from twins_trt.device import current_device
    from twins_trt.errors import BuildError, MissingDependencyError

    found: dict[str, str] = {}
    device = current_device()
    for flavour in ("tensorrt_rtx", "tensorrt"):
        try:
            compiler = open_compiler(flavour)
        except (BuildError, MissingDependencyError):
            continue  # it is not installed, or cannot build
        here = compiler.targets or (() if device is None else (device.target,))
        found = dict.fromkeys(here, flavour) | found
    return found

"""The options of an engine build: flavour, targets and options of the compiler. They go into manifests as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twins_trt.errors import UsageError

FLAVOURS = ("tensorrt_rtx", "tensorrt")
HARDWARE_COMPATIBILITY = ("none", "same_compute_capability", "ampere_plus")

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]


def parse_target(text: str) -> str:
    """The target in its one spelling: "sm_86" for "86", "SM86", "sm86" and "sm_86". Raises UsageError otherwise."""
    match = re.fullmatch(r"(?:sm_?)?(\d{2,3})", str(text).strip().lower())
    if not match:
        raise UsageError(f"{text!r} is not a GPU target", "name compute capabilities like sm_86 or sm_120")
    return f"sm_{match[1]}"


def _profile(profile: Mapping[str, Sequence[Sequence[int]]] | None) -> dict[str, tuple[Shape, Shape, Shape]] | None:
    if profile is None:
        return None
    checked: dict[str, tuple[Shape, Shape, Shape]] = {}
    for name, shapes in profile.items():
        if len(shapes) != 3:
            raise UsageError(f"profile of {name!r} has {len(shapes)} shapes", "give its min, opt and max shape")
        smallest, opt, largest = (tuple(int(extent) for extent in shape) for shape in shapes)
        if not len(smallest) == len(opt) == len(largest):
            raise UsageError(
                f"profile of {name!r} mixes shapes of {len(smallest)}, {len(opt)} and {len(largest)} dimensions"
            )
        if not all(1 <= low <= middle <= high for low, middle, high in zip(smallest, opt, largest, strict=True)):
            raise UsageError(
                f"profile of {name!r} is not ordered: {smallest}, {opt}, {largest}",
                "every extent must be ≥ 1 in the min shape, ≥ that in the opt shape, and ≥ that in the max shape",
            )
        checked[str(name)] = (smallest, opt, largest)
    return checked


@dataclass(frozen=True)
class EngineOptions:
    """Options of one engine build.

    `flavour`: "tensorrt_rtx" (ahead of time, no GPU) or "tensorrt" (for the GPU it runs on).
    `targets`: compute capabilities ("sm_86", ...). TensorRT-RTX builds one engine for all of them; empty means the GPU
        of this machine. TensorRT builds only for the GPU of this machine: empty, or exactly that one.
    `workspace_mib`: limit of a layer's scratch memory, MiB; None leaves the compiler's default (all of the GPU).
    `optimization_level`: 0 (fast build) to 5 (longest search); None leaves the compiler's default, 3.
    `timing_cache`: file that keeps measured tactics between builds, or an existing folder to keep one file per device.
    `hardware_compatibility`: "none", "same_compute_capability" or "ampere_plus" (TensorRT only).
    `profile`: by name of an input with dynamic extents, its min, opt and max shape.

    Raises UsageError for a value that no flavour takes. A build raises for what its TensorRT version lacks.
    """

    flavour: str = "tensorrt_rtx"
    targets: tuple[str, ...] = ()
    workspace_mib: int | None = None
    optimization_level: int | None = None
    timing_cache: str | None = None
    hardware_compatibility: str = "none"
    profile: Profile | None = None

    def __post_init__(self) -> None:
        if self.flavour not in FLAVOURS:
            raise UsageError(f"unknown engine flavour {self.flavour!r}", f"choose one of {', '.join(FLAVOURS)}")
        if isinstance(self.targets, str):
            raise UsageError("targets is one string", 'give a tuple, for example ("sm_86", "sm_89")')
        object.__setattr__(self, "targets", tuple(dict.fromkeys(parse_target(target) for target in self.targets)))
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"workspace of {self.workspace_mib} MiB", "give at least 1 MiB, or leave it out")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"builder optimization level {self.optimization_level}", "choose 0 to 5")
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            raise UsageError(
                f"unknown hardware compatibility {self.hardware_compatibility!r}",
                f"choose one of {', '.join(HARDWARE_COMPATIBILITY)}",
            )
        if self.timing_cache is not None:
            object.__setattr__(self, "timing_cache", str(self.timing_cache))
        object.__setattr__(self, "profile", _profile(self.profile))

    def to_json(self) -> dict[str, Any]:
        profile = (
            None if self.profile is None else {name: [list(s) for s in each] for name, each in self.profile.items()}
        )
        return {
            "flavour": self.flavour,
            "targets": list(self.targets),
            "workspace_mib": self.workspace_mib,
            "optimization_level": self.optimization_level,
            "timing_cache": self.timing_cache,
            "hardware_compatibility": self.hardware_compatibility,
            "profile": profile,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EngineOptions:
        """The options that `to_json` wrote. Raises UsageError for a field this version does not know."""
        fields = cls.__dataclass_fields__
        for key in data:
            if key not in fields:
                raise UsageError(f"engine options have no field {key!r}", f"fields: {', '.join(fields)}")
        return cls(**{**data, "targets": tuple(data.get("targets", ()))})

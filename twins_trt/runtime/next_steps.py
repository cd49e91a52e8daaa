"""The commands to type after a build, here and on the device: one place for all that name them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twins_trt.codec import encode
from twins_trt.runtime.advice import compile_command
from twins_trt.runtime.archive import folder_name
from twins_trt.runtime.bundle import PACKED
from twins_trt.runtime.manifest import PACK


@dataclass(frozen=True)
class NextSteps:
    """Commands, each as it is typed.

    here: on the machine that built the bundle. copy: carries `archive` to the device, whose address only the user
    knows (`USER@DEVICE`). device: on the device, in the folder that the archive was copied to. predict: for the user's
    own pictures (`PICTURES`), wherever the bundle runs. copy, archive and device are empty where no engine awaits a
    device.
    """

    here: tuple[str, ...]
    predict: str
    archive: str = ""
    copy: str = ""
    device: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        plain: dict[str, Any] = encode(self)
        return plain

    def text(self) -> str:
        """The commands, one a line, by machine."""
        if not self.device:
            return "\n".join(["next:", *_indented(*self.here, self.predict)])
        lines = ["next, here:", *_indented(*self.here, self.copy)]
        return "\n".join([*lines, "then, on the device:", *_indented(*self.device, self.predict)])


def after_build(bundle: Path, *, awaits: bool, pack: Path | None = None, limits: tuple[str, ...] = ()) -> NextSteps:
    """What to type after a build.

    awaits: whether an engine of the bundle is still to be compiled on a device. pack: the file that the gate on the
    device reads; None if none was written. limits: words of its command, see `builders.gate.options.limit_words`.
    """
    if not awaits:
        return NextSteps((_profile(str(bundle)),), _predict(str(bundle)))
    archive = bundle.with_name(f"{bundle.name.removesuffix('.bundle')}.tar")
    packed = [] if pack is None else ["--pack", str(pack)]
    export = shlex.join(["twins-trt", "export-to", "device", str(bundle), *packed, "--out", str(archive)])
    return replace(after_export(archive, graph=True, pack=pack is not None, limits=limits), here=(export,))


def after_export(out: Path, *, graph: bool, pack: bool, limits: tuple[str, ...] = ()) -> NextSteps:
    """What to type after `out` was written for a device: a packed bundle, or a folder.

    graph: whether it holds the graph, so that the device compiles its engine. pack: whether it holds a gate's pack.
    limits: as in `after_build`.
    """
    packed = out.name.endswith(PACKED)
    name = folder_name(out) if packed else out.name
    return NextSteps(
        here=(),
        predict=_predict(name),
        archive=str(out),
        copy=shlex.join(["scp", *([] if packed else ["-r"]), str(out), "USER@DEVICE:"]),
        # What unpacks it is `compile`, which leaves an engine that fits as it is.
        device=(
            *((compile_command(out.name),) if packed or graph else ()),
            *after_compile(name, pack=pack, limits=limits),
        ),
    )


def after_compile(bundle: Path | str, *, pack: bool, limits: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What to type on the device once the engine is compiled.

    pack: whether the bundle holds a gate's pack. limits: as in `after_build`.
    """
    judged = (shlex.join(["twins-trt", "gate", str(bundle), "--pack", f"{bundle}/{PACK}", *limits]),) if pack else ()
    return (*judged, _profile(str(bundle)))


def _profile(bundle: str) -> str:
    return shlex.join(["twins-trt", "profile", bundle, "--save"])


def _predict(bundle: str) -> str:
    return shlex.join(["twins-trt", "predict", bundle, "PICTURES", "--out", "masks"])


def _indented(*commands: str) -> list[str]:
    return [f"  {command}" for command in commands]

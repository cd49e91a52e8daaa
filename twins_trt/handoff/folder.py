"""A hand-off: the files that another program takes, written as one folder, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from twins_trt.codec import encode
from twins_trt.errors import BundleError, UsageError
from twins_trt.files import write_hashed
from twins_trt.folders import whole_folder
from twins_trt.runtime.manifest import FileEntry, safe_path
from twins_trt.spelling import spelled
from twins_trt.version import __version__

if TYPE_CHECKING:
    from twins_trt.runtime.bundle import Bundle

RECORD = "handoff.json"
"""What a folder says about itself; what marks it as one that may be overwritten."""


@dataclass(frozen=True)
class HandoffOptions:
    """Choices that a hand-off leaves open.

    engine: `auto` for TensorRT's engines where the bundle has some, else the graph; `onnxruntime` for the graph; a
    target (`sm_87`) or a file of the bundle for one engine.
    name: the model's name over there; None takes the bundle's model.
    The rest is Triton's: max_batch, images a batch holds at most, None takes the graph's own limit; instances, copies
    of the model; queue_delay, microseconds that a request waits for others to fill a batch.
    """

    engine: str = "auto"
    name: str | None = None
    max_batch: int | None = None
    instances: int = 1
    queue_delay: int = 500

    def __post_init__(self) -> None:
        for name, least in (("max_batch", 1), ("instances", 1), ("queue_delay", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{spelled(name)} is {value}", f"give {least} or more")
        if self.name is not None and not (self.name.isascii() and self.name.replace("-", "_").isidentifier()):
            raise UsageError(f"{self.name!r} is no name for a model", "use letters, digits, - and _")

    def refuse(self, *names: str, tool: str) -> None:
        """Raises UsageError if one of these was chosen, for `tool` has no such thing."""
        for field in fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise UsageError(f"{tool} has no {field.name.replace('_', ' ')}", f"leave {spelled(field.name)} out")


@dataclass(frozen=True)
class Handoff:
    """A folder that is not written yet.

    files: path below it -> content, or the file to copy; a `.sh` is made executable.
    notes: what whoever runs it has to know.
    """

    target: str
    bundle: Bundle
    files: dict[str, bytes | Path]
    notes: tuple[str, ...] = ()


def write_handoff(handoff: Handoff, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write the folder `out`, with a record of what is in it, and return it.

    overwrite: replace an earlier hand-off that is there; anything else is never replaced. Raises BundleError if `out`
    exists, the bundle was replaced since it was opened, or the disk refuses.
    """
    target = Path(out)
    check_out(target, overwrite=overwrite)
    if bad := [name for name in handoff.files if not safe_path(name) or name == RECORD]:
        raise BundleError(f"{bad[0]!r} is not a plain path below {target}")
    try:
        replacing = partial(check_out, target, overwrite=True) if overwrite else None
        with whole_folder(target, replace=replacing) as staging:
            entries = []
            for name, content in handoff.files.items():
                entries.append(FileEntry(name, *write_hashed(staging / name, content)))
                if name.endswith(".sh"):
                    (staging / name).chmod(0o755)
            write_hashed(staging / RECORD, _record(handoff, entries))
            handoff.bundle.refuse_replaced()  # what was copied is of one bundle
    except OSError as error:
        handoff.bundle.refuse_replaced()
        check_out(target, overwrite=overwrite)  # it may have come since the check above
        raise BundleError(f"{target} cannot be written: {error}") from error
    return target


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raises BundleError if a hand-off may not be written to `out`."""
    if not out.name:
        raise BundleError(f"{out} is not a name for a folder", "give a new folder")
    if not (out.exists() or out.is_symlink()):
        return
    if not overwrite:
        raise BundleError(f"{out} exists", f"choose another name, or replace it: {spelled('overwrite', True)}")
    if out.is_symlink() or not (out / RECORD).is_file():
        raise BundleError(f"{out} exists and is no earlier hand-off, so it is not overwritten", "choose another name")


def _record(handoff: Handoff, entries: list[FileEntry]) -> bytes:
    manifest = handoff.bundle.manifest
    record = {
        "target": handoff.target,
        "twins_trt": __version__,
        "bundle": handoff.bundle.path.name,
        "model": manifest.model,
        "precision": manifest.precision,
        "gate": manifest.gate,
        "source": encode(manifest.source),
        "rebuild": manifest.rebuild,
        "notes": handoff.notes,
        "files": encode(entries),
    }
    return (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()


def readme_notes(notes: Iterable[str]) -> str:
    """Notes as a list in Markdown."""
    return "\n".join(f"- {note[0].upper()}{note[1:]}." for note in notes)

"""A hand-off: what another program or a device needs, written as one folder or tar file, whole or not at all."""

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
from twins_trt.folders import check_replaceable, whole_folder
from twins_trt.runtime.archive import check_archive_place, pack_bundle
from twins_trt.runtime.bundle import PACKED, fill, writing
from twins_trt.runtime.bundle import check_place as check_bundle_place
from twins_trt.runtime.manifest import FileEntry, Manifest, safe_path
from twins_trt.spelling import spelled
from twins_trt.version import __version__

if TYPE_CHECKING:
    from twins_trt.runtime.bundle import Bundle

RECORD = "handoff.json"
"""The record in the folder of a hand-off. Only a folder with this file may be overwritten."""

_OTHER_ARCHIVES = (".zip", ".7z", ".gz", ".bz2", ".xz", ".zst")  # a folder of such a name would be a surprise


@dataclass(frozen=True)
class HandoffOptions:
    """The options of a hand-off.

    engine: `auto` for the bundle's TensorRT engines, or the graph if it has none; `onnxruntime` for the graph; a target
    (`sm_87`) or a file of the bundle for one engine. For a device: `auto` for the graph, and for the engines as well
    unless the bundle awaits one of a device; `graph` for the graph alone; a target or a file for engines alone.
    pack: for a device, the file with which `twins-trt gate` judges there; None sends the bundle's own, if it has one.
    name: the model's name in the other program; None takes the bundle's model.
    The others are for Triton. max_batch: the most images in a batch; None takes the graph's own limit. instances:
    copies of the model. queue_delay: microseconds that a request waits for others to fill a batch.
    """

    engine: str = "auto"
    pack: str | None = None
    name: str | None = None
    max_batch: int | None = None
    instances: int = 1
    queue_delay: int = 500

    def __post_init__(self) -> None:
        for name, smallest in (("max_batch", 1), ("instances", 1), ("queue_delay", 0)):
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise UsageError(f"{spelled(name)} is {value}", f"give {smallest} or more")
        if self.name is not None and not (self.name.isascii() and self.name.replace("-", "_").isidentifier()):
            raise UsageError(f"{self.name!r} is no name for a model", "use letters, digits, - and _")

    def refuse(self, *names: str, tool: str) -> None:
        """Raises UsageError if one of these options was given: `tool` does not have them."""
        for field in fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise UsageError(f"{tool} has no {field.name.replace('_', ' ')}", f"leave {spelled(field.name)} out")


@dataclass(frozen=True)
class Handoff:
    """A folder that is not written yet.

    files: path below the folder -> content, or the file to copy; a `.sh` is made executable.
    notes: what its users have to know, one sentence each.
    manifest: of a hand-off that is itself a bundle, with its `files`; None for all others.
    """

    target: str
    bundle: Bundle
    files: dict[str, bytes | Path]
    notes: tuple[str, ...] = ()
    manifest: Manifest | None = None


def write_handoff(handoff: Handoff, out: str | Path, *, overwrite: bool = False) -> Path:
    """Writes the folder `out` with a record of its files, and returns it. A hand-off that is itself a bundle needs no
    record, and becomes a packed bundle if the name `out` ends as one (`road.tar`, `road.tar.gz`).

    overwrite: replace an earlier hand-off at `out`; anything else is never replaced. Raises BundleError if `out`
    exists, if the bundle was replaced since it was opened, or if the disk refuses.
    """
    target = Path(out)
    check_place(target, overwrite=overwrite, bundled=handoff.manifest is not None)
    if handoff.manifest is not None:
        _write_bundle(handoff, handoff.manifest, target, overwrite=overwrite)
        return target
    if bad := [name for name in handoff.files if not safe_path(name) or name == RECORD]:
        raise BundleError(f"{bad[0]!r} is not a plain path below {target}")
    try:
        replacing = partial(check_place, target, overwrite=True) if overwrite else None
        with whole_folder(target, replace=replacing) as staging:
            entries = []
            for name, content in handoff.files.items():
                entries.append(FileEntry(name, *write_hashed(staging / name, content)))
                if name.endswith(".sh"):
                    (staging / name).chmod(0o755)
            write_hashed(staging / RECORD, _record(handoff, entries))
            handoff.bundle.refuse_replaced()  # all files are of one bundle
    except OSError as error:
        handoff.bundle.refuse_replaced()
        check_place(target, overwrite=overwrite)  # it may have appeared since the check above
        raise BundleError(f"{target} cannot be written: {error}") from error
    return target


def check_place(out: Path, *, overwrite: bool, bundled: bool = False) -> None:
    """Raises BundleError if no hand-off may be written to `out`. bundled: of one that is itself a bundle."""
    if bundled and out.name.endswith(PACKED):
        check_archive_place(out, overwrite=overwrite)
    elif bundled and out.suffix.lower() in _OTHER_ARCHIVES:
        raise UsageError(
            f"{out.name}: a bundle is not packed as {out.suffix}",
            f"name a file that ends in {', '.join(PACKED[:-1])} or {PACKED[-1]}, or a folder",
        )
    elif bundled:
        check_bundle_place(out, overwrite=overwrite)
    elif not out.name:
        raise BundleError(f"{out} is not a name for a folder", "give a new folder")
    else:
        check_replaceable(out, marker=RECORD, otherwise="no earlier hand-off", overwrite=overwrite)


def _write_bundle(handoff: Handoff, manifest: Manifest, out: Path, *, overwrite: bool) -> None:
    source = handoff.bundle.path.resolve()
    if source in (out.resolve(), *out.resolve().parents):
        raise BundleError(f"{out} is the bundle that is handed over, or lies in it", "choose another name")
    handoff.bundle.refuse_replaced()
    if out.name.endswith(PACKED):
        pack_bundle(out, manifest, handoff.files, overwrite=overwrite)
        return
    with writing(out, overwrite=overwrite) as staging:
        if fill(staging, manifest, handoff.files) != manifest:
            handoff.bundle.refuse_replaced()
            raise BundleError(f"{handoff.bundle.path} has changed while it was read", "try again")


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

"""Bundles on disk: a folder of plain files that is written whole or not at all and verified when opened."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from twins_trt.errors import BundleError
from twins_trt.files import sha256_of, whole_folder, write_hashed
from twins_trt.runtime.manifest import GRAPH, MANIFEST, REBUILD, FileEntry, Manifest, safe_path


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and what its manifest says."""

    path: Path
    manifest: Manifest

    @property
    def graph(self) -> Path:
        """The precision-complete ONNX graph."""
        return self.file(GRAPH)

    def file(self, name: str) -> Path:
        """The file called `name` (`engines/x.engine`). Raises BundleError if the manifest does not list it."""
        if name not in self.files:
            raise BundleError(f"{self.path} holds no {name}; it holds {', '.join(self.files)}", self.manifest.rebuild)
        return self.path / name

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(entry.path for entry in self.manifest.files)

    def read_json(self, name: str) -> Any:
        """The content of `plan.json`, `calibration.json`, `audit.json` or `gate.json`; None if the bundle has none.

        Raises BundleError if the file is not JSON.
        """
        if name not in self.files:
            return None
        try:
            return json.loads(self.file(name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BundleError(f"{self.path / name} cannot be read: {error}", self.manifest.rebuild) from error


def open_bundle(path: str | Path, *, verify: bool = True) -> Bundle:
    """Open the bundle in the folder `path`.

    verify: read every file and compare its sha256; without, only the manifest and the files' presence and size are
    checked. Files that the manifest does not list are refused when verifying.
    Raises BundleError, naming what does not fit, both values, and the command that rebuilds.
    """
    root = Path(path)
    manifest = _read_manifest(root)
    for i, entry in enumerate(manifest.files):
        _check_file(root, entry, f"files[{i}]", manifest.rebuild, verify=verify)
    if verify and (extra := sorted(_files_below(root) - {MANIFEST} - {entry.path for entry in manifest.files})):
        raise BundleError(
            f"{root} holds {', '.join(extra[:3])}, which {MANIFEST} does not list",
            f"remove it, or rebuild: {manifest.rebuild}",
        )
    return Bundle(root, manifest)


def write_bundle(
    path: str | Path, manifest: Manifest, files: Mapping[str, bytes | Path], *, overwrite: bool = False
) -> Bundle:
    """Write a bundle to the folder `path`: whole, or nothing, also when interrupted.

    manifest: its `files` are set here, and `created` where it is empty. files: path below the bundle -> content, or the
    file to copy; `graph.onnx` and every engine the manifest names must be among them. Everything is written into a
    hidden sibling that is renamed at the end. overwrite: replace a bundle that is there; anything else is never
    replaced. Raises BundleError if `path` exists, a file is missing or badly named, or the disk refuses.
    """
    target = Path(path)
    if bad := [name for name in files if not safe_path(name)]:
        raise BundleError(f"{bad[0]!r} is not a plain path below the bundle, or is the manifest itself")
    _check_target(target, overwrite=overwrite)
    try:
        with whole_folder(target) as staging:
            entries = tuple(FileEntry(name, *write_hashed(staging / name, files[name])) for name in sorted(files))
            created = manifest.created or datetime.now(timezone.utc).isoformat(timespec="seconds")
            manifest = replace(manifest, files=entries, created=created)
            if not entries:  # the manifest itself cannot tell "none" from "not written yet"
                raise BundleError(f"a bundle needs {GRAPH}", manifest.rebuild)
            write_hashed(staging / MANIFEST, manifest.dumps().encode())
            _check_target(target, overwrite=overwrite)  # again: copying took time
    except OSError as error:
        raise BundleError(f"{target} cannot be written: {error}") from error
    return Bundle(target, manifest)


def amend_bundle(bundle: Bundle, files: Mapping[str, bytes | Path], *, manifest: Manifest | None = None) -> Bundle:
    """The bundle with these files added, or put in place of those it has: all of it, or it stays as it was.

    manifest: in place of its own. Raises BundleError as `write_bundle` does.
    """
    kept: dict[str, bytes | Path] = {name: bundle.file(name) for name in bundle.files}
    return write_bundle(bundle.path, manifest or bundle.manifest, {**kept, **files}, overwrite=True)


def _read_manifest(root: Path) -> Manifest:
    rebuild = REBUILD.format(path=shlex.quote(str(root) if root.suffix == ".bundle" else f"{root.stem or 'x'}.bundle"))
    if not root.exists():
        raise BundleError(f"{root} does not exist", rebuild)
    if not root.is_dir():
        kind = "an ONNX file" if root.suffix == ".onnx" else "a file"
        raise BundleError(f"{root} is {kind}, not a bundle; a bundle is a folder with a {MANIFEST}", rebuild)
    if not (root / MANIFEST).is_file():
        raise BundleError(f"{root} is not a bundle: it has no {MANIFEST}", rebuild)
    try:
        values = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{root / MANIFEST} cannot be read: {error}", rebuild) from error
    try:
        manifest = Manifest.from_json(values)
    except BundleError as error:
        raise BundleError(f"{root}: {error.cause}", error.fix or rebuild) from error
    if not manifest.files:
        raise BundleError(f"{root}: {MANIFEST}: files is empty", manifest.rebuild or rebuild)
    return manifest


def _check_file(root: Path, entry: FileEntry, field: str, rebuild: str, *, verify: bool) -> None:
    file = root / entry.path
    # A link could lead out of the bundle, and would not travel with it.
    if any((root / part).is_symlink() for part in _prefixes(entry.path)):
        raise BundleError(f"{root}: {field}.path is {entry.path}, which is a link, not a plain file", rebuild)
    if not file.is_file():
        raise BundleError(f"{root}: {field}.path is {entry.path}, which is missing", rebuild)
    if (size := file.stat().st_size) != entry.size:
        raise BundleError(f"{root}: {field}.size of {entry.path} is {entry.size}, the file has {size} bytes", rebuild)
    if not verify:
        return
    try:
        found = sha256_of(file)
    except OSError as error:
        raise BundleError(f"{root}: {entry.path} cannot be read: {error}", rebuild) from error
    if found != entry.sha256:
        raise BundleError(f"{root}: {field}.sha256 of {entry.path} is {entry.sha256}, the file has {found}", rebuild)


def _prefixes(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _files_below(root: Path) -> set[str]:
    found = set()
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found |= {(Path(folder) / name).relative_to(root).as_posix() for name in (*names, *links)}
    return found


def _check_target(target: Path, *, overwrite: bool) -> None:
    if not target.name:
        raise BundleError(f"{target} is not a name for a bundle", "give a new folder, such as x.bundle")
    if not (target.exists() or target.is_symlink()):
        return
    if not overwrite:
        raise BundleError(f"{target} exists", "choose another name, or ask to overwrite it")
    if target.is_symlink() or not (target / MANIFEST).is_file():
        raise BundleError(f"{target} exists and is not a bundle, so it is not overwritten", "choose another name")

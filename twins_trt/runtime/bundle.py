"""Bundles on disk: folders of plain files, written whole or not at all and verified when they are opened."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from twins_trt.errors import BundleError
from twins_trt.files import sha256_of, write_hashed
from twins_trt.folders import check_replaceable, restore, whole_folder
from twins_trt.inference.interface import GraphInterface
from twins_trt.runtime.manifest import GRAPH, MANIFEST, REBUILD, WEIGHTS, EngineFile, FileEntry, Manifest, safe_path

PACKED = (".tar", ".tar.gz", ".tgz")
"""How the name of a packed bundle ends (`twins_trt.runtime.archive`)."""

TRIES = 100  # of reading a bundle that is replaced meanwhile; writing one takes longer than reading it
_AGAIN = "open it again"

_Version = tuple[int, int, str]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest.

    Another build may replace it on disk. Then asking for a file raises BundleError, unless the file is the same in both
    bundles: this manifest must not be combined with the files of another bundle.
    """

    path: Path
    manifest: Manifest
    _version: _Version | None = field(default=None, repr=False, compare=False)  # None: not read from a folder

    @property
    def graph(self) -> Path:
        """The precision-complete ONNX graph. Raises BundleError as `file` does, also if it did not travel."""
        return self.file(GRAPH)

    @property
    def interface(self) -> GraphInterface:
        """See `EngineSource`; the next three as well."""
        return self.manifest.interface

    @property
    def precision(self) -> str:
        return self.manifest.precision

    @property
    def engines(self) -> tuple[EngineFile, ...]:
        return self.manifest.engines

    @property
    def rebuild(self) -> str:
        return self.manifest.rebuild

    def read(self, engine: EngineFile) -> bytes:
        """See `EngineSource.read`."""
        return self.file(engine.file).read_bytes()

    @property
    def replaced(self) -> bool:
        """Whether graph, engines or weights on disk are no longer those that were opened. Files added by a gate or a
        profile do not count."""
        return self._differs(_runs(self.manifest))

    def refuse_replaced(self) -> None:
        """Raises BundleError if it is `replaced`: files that were read since it was opened may be of two bundles."""
        if self.replaced:
            raise replaced_error(self.path)

    def file(self, name: str) -> Path:
        """The path of a file (`engines/x.engine`). Raises BundleError if the manifest does not list it, or if it was
        replaced since the bundle was opened."""
        if name in {entry.path for entry in self.manifest.left_behind}:
            raise left_behind_error(self.path, name)
        if name not in self.files:
            raise BundleError(f"{self.path} holds no {name}; it holds {', '.join(self.files)}", self.manifest.rebuild)
        if self._differs([name]):
            raise replaced_error(self.path / name)
        return self.path / name

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(entry.path for entry in self.manifest.files)

    def read_json(self, name: str) -> Any:
        """The content of `plan.json`, `calibration.json`, `audit.json` or `gate.json`; None if the bundle has none.

        Raises BundleError if the file is not JSON, or if it was replaced since the bundle was opened.
        """
        if name not in self.files:
            return None
        try:
            content = self.file(name).read_bytes()
            self.file(name)  # again, in case the bundle was replaced meanwhile
            return json.loads(content)
        except (OSError, ValueError) as error:
            self.file(name)
            raise BundleError(f"{self.path / name} cannot be read: {error}", self.manifest.rebuild) from error

    def _differs(self, names: Iterable[str]) -> bool:
        """Whether one of these files has changed on disk or is gone."""
        if self._version is None or _version(self.path) == self._version:
            return False
        try:
            now = _entries(open_bundle(self.path, verify=False).manifest)
        except BundleError:
            return True
        then = _entries(self.manifest)
        return any(now.get(name) != then[name] for name in names)


def replaced_error(path: Path) -> BundleError:
    """The error for a bundle that is still used after it was replaced."""
    return BundleError(f"{path} was replaced since it was opened", _AGAIN)


def left_behind_error(path: Path, name: str) -> BundleError:
    """The error for a file that stayed on the machine that the bundle in `path` came from, as its graph may."""
    command = "twins-trt export-to device {} --engine graph --out {}"
    whole, packed = shlex.quote(path.name), shlex.quote(f"{path.name.removesuffix('.bundle')}.tar")
    fix = f"where the whole bundle is: {command.format(whole, packed)}" if name == GRAPH else None
    return BundleError(f"{path} holds no {name}: it did not travel with the bundle", fix)


def open_bundle(path: str | Path, *, verify: bool = True) -> Bundle:
    """Opens the bundle in the folder `path`.

    verify: read every file and compare its sha256, and refuse files that the manifest does not list. Without, only the
    manifest and the presence and size of the files are checked. A bundle that is replaced meanwhile is read again, and
    one whose replacement was interrupted is brought back, so the result is never parts of two bundles. Raises
    BundleError, naming the field that does not fit, both values, and the command that rebuilds the bundle.
    """
    root = Path(path)
    for _ in range(TRIES):
        version = _version(root)
        try:
            manifest = _read(root, verify=verify)
        except BundleError:
            if not _restored(root) and _version(root) == version:
                raise
        else:
            if _version(root) == version:
                return Bundle(root, manifest, version)
    raise BundleError(f"{root} was replaced {TRIES} times while it was read", _AGAIN)


def write_bundle(
    path: str | Path, manifest: Manifest, files: Mapping[str, bytes | Path], *, overwrite: bool = False
) -> Bundle:
    """Writes a bundle to the folder `path`: whole or not at all, even if it is interrupted.

    manifest: gets its `files` here, and `created` if that is empty. files: path below the bundle -> content, or the
    file to copy; every engine of the manifest must be among them, and `graph.onnx` unless it is left behind. Everything
    is written into a hidden folder beside `path`, which is renamed at the end. overwrite: replace a bundle at `path`,
    in one step if the system can do that; anything else is never replaced. Raises BundleError if `path` exists, if a
    file is missing or has a bad name, or if the disk refuses.
    """
    target = Path(path)
    _check_names(files)
    with writing(target, overwrite=overwrite) as staging:
        manifest = fill(staging, manifest, files)
        version = _version(staging)
    return Bundle(target, manifest, version)


def amend_bundle(
    bundle: Bundle,
    files: Mapping[str, bytes | Path],
    *,
    change: Callable[[Manifest], Manifest] | None = None,
    remove: Collection[str] = (),
) -> Bundle:
    """Adds files to a bundle, or replaces or removes some of its files: all of them, or none. Returns the new bundle.

    The bundle is amended as it is on disk now, and by one process at a time, so files that others have added since it
    was opened stay. change: applied to its manifest. remove: files that it shall not hold any longer. Raises
    BundleError if it has another graph or other engines by now, if a file that it keeps is damaged, and as
    `write_bundle` does.
    """
    _check_names(files)
    with writing(bundle.path, overwrite=True) as staging:
        current = open_bundle(bundle.path, verify=False)
        if _runs(current.manifest) != _runs(bundle.manifest):
            raise BundleError(
                f"{bundle.path} holds another graph or other engines than when it was opened, which this is not about",
                _AGAIN,
            )
        gone = {*files, *remove}
        kept = {name: entry for name, entry in _entries(current.manifest).items() if name not in gone}
        content = {**{name: current.path / name for name in kept}, **files}
        manifest = fill(staging, current.manifest if change is None else change(current.manifest), content)
        for name, entry in kept.items():
            if (copied := _entries(manifest)[name]) != entry:
                raise BundleError(
                    f"{bundle.path}: sha256 of {name} is {entry.sha256}, the file has {copied.sha256}", manifest.rebuild
                )
        version = _version(staging)
    return Bundle(bundle.path, manifest, version)


def _check_names(files: Mapping[str, bytes | Path]) -> None:
    if bad := [name for name in files if not safe_path(name)]:
        raise BundleError(f"{bad[0]!r} is not a plain path below the bundle, or is the manifest itself")


@contextmanager
def writing(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """The folder that becomes `target` at the end of the block. A folder that is already there is locked meanwhile."""
    check_place(target, overwrite=overwrite)
    try:
        replacing = partial(check_place, target, overwrite=True) if overwrite else None
        with whole_folder(target, replace=replacing) as staging:
            yield staging
    except OSError as error:
        check_place(target, overwrite=overwrite)  # it may have appeared since the check above
        raise BundleError(f"{target} cannot be written: {error}") from error


def fill(staging: Path, manifest: Manifest, files: Mapping[str, bytes | Path]) -> Manifest:
    """Writes the files and the manifest that lists them, and returns it."""
    entries = tuple(FileEntry(name, *write_hashed(staging / name, files[name])) for name in sorted(files))
    created = manifest.created or datetime.now(timezone.utc).isoformat(timespec="seconds")
    manifest = replace(manifest, files=entries, created=created)
    if not entries:  # to the manifest itself, no files means that it is not written yet
        raise BundleError(f"a bundle needs {GRAPH}", manifest.rebuild)
    write_hashed(staging / MANIFEST, manifest.dumps().encode())
    return manifest


def _runs(manifest: Manifest) -> dict[str, FileEntry]:
    """The files that run: graph, engines, weights."""
    names = {GRAPH, WEIGHTS, *(engine.file for engine in manifest.engines)}
    return {name: entry for name, entry in _entries(manifest).items() if name in names}


def _entries(manifest: Manifest) -> dict[str, FileEntry]:
    return {entry.path: entry for entry in manifest.files}


def _version(root: Path) -> _Version | None:
    """Identifies a bundle on disk; None if there is none.

    By inode, time and content of its manifest: a file system may give the inode of a removed file to the next one at
    once, and its clock is coarse.
    """
    try:
        with open(root / MANIFEST, "rb") as file:
            status = os.fstat(file.fileno())
            return status.st_ino, status.st_mtime_ns, hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return None


def _restored(root: Path) -> bool:
    """Brings back a bundle that is missing because of an unfinished replacement. Returns whether it was missing."""
    try:
        return restore(root)
    except OSError as error:
        raise BundleError(
            f"{root} was about to be replaced by a process that was killed, and cannot be brought back: {error}",
            f"rename {root.with_name(f'.{root.name}.*.old')} to {root.name}",
        ) from error


def _read(root: Path, *, verify: bool) -> Manifest:
    """The manifest of the bundle in `root`, after the check of its files."""
    manifest = _read_manifest(root)
    for i, entry in enumerate(manifest.files):
        _check_file(root, entry, f"files[{i}]", manifest.rebuild, verify=verify)
    if verify and (extra := sorted(_files_below(root) - {MANIFEST} - {entry.path for entry in manifest.files})):
        raise BundleError(
            f"{root} holds {', '.join(extra[:3])}, which {MANIFEST} does not list",
            f"remove it, or rebuild: {manifest.rebuild}",
        )
    return manifest


def _read_manifest(root: Path) -> Manifest:
    rebuild = REBUILD.format(path=shlex.quote(str(root) if root.suffix == ".bundle" else f"{root.stem or 'x'}.bundle"))
    if not root.exists():
        fix = f"copy it here, or write it where the bundle is: {pack_command(root)}"
        raise BundleError(f"{root} does not exist", fix if root.name.endswith(PACKED) else rebuild)
    if is_packed(root):
        raise BundleError(
            f"{root} is a packed bundle, which is unpacked before it is used",
            f"twins-trt compile {shlex.quote(str(root))}",
        )
    if not root.is_dir():
        kind = "an ONNX file" if root.suffix == ".onnx" else "a file"
        raise BundleError(f"{root} is {kind}, not a bundle; a bundle is a folder with a {MANIFEST}", rebuild)
    if not (root / MANIFEST).is_file():
        raise BundleError(f"{root} is not a bundle: it has no {MANIFEST}", rebuild)
    try:
        text = (root / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(f"{root / MANIFEST} cannot be read: {error}", rebuild) from error
    return parse_manifest(text, root, rebuild=rebuild)


def parse_manifest(text: bytes, root: Path, *, rebuild: str | None) -> Manifest:
    """The manifest of a written bundle. root: names the bundle in errors. rebuild: their fix if `text` holds none.

    Raises BundleError for what is not JSON, as `Manifest.from_json`, and if it lists no files.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{root / MANIFEST} cannot be read: {error}", rebuild) from error
    try:
        manifest = Manifest.from_json(values)
    except BundleError as error:
        raise BundleError(f"{root}: {error.cause}", error.fix or rebuild) from error
    if not manifest.files:
        raise BundleError(f"{root}: {MANIFEST}: files is empty", manifest.rebuild or rebuild)
    return manifest


def pack_command(path: Path) -> str:
    """The command that writes the packed bundle `path` anew, where its bundle is."""
    return f"twins-trt export-to device BUNDLE --out {shlex.quote(path.name)} --overwrite"


def is_packed(path: Path) -> bool:
    """Whether `path` is a file whose name ends as a packed bundle's does."""
    return path.name.endswith(PACKED) and path.is_file()


def _check_file(root: Path, entry: FileEntry, field: str, rebuild: str, *, verify: bool) -> None:
    file = root / entry.path
    # A link could lead out of the bundle, and would not travel with it.
    if any((root / part).is_symlink() for part in _prefixes(entry.path)):
        raise BundleError(f"{root}: {field}.path is {entry.path}, which is a link, not a plain file", rebuild)
    if not file.is_file():
        raise BundleError(f"{root}: {field}.path is {entry.path}, which is missing", rebuild)
    try:
        size, sha256 = file.stat().st_size, entry.sha256
        if verify and size == entry.size:
            sha256 = sha256_of(file)
    except OSError as error:
        raise BundleError(f"{root}: {entry.path} cannot be read: {error}", rebuild) from error
    if size != entry.size:
        raise BundleError(f"{root}: {field}.size of {entry.path} is {entry.size}, the file has {size} bytes", rebuild)
    if sha256 != entry.sha256:
        raise BundleError(f"{root}: {field}.sha256 of {entry.path} is {entry.sha256}, the file has {sha256}", rebuild)


def _prefixes(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _files_below(root: Path) -> set[str]:
    files = set()
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        files |= {(Path(folder) / name).relative_to(root).as_posix() for name in (*names, *links)}
    return files


def check_place(target: Path, *, overwrite: bool) -> None:
    """Raises BundleError if no bundle may be written to the folder `target`."""
    if not target.name:
        raise BundleError(f"{target} is not a name for a bundle", "give a new folder, such as x.bundle")
    check_replaceable(target, marker=MANIFEST, otherwise="not a bundle", overwrite=overwrite)

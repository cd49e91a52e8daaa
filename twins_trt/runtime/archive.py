"""Packed bundles: a bundle as one tar file, for a device that gets its models over the air.

    road.tar: road.bundle/manifest.json, road.bundle/engines/..., road.bundle/graph.onnx

The manifest comes first, so that everything after it is checked as it arrives: the name, size and sha256 of each file.
The reader takes plain files in one folder and nothing else: no links, devices, folders, long names or extended headers,
which `tarfile` would follow. Same bundle, same bytes: names are sorted, nobody owns the files, and their time is the
bundle's. Source of the format: POSIX.1-1988, ustar.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, cast

from twins_trt.errors import BundleError, UsageError
from twins_trt.files import CHUNK, sha256_of, whole_file
from twins_trt.folders import hidden_folder
from twins_trt.runtime.bundle import (
    PACKED,
    Bundle,
    amend_bundle,
    is_packed,
    open_bundle,
    pack_command,
    parse_manifest,
    writing,
)
from twins_trt.runtime.manifest import GATE, MANIFEST, PACK, FileEntry, Manifest, safe_path
from twins_trt.spelling import spelled

LARGEST_MANIFEST = 16 << 20  # bytes; those of today have a few thousand

_BLOCK, _RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
_AGAIN = "copy it again, or write it again: {}"

log = logging.getLogger("twins_trt")


def seal(manifest: Manifest, files: Mapping[str, bytes | Path]) -> Manifest:
    """The manifest with its `files`: path below the bundle -> content, or the file that holds it. Raises OSError."""
    entries = []
    for name, content in sorted(files.items()):
        if isinstance(content, Path):
            entries.append(FileEntry(name, sha256_of(content), content.stat().st_size))
        else:
            entries.append(FileEntry(name, hashlib.sha256(content).hexdigest(), len(content)))
    return replace(manifest, files=tuple(entries))


def folder_name(path: Path) -> str:
    """The folder in the tar file `path`: `road.bundle` of `road.tar`, `road.tar.gz` and `road.bundle.tar`."""
    name = next((path.name[: -len(end)] for end in PACKED if path.name.endswith(end)), path.name)
    return f"{name.removesuffix('.bundle')}.bundle"


def holds_bundle(path: Path) -> bool:
    """Whether `path` is a packed bundle: by its name, which checkpoints have, too (`x.pth.tar`), and its beginning."""
    if not is_packed(path):
        return False
    try:
        with _opened(path):
            return True
    except BundleError:
        return False


def pack_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes | Path], *, overwrite: bool = False) -> None:
    """Writes a bundle as the tar file `path`, whole or not at all; compressed if the name ends in `gz`.

    manifest, files: see `seal`, which gave the manifest its `files`. overwrite: replace a packed bundle at `path`;
    nothing else is replaced. Raises UsageError for a name that no tar file can hold, BundleError if `path` exists, if a
    file is no longer what the manifest lists, or if the disk refuses.
    """
    check_archive_place(path, overwrite=overwrite)
    folder, text = folder_name(path), manifest.dumps().encode()
    time = _seconds(manifest.created)
    parts: list[tuple[bytes, FileEntry, bytes | Path]] = []
    for entry in (FileEntry(MANIFEST, hashlib.sha256(text).hexdigest(), len(text)), *manifest.files):
        content = text if entry.path == MANIFEST else files[entry.path]
        parts.append((_header(f"{folder}/{entry.path}", entry.size, time), entry, content))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file, _compressed(file, path, time) as out:
            for header, entry, content in parts:
                out.write(header)
                _write_content(out, entry, content)
            length = sum(_BLOCK + _padded(entry.size) for _, entry, _ in parts)
            out.write(bytes(2 * _BLOCK + -(length + 2 * _BLOCK) % _RECORD))
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error}") from error


def check_archive_place(path: Path, *, overwrite: bool) -> None:
    """Raises BundleError if no packed bundle may be written to the file `path`, UsageError for a bad name."""
    folder = folder_name(path)
    if not _plain(folder):
        raise UsageError(f"{path.name!r} is no name for a packed bundle", "give one such as road.tar")
    if not os.path.lexists(path):
        return
    try:
        with _opened(path):
            pass
    except BundleError as error:
        raise BundleError(
            f"{path} exists and is no packed bundle, so it is not overwritten", "choose another name"
        ) from error
    if not overwrite:
        raise BundleError(f"{path} exists", f"choose another name, or replace it: {spelled('overwrite', True)}")


def unpack_bundle(tar: str | Path, *, into: str | Path | None = None, overwrite: bool = False) -> Path:
    """Unpacks a packed bundle, verified and whole or not at all, and returns the bundle's folder.

    into: that folder; None for the folder named in the tar file, beside it (`road.tar` holds `road.bundle`). It is
    written as `write_bundle` writes one: a reader, also after a kill or a power cut, finds the old bundle or the new.

    A bundle of the same graph and classes that is already there stays, also with `overwrite`, and with it the engines,
    the verdict and the profile that this device made. What it lacks is added to it from the tar file (graph, engines,
    `gate.pack`), and another `gate.pack` takes the place of its own. So unpacking twice changes nothing. overwrite:
    replace a bundle of another graph, in one step. Anything else at `into` is never replaced.

    Raises BundleError if it is cut short or holds anything but what its manifest lists (a link, a folder, a file twice,
    one with another size or sha256), if the disk has no room for it or refuses, and if another bundle is there.
    """
    source = Path(tar)
    with _opened(source) as arriving:
        target = source.with_name(arriving.folder) if into is None else Path(into)
        present = _present(target, arriving, overwrite=overwrite)
        if present is not None:
            _add(present, arriving)
            return target
        if not os.access(_nearest_folder(target), os.W_OK):
            raise BundleError(
                f"{source} cannot be unpacked to {target}: nothing can be written there",
                "copy it to a folder that can be written to",
            )
        try:
            with writing(target, overwrite=overwrite) as staging:
                arriving.extract(staging)
        except BundleError:
            if overwrite or not _is_bundle(target):
                raise
        else:
            return target
    return unpack_bundle(source, into=target)  # another process has unpacked one there meanwhile


def _present(target: Path, arriving: _Arriving, *, overwrite: bool) -> Bundle | None:
    """The bundle in `target` if it is of the same graph; None if there is none, or if it is to be replaced.

    Raises BundleError if it is damaged or of another graph, and not to be replaced.
    """
    if not _is_bundle(target):
        return None
    fix = f"replace it: {spelled('overwrite', True)}"
    try:
        there = open_bundle(target)
    except BundleError as error:
        if overwrite:
            return None
        raise BundleError(error.cause, fix) from error
    here = arriving.manifest
    if (there.manifest.graph_sha256, there.interface) == (here.graph_sha256, here.interface):
        return there
    if overwrite:
        return None
    raise BundleError(f"{target} is there already, with another graph than {arriving.path} has", fix)


def _nearest_folder(path: Path) -> Path:
    """The folder above `path` that is there already."""
    return next(folder for folder in path.absolute().parents if folder.exists())


def _is_bundle(target: Path) -> bool:
    return not target.is_symlink() and (target / MANIFEST).is_file()


def _add(bundle: Bundle, arriving: _Arriving) -> None:
    """Adds the files that `bundle` lacks, and another gate pack."""
    here = {entry.path: entry for entry in bundle.manifest.files}
    new = {
        entry.path
        for entry in arriving.manifest.files
        if entry.path not in here or (entry.path == PACK and here[entry.path] != entry)
    }
    if not new:
        log.info("%s holds the same graph already and stays as it is", bundle.path)
        return
    log.info("%s holds the same graph already; it gets %s", bundle.path, ", ".join(sorted(new)))

    def change(manifest: Manifest) -> Manifest:
        engines = tuple(engine for engine in arriving.manifest.engines if engine.file in new)
        return replace(
            manifest,
            engines=(*manifest.engines, *engines),
            awaits=tuple(each for each in manifest.awaits if not any(e.runs_on(each.target) for e in engines)),
            left_behind=tuple(entry for entry in manifest.left_behind if entry.path not in new),
            gate=arriving.manifest.gate if GATE in new else manifest.gate,
            files=(),  # are listed anew
        )

    try:
        with hidden_folder(bundle.path) as folder:
            arriving.extract(folder)
            amend_bundle(bundle, {name: folder / name for name in new}, change=change)
    except OSError as error:
        raise BundleError(f"{bundle.path} cannot be written: {error}") from error


@dataclass(frozen=True)
class _Arriving:
    """A tar file whose manifest has been read; its files come next. folder: that it holds. text: of the manifest."""

    path: Path
    stream: BinaryIO
    folder: str
    text: bytes
    manifest: Manifest

    def extract(self, into: Path) -> None:
        """Writes all files into the empty folder `into`, each checked. Raises BundleError and OSError."""
        size = len(self.text) + sum(entry.size for entry in self.manifest.files)
        if (free := shutil.disk_usage(into).free) < size:
            raise BundleError(
                f"{self.path} holds {size / 1e6:.1f} MB, and the disk of {into.parent} has {free / 1e6:.1f} MB left",
                "make room there",
            )
        missing = {f"{self.folder}/{entry.path}": entry for entry in self.manifest.files}
        while (member := _next(self.stream, self.path)) is not None:
            entry = missing.pop(member.name, None)
            if entry is None:
                raise _refused(self.path, f"holds {member.name!r}, which {MANIFEST} does not list or which comes twice")
            if member.size != entry.size:
                raise _refused(self.path, f"holds {member.size} bytes of {member.name}, not {entry.size}")
            self._extract(entry, into / entry.path)
        if missing:
            raise _refused(self.path, f"lacks {min(missing)}")
        with (into / MANIFEST).open("xb") as out:
            _finish(out, self.text)

    def _extract(self, entry: FileEntry, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with place.open("xb") as out:
            left = entry.size
            while left:
                chunk = _exactly(self.stream, min(CHUNK, left), self.path)
                digest.update(chunk)
                out.write(chunk)
                left -= len(chunk)
            _finish(out)
        _exactly(self.stream, -entry.size % _BLOCK, self.path)
        if digest.hexdigest() != entry.sha256:
            raise _refused(
                self.path, f"holds {entry.path} with the sha256 {digest.hexdigest()}, which should be {entry.sha256}"
            )


@contextmanager
def _opened(path: Path) -> Iterator[_Arriving]:
    """A tar file, read up to its manifest. Raises BundleError if it does not begin with one, or cannot be read."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    with file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file as stream:
            first = _next(stream, path)
            folder = "" if first is None else first.name.partition("/")[0]
            if first is None or first.name != f"{folder}/{MANIFEST}" or not _plain(folder):
                raise _refused(path, f"does not begin with the {MANIFEST} of a folder NAME.bundle")
            if first.size > LARGEST_MANIFEST:
                raise _refused(path, f"has a {MANIFEST} of {first.size} bytes")
            text = _exactly(stream, first.size, path)
            _exactly(stream, -first.size % _BLOCK, path)
            manifest = parse_manifest(text, path / folder, rebuild=_AGAIN.format(pack_command(path)))
            yield _Arriving(path, stream, folder, text, manifest)


def _next(stream: BinaryIO, path: Path) -> tarfile.TarInfo | None:
    """The header of the next file; None at the end. Raises BundleError for anything that is not a plain file."""
    block = _exactly(stream, _BLOCK, path)
    if not any(block):
        rest = _read(stream, _RECORD + 1, path)  # one more block of zeros, and up to a whole record
        if any(rest) or not _BLOCK <= len(rest) <= _RECORD:
            raise _refused(path, "goes on after its end")
        return None
    try:
        member = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.TarError, ValueError) as error:
        raise _refused(path, f"is damaged or no tar file ({error})") from error
    if member.type != tarfile.REGTYPE:
        raise _refused(path, f"holds {member.name!r}, which is no plain file (type {member.type!r})")
    if member.size < 0:
        raise _refused(path, f"holds {member.size} bytes of {member.name!r}")
    return member


def _exactly(stream: BinaryIO, size: int, path: Path) -> bytes:
    data = _read(stream, size, path)
    if len(data) != size:
        raise _refused(path, "ends early")
    return data


def _read(stream: BinaryIO, size: int, path: Path) -> bytes:
    try:
        return stream.read(size)
    except EOFError as error:
        raise _refused(path, "ends early") from error
    except (OSError, zlib.error) as error:  # gzip's own errors are OSErrors
        raise _refused(path, f"cannot be read: {error}") from error


def _refused(path: Path, fault: str) -> BundleError:
    return BundleError(f"{path} {fault}", _AGAIN.format(pack_command(path)))


def _plain(folder: str) -> bool:
    """Whether `folder` is one that this module writes: `NAME.bundle`, neither hidden nor like an option."""
    plain = safe_path(folder) and "/" not in folder and folder.isprintable()
    return plain and folder.endswith(".bundle") and folder[0] not in ".-"


def _header(name: str, size: int, time: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, time, 0o644
    try:
        return member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except ValueError as error:
        raise UsageError(f"no tar file can hold {name!r}: {error}", "give a shorter name") from error


def _seconds(created: str) -> int:
    """Seconds since 1970 of a manifest's `created`; 0 if it is no time."""
    try:
        return max(0, int(datetime.fromisoformat(created).timestamp()))
    except (ValueError, OverflowError):
        return 0


@contextmanager
def _compressed(file: BinaryIO, path: Path, time: int) -> Iterator[BinaryIO]:
    if not path.name.endswith("gz"):
        yield file
        return
    # Without a file name in it, which would be the one of the partial file.
    with gzip.GzipFile("", "wb", 6, file, mtime=time) as out:
        yield cast(BinaryIO, out)


def _write_content(out: BinaryIO, entry: FileEntry, content: bytes | Path) -> None:
    digest, size = hashlib.sha256(), 0
    with content.open("rb") if isinstance(content, Path) else _bytes(content) as source:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            out.write(chunk)
    if (digest.hexdigest(), size) != (entry.sha256, entry.size):
        raise BundleError(f"{content if isinstance(content, Path) else entry.path} has changed meanwhile", "try again")
    out.write(bytes(-size % _BLOCK))


def _bytes(content: bytes) -> BinaryIO:
    return io.BytesIO(content)


def _padded(size: int) -> int:
    return size + -size % _BLOCK


def _finish(out: BinaryIO, content: bytes = b"") -> None:
    """Writes the rest and waits until the disk has it: a rename may reach the disk before the data it names."""
    out.write(content)
    out.flush()
    os.fsync(out.fileno())

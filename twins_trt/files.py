"""Files that several processes may use at once: written whole or not at all, locked, and identified by sha256."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20
"""Bytes read at a time."""

log = logging.getLogger("twins_trt")


@contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A new binary file that replaces `path` when the block ends, and is removed if the block raises.

    Until then it is a hidden file beside `path`, so a reader of `path` sees the old content or the new. durable: wait
    until the disk has its name and content, so that this is true even after a power cut. Raises OSError as writing and
    renaming do.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with part.open("xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())  # a rename may reach the disk before the data it names
        os.replace(part, path)
        if durable:
            sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Waits until the disk has the names in a folder, if the system can do that. Raises OSError."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows, or a folder without permission to list it
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot do it for folders
            raise
    finally:
        os.close(descriptor)


def write_hashed(path: Path, content: bytes | Path) -> tuple[str, int]:
    """Writes the new file `path` and its folders. content: its bytes, or the file to copy.

    Returns its sha256 as 64 hex digits and its size in bytes, once the disk has it. Raises OSError, also if it exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as out:
        for chunk in _chunks(content):
            digest.update(chunk)
            out.write(chunk)
            size += len(chunk)
        out.flush()
        os.fsync(out.fileno())  # a rename may reach the disk before the data it names
    return digest.hexdigest(), size


def _chunks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, Path):
        with content.open("rb") as source:
            while chunk := source.read(CHUNK):
                yield chunk
    else:
        yield content


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file as 64 hex digits. Raises OSError if it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def locked(path: Path, *, waiting: str | None = None) -> Iterator[None]:
    """Holds the advisory lock on `path`, in the file `path`.lock. waiting: is logged if another process holds it.

    The lock's file stays, because removing it could let two processes in. On a platform without flock nothing is
    locked.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path.with_name(path.name + ".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                log.info(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

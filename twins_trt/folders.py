"""Folders that several processes may want at once: written whole or not at all, replaced in one step, and locked.

Beside a folder NAME there may lie, while it is written, the hidden `.NAME.<hex>.partial`: what is not yet at NAME, or
no longer. Where two folders cannot change names in one step there may also be `.NAME.<hex>.old`, which is always whole.
What a process that was killed leaves of these is brought back (`restore`), or removed by the next that writes NAME; the
lock on each tells whose process still lives.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from twins_trt.errors import BundleError
from twins_trt.exchange import exchange, rename_new
from twins_trt.files import sync_folder
from twins_trt.spelling import spelled

_GRACE_S = 1.0  # more than two renames take; for where nothing can be locked

log = logging.getLogger("twins_trt")


@contextmanager
def whole_folder(path: Path, *, replace: Callable[[], None] | None = None) -> Iterator[Path]:
    """A new folder that is at `path` when the block ends, and vanishes when it raises.

    It is a hidden sibling until then. replace: called before what is at `path` gives way, and raises where it may not;
    None where nothing may. A folder that gives way is locked meanwhile (`held`): who replaces it next finds what this
    one has made of it. A reader finds the old or the new; where the system cannot exchange folders there is a moment of
    neither, see `restore`. Raises FileExistsError where something is at `path` and may not be replaced, OSError as
    making and renaming do, and what `replace` raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    restore(path)
    with ExitStack() as locks:
        owned = False
        if replace is not None:
            with suppress(FileNotFoundError, NotADirectoryError):
                locks.enter_context(held(path))
                owned = True
        _sweep(path)
        with _staging(path) as staging:
            yield staging
            for folder, _, _ in os.walk(staging):
                sync_folder(Path(folder))
            try:
                rename_new(staging, path)
            except FileExistsError:
                if replace is None:
                    raise
                replace()
                if not owned:  # it has come meanwhile
                    locks.enter_context(held(path))
                    replace()
                _swap(staging, path)
            sync_folder(path.parent)


def check_replaceable(path: Path, *, marker: str, otherwise: str, overwrite: bool) -> None:
    """Raises BundleError if something is at `path` and must not be replaced.

    It is replaced with `overwrite` alone, and only if it is a folder with the file `marker`. otherwise: what an error
    calls anything else, as in `not a bundle`.
    """
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise BundleError(f"{path} exists", f"choose another name, or replace it: {spelled('overwrite', True)}")
    if path.is_symlink() or not (path / marker).is_file():
        raise BundleError(f"{path} exists and is {otherwise}, so it is not overwritten", "choose another name")


@contextmanager
def held(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds the advisory lock on a folder itself, which leaves no file behind. Yields whether there is such a lock: not
    on a platform without flock, nor on file systems that refuse it.

    The lock goes with the folder, not with its name: what takes its place has its own. wait: until whoever holds it is
    done; else BlockingIOError is raised. Raises FileNotFoundError where there is no folder, also after a wait.
    """
    descriptor = _lock(folder, wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _unlock(descriptor)


def restore(path: Path) -> bool:
    """Whether `path` is missing because it was about to be replaced, by two renames.

    If so it is there afterwards: the new one, after a wait, or the old one where the process was killed between the
    two. Raises OSError where it cannot be renamed back.
    """
    if os.path.lexists(path):
        return False
    left = _siblings(path, "old")
    for old in left:
        with suppress(FileNotFoundError), held(old) as locked:
            if not locked:
                time.sleep(_GRACE_S)
            with suppress(FileExistsError):
                rename_new(old, path)
                sync_folder(path.parent)
                log.warning("%s was about to be replaced by a process that was killed: the old one is back", path)
    return bool(left)


def _lock(folder: Path, wait: bool) -> int | None:
    """A descriptor that holds the lock on what is at `folder` once it has it."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            if not restore(folder) and not os.path.lexists(folder):
                raise
            continue
        mine = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine = os.path.samestat(os.stat(folder), os.fstat(descriptor))
        except FileNotFoundError:  # it went while this waited; what has its name now, if anything, has another lock
            continue
        except BlockingIOError:
            raise
        except OSError:  # NFS, which locks only what is open for writing, and others
            return None
        finally:
            if not mine:
                os.close(descriptor)
        if mine:
            return descriptor


def _unlock(descriptor: int) -> None:
    import fcntl

    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may have it open as well
    os.close(descriptor)


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """A new, locked folder beside `path`. What bears its name at the end is removed: itself, or what it replaced."""
    with ExitStack() as lock:
        while True:
            staging = _sibling(path, "partial")
            try:
                staging.mkdir()
                lock.enter_context(held(staging))
                break
            except FileNotFoundError:  # swept away before it was locked
                continue
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _swap(staging: Path, path: Path) -> None:
    """Puts `staging` in the place of `path`, and what was there in its own."""
    if exchange(staging, path):
        return
    old = _sibling(path, "old")
    os.rename(path, old)
    try:
        rename_new(staging, path)
    except BaseException:
        with suppress(FileExistsError):
            rename_new(old, path)
        raise
    os.rename(old, staging)  # whatever is called .old is whole, so it is not removed under that name


def _sweep(path: Path) -> None:
    """Removes what writers of `path` that were killed have left. Nothing where no lock tells who still lives."""
    for kind in ("partial", "old"):
        for folder in _siblings(path, kind):
            with suppress(OSError), held(folder, wait=False) as locked:
                if not locked or (kind == "old" and not os.path.lexists(path)):
                    continue
                if kind == "old":
                    folder = folder.rename(_sibling(path, "partial"))
                shutil.rmtree(folder, ignore_errors=True)


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}")


def _siblings(path: Path, kind: str) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.{kind}")
    try:
        return [child for child in path.parent.iterdir() if pattern.fullmatch(child.name)]
    except OSError:  # no such folder, or none to list
        return []

"""Folders that several processes may use at once: written whole or not at all, replaced in one step, and locked.

While a folder NAME is written, the hidden folder `.NAME.<hex>.partial` lies beside it. It holds what is not yet at
NAME, or no longer. If the system cannot exchange two folders in one step, there may also be `.NAME.<hex>.old`, which is
always whole. A killed process leaves such folders behind. `restore` brings back an old folder, and the next writer of
NAME removes the others. The lock on each folder tells whether its process still runs.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from twins_trt.errors import BundleError
from twins_trt.exchange import exchange, rename_new
from twins_trt.files import locked, sync_folder, whole_file
from twins_trt.spelling import spelled

_GRACE_S = 1.0  # longer than two renames take; used if nothing can be locked

log = logging.getLogger("twins_trt")


@contextmanager
def whole_folder(path: Path, *, replace: Callable[[], None] | None = None) -> Iterator[Path]:
    """A new folder that is at `path` when the block ends, and is removed if the block raises.

    Until then it is a hidden folder beside `path`. replace: called before a folder at `path` is replaced; it raises if
    that is not allowed. None: nothing is replaced. A folder that is replaced is locked meanwhile (`held`), so that
    writers replace it one after another. A reader finds the old folder or the new one. If the system cannot exchange
    folders, there is a moment without either, see `restore`. Raises FileExistsError if something is at `path` and is
    not to be replaced, OSError as making and renaming do, and the errors of `replace`.
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
        with hidden_folder(path) as staging:
            yield staging
            for folder, _, _ in os.walk(staging):
                sync_folder(Path(folder))
            try:
                rename_new(staging, path)
            except FileExistsError:
                if replace is None:
                    raise
                replace()
                if not owned:  # it has appeared meanwhile
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
    if path.is_symlink() or not (path / marker).is_file():
        raise BundleError(f"{path} exists and is {otherwise}, so it is not overwritten", "choose another name")
    if not overwrite:
        raise BundleError(f"{path} exists", f"choose another name, or replace it: {spelled('overwrite', True)}")


@contextmanager
def held(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds the advisory lock on a folder itself, without a lock file. Yields whether it is locked: it is not on a
    platform without flock, or on a file system that refuses it.

    The lock belongs to the folder and not to its name: a folder that replaces it has a lock of its own. wait: wait for
    another holder instead of raising BlockingIOError. Raises FileNotFoundError if there is no folder, also after a
    wait.
    """
    descriptor = _lock(folder, wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _unlock(descriptor)


HOLDER = "holder.json"
"""In a work folder: which process works in it."""


def take_work_folder(folder: Path, lock: ExitStack, *, busy: Callable[[BlockingIOError], None]) -> None:
    """Makes a work folder and locks it until `lock` ends. A process that is done removes its folder before that.

    busy: called whenever another process works in the folder; it raises, or returns after a wait. Raises OSError if
    the folder cannot be made.
    """
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not lock.enter_context(held(folder, wait=False)):  # NFS, which locks only what is open for writing
                lock.enter_context(locked(folder, waiting=f"{folder} is in use: waiting until it is free"))
                folder.mkdir(exist_ok=True)  # the process that held it has removed it
            return
        except (FileNotFoundError, FileExistsError):  # the process that held it removed it between two calls here
            if os.path.lexists(folder) and not folder.is_dir():
                raise
        except BlockingIOError as error:
            busy(error)


def sign_work_folder(folder: Path) -> None:
    """Writes into a work folder that is locked which process works in it."""
    holder = {"pid": os.getpid(), "since": datetime.now(timezone.utc).isoformat(" ", "seconds")}
    with whole_file(folder / HOLDER, durable=False) as file:
        file.write((json.dumps(holder) + "\n").encode())


def work_folder_holder(folder: Path) -> str:
    """The process that works in a folder, `process 12, since 2026-01-31 12:00:00+00:00`; empty if it has just begun,
    and has not signed yet."""
    try:
        holder = json.loads((folder / HOLDER).read_bytes())
        return f"process {holder['pid']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def restore(path: Path) -> bool:
    """Brings back a folder that is missing because it is being replaced by two renames. Returns whether it was.

    Afterwards `path` is the new folder, after a wait, or the old one if the process was killed between the two renames.
    Raises OSError if the old folder cannot be renamed back.
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
    """A descriptor that holds the lock on the folder that is at `folder` at that time; None if it cannot be locked."""
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
        except FileNotFoundError:  # it was removed during the wait; a new folder has another lock
            continue
        except BlockingIOError:
            raise
        except OSError:  # NFS, for example, locks only what is open for writing
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
def hidden_folder(path: Path) -> Iterator[Path]:
    """A new, hidden, locked folder beside `path`.

    At the end the folder that has its name by then is removed. If the process is killed, the next writer of `path`
    removes it.
    """
    with ExitStack() as lock:
        while True:
            staging = _sibling(path, "partial")
            try:
                staging.mkdir()
                lock.enter_context(held(staging))
                break
            except FileNotFoundError:  # removed by `_sweep` before it was locked
                continue
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _swap(staging: Path, path: Path) -> None:
    """Gives `staging` the name of `path`, and the folder there the name of `staging`."""
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
    os.rename(old, staging)  # a folder called .old is always whole, so it is renamed before it is removed


def _sweep(path: Path) -> None:
    """Removes the folders that killed writers of `path` have left, if locks tell that these writers have ended."""
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

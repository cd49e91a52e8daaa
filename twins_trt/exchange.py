"""Two renames that `os.rename` cannot do: exchange two folders, and rename only to a name that is free.

Both use Linux's renameat2 (man 2 rename), which few file systems lack.
"""

from __future__ import annotations

import errno
import functools
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

_AT_FDCWD, _NOREPLACE, _EXCHANGE = -100, 1, 2
_SYSCALL = {"x86_64": 316, "aarch64": 276}  # for a C library older than the call
# The errors of kernels and file systems without it. Old container runtimes answer EPERM to an unknown call.
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def exchange(first: Path, second: Path) -> bool:
    """Exchanges the names of two folders in one step. Returns False if the system or file system cannot do that.

    Raises OSError as renaming does.
    """
    return _renameat2(first, second, _EXCHANGE)


def rename_new(source: Path, target: Path) -> None:
    """Renames to a name that is free. Raises FileExistsError if it is taken, OSError as renaming does."""
    if _renameat2(source, target, _NOREPLACE):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    call = _system_call()
    if call is None:
        return False
    number = call(os.fsencode(source), os.fsencode(target), flags)
    if number in _UNKNOWN:
        return False
    if number:
        raise OSError(number, os.strerror(number), str(source), None, str(target))
    return True


@functools.cache
def _system_call() -> Callable[[bytes, bytes, int], int] | None:
    """The system call, which returns an error number or 0; None if there is no such call."""
    if sys.platform != "linux":
        return None
    import ctypes

    try:
        library = ctypes.CDLL(None, use_errno=True)
    except OSError:
        return None
    at = ctypes.c_long(_AT_FDCWD)  # `syscall` takes longs, and a long also serves as an int
    try:
        rename = functools.partial(library.renameat2, at)
    except AttributeError:
        if platform.machine() not in _SYSCALL:
            return None
        rename = functools.partial(library.syscall, ctypes.c_long(_SYSCALL[platform.machine()]), at)

    def call(source: bytes, target: bytes, flags: int) -> int:
        return ctypes.get_errno() if rename(source, at, target, ctypes.c_long(flags)) else 0

    return call

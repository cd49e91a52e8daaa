"""Inert stand-ins for other objects in old checkpoints' pickles, so that `weights_only=True` loads them.

mmengine's checkpoints hold `HistoryBuffer` objects (numpy arrays, and `getattr` calls for its statistics methods),
mmcv's hold numpy scalars, DeiT-style ones an `argparse.Namespace`. Nobody needs them, and the packages may be absent.
Each name therefore stands for a class here that remembers bytes or nothing. A checkpoint makes this code look up no
attribute, import nothing and call nothing.

torch 2.4 keys its allow-list by `__module__` and `__name__`; 2.5 and later also take (object, name) pairs. The
stand-ins carry the foreign module and name, which every version from 2.4 on reads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_LOCK = threading.RLock()


class Forgotten:
    """Takes any arguments and any state, and keeps neither."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class StoredDtype:
    """A pickled numpy.dtype: a type string, and a byte order in the state."""

    def __init__(self, code: object = None, *flags: object) -> None:
        self.code = code if isinstance(code, str) else ""
        self.big_endian = False

    def __setstate__(self, state: object) -> None:
        self.big_endian = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"

    def resolve(self) -> np.dtype | None:
        """The numpy dtype; None for any that is not of plain numbers or text."""
        try:
            dtype = np.dtype(self.code).newbyteorder(">" if self.big_endian else "<")
        except (TypeError, ValueError):
            return None
        return dtype if dtype.kind in "biufUS" and dtype.itemsize else None


class StoredArray:
    """A pickled numpy.ndarray: `_reconstruct(...)`, then (version, shape, dtype, is_fortran, bytes)."""

    def __init__(self, *arguments: object) -> None:
        self.state: tuple = ()

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, tuple) else ()

    def plain(self) -> list | None:
        """The array as nested lists; None unless it holds plain numbers or text."""
        if len(self.state) != 5:
            return None
        _, shape, dtype, fortran, data = self.state
        resolved = dtype.resolve() if isinstance(dtype, StoredDtype) else None
        if resolved is None or not isinstance(data, bytes):
            return None
        try:
            return np.frombuffer(data, resolved).reshape(shape, order="F" if fortran else "C").tolist()
        except (TypeError, ValueError):
            return None


class StoredScalar:
    """A pickled numpy scalar: `scalar(dtype, bytes)`."""

    def __init__(self, dtype: object = None, data: object = b"", *rest: object) -> None:
        self.dtype = dtype
        self.data = data

    def plain(self) -> Any:
        """The scalar as a Python value; None unless it is a plain number or text."""
        resolved = self.dtype.resolve() if isinstance(self.dtype, StoredDtype) else None
        if resolved is None or not isinstance(self.data, bytes) or len(self.data) != resolved.itemsize:
            return None
        return np.frombuffer(self.data, resolved)[0].item()


def _named(base: type, *names: str) -> list[type]:
    """One subclass of `base` for each dotted name, carrying that name."""
    split = [name.rpartition(".") for name in names]
    return [type(name, (base,), {"__module__": module, "__qualname__": name}) for module, _, name in split]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes as protocol 2 spells them. Takes latin1 alone, which pickle writes: it must look up no codec by name."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in a pickle are latin1, not {encoding!r}")
    return text.encode("latin1")


_encode.__module__, _encode.__name__, _encode.__qualname__ = "_codecs", "encode", "encode"

STAND_INS: tuple[Any, ...] = (
    *_named(
        Forgotten,
        "mmengine.logging.history_buffer.HistoryBuffer",
        "mmengine.logging.HistoryBuffer",
        "builtins.getattr",
        "numpy.ndarray",
        "argparse.Namespace",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
    ),
    *_named(StoredDtype, "numpy.dtype"),
    *_named(StoredArray, "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    *_named(StoredScalar, "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    _encode,
)
"""What `torch.load(weights_only=True)` may make while a checkpoint is read, beside tensors."""


def _dotted(entry: Any) -> str:
    return entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"


_OURS = {_dotted(entry) for entry in STAND_INS}


@contextmanager
def stand_ins_allowed() -> Iterator[None]:
    """Adds the stand-ins to torch's process-wide allow-list, and takes off exactly these afterwards.

    The caller's own entries of the same names, such as numpy's real ones, are off the list meanwhile: they and the
    stand-ins would not fit together. `torch.serialization.safe_globals` would do, but torch 2.4 lacks it.
    """
    with _LOCK:
        before = torch.serialization.get_safe_globals()
        aside = [entry for entry in before if _dotted(entry) in _OURS]
        _set_allowed([entry for entry in before if entry not in aside] + list(STAND_INS))
        try:
            yield
        finally:
            now = torch.serialization.get_safe_globals()  # other threads may have added theirs
            _set_allowed([entry for entry in now if entry not in STAND_INS] + aside)


def _set_allowed(entries: list[Any]) -> None:
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(entries)


def plain(value: object) -> Any:
    """`value` as JSON types: mappings, lists, text, numbers, booleans and None. Anything else in it is left out.

    Tuples become lists, numpy's stand-ins become lists and numbers, keys become text.
    """
    return None if (kept := _plain(value)) is _DROPPED else kept


_DROPPED = object()


def _plain(value: object) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (StoredArray, StoredScalar)):
        plain = value.plain()
        return _DROPPED if plain is None else plain
    if isinstance(value, Mapping):
        pairs = {str(key): _plain(item) for key, item in value.items() if isinstance(key, (str, int, float, bool))}
        return {key: item for key, item in pairs.items() if item is not _DROPPED}
    if isinstance(value, (list, tuple)):
        return [kept for item in value if (kept := _plain(item)) is not _DROPPED]
    return _DROPPED

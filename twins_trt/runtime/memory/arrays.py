"""Arrays on a GPU: of other libraries, with `__dlpack__` or `__cuda_array_interface__`, and ours, with the latter.

DLPack is preferred, because its producer gets the consumer's stream and keeps the order of the work. PyTorch's
`__cuda_array_interface__` does not name a stream.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twins_trt.errors import UsageError

_CUDA = 2  # DLDeviceType kDLCUDA
_DLPACK_DTYPES = {(1, 8): "uint8", (0, 32): "int32", (0, 64): "int64", (2, 16): "float16", (2, 32): "float32"}
_TYPESTRS = {"|u1": "uint8", "<i4": "int32", "<i8": "int64", "<f2": "float16", "<f4": "float32"}
_BYTES = {"uint8": 1, "int32": 4, "int64": 8, "float16": 2, "float32": 4}


class _DLTensor(ctypes.Structure):
    """DLTensor of dlpack.h, and the beginning of DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("vector_size", ctypes.c_uint16),  # "lanes" in dlpack.h
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class DeviceView:
    """C-contiguous memory on the GPU that belongs to another library.

    stream: the owner's stream, to wait for before use; None if the owner takes care of the order or names no stream.
    keep: an object that has to live as long as the memory is used.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    stream: int | None
    keep: Any


class DeviceArray:
    """An array on the GPU, for anything that takes `__cuda_array_interface__`: `torch.as_tensor(x, device="cuda")`,
    `cupy.asarray(x)`, `numba.cuda.as_cuda_array(x)`.

    address, shape, dtype: of its C-contiguous memory. stream: the stream whose work fills it; None if it is complete.
    The memory goes back to the engine with the object. A later result may lie there, written after the work that
    `stream` has at that moment: other streams that read the array must be waited for by then. A stream that was given
    as a number must live as long as the array. Without a stream, the memory is not used again before all readers are
    done. An array that outlives its engine stays valid.

    free: called when the object goes.
    """

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: str, *, stream: int | None, free: Callable[[], None]
    ) -> None:
        self.address, self.shape, self.dtype, self.stream = address, shape, dtype, stream
        self._free: Callable[[], None] | None = free

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        typestr = next(text for text, name in _TYPESTRS.items() if name == self.dtype)
        return {
            "shape": self.shape,
            "typestr": typestr,
            "data": (self.address, False),
            "version": 3,
            "strides": None,
            "stream": 1 if self.stream == 0 else self.stream,  # version 3 has no 0: the legacy default stream is 1
        }

    def __del__(self) -> None:
        free, self._free = self._free, None
        if free is not None and not sys.is_finalizing():  # a process that ends gives everything back
            free()


def size_of(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a C-contiguous array."""
    return math.prod(shape) * _BYTES[dtype]


def on_device(value: Any) -> bool:
    """Whether `value` says that it is an array on a CUDA GPU."""
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[0]) == _CUDA
    return hasattr(value, "__cuda_array_interface__")


def view(value: Any, *, stream: int, what: str) -> DeviceView:
    """The memory of an array on the GPU, for use on `stream`, which a DLPack producer is told.

    what: the array's name in errors. Raises UsageError for an array that is not on the first GPU, not C-contiguous, or
    of a dtype that graphs do not have.
    """
    if hasattr(value, "__dlpack_device__"):
        memory, strides = _from_dlpack(value, stream, what)
    elif hasattr(value, "__cuda_array_interface__"):
        memory, strides = _from_interface(value, what)
    else:
        raise UsageError(f"{what} is a {type(value).__name__}, not an array on a GPU")
    expected = [math.prod(memory.shape[axis + 1 :]) for axis in range(len(memory.shape))]
    pairs = zip(strides or expected, expected, memory.shape, strict=True)
    if any(given != wanted for given, wanted, extent in pairs if extent > 1):
        raise UsageError(f"{what} is not C-contiguous", "make it so, as torch's contiguous() does")
    return memory


def stream_handle(stream: Any) -> int:
    """The CUDA handle of a stream: a number, or an object of PyTorch, CuPy, Numba, pycuda or cuda.core.

    Raises UsageError for anything else.
    """
    if isinstance(stream, int):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        return int((protocol() if callable(protocol) else protocol)[1])
    for name in ("cuda_stream", "ptr", "handle"):
        if hasattr(stream, name):
            handle = getattr(stream, name)
            return int(getattr(handle, "value", handle) or 0)
    raise UsageError(f"a {type(stream).__name__} is not a CUDA stream", "give its handle, a number")


def _from_dlpack(value: Any, stream: int, what: str) -> tuple[DeviceView, list[int] | None]:
    device_type, device_id = map(int, value.__dlpack_device__())
    _check_device(device_type == _CUDA, device_id, what)
    capsule = value.__dlpack__(stream=stream)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    # Not renamed to "used_dltensor": so the capsule stays the owner, and frees the tensor when we let go of it.
    tensor = _DLTensor.from_address(pointer(capsule, b"dltensor"))
    dtype = _DLPACK_DTYPES.get((tensor.code, tensor.bits)) if tensor.vector_size == 1 else None
    if dtype is None:
        raise UsageError(
            f"{what} has the DLPack type ({tensor.code}, {tensor.bits}, {tensor.vector_size})", _dtype_fix()
        )
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = list(tensor.strides[: tensor.ndim]) if tensor.strides else None
    return DeviceView((tensor.data or 0) + tensor.byte_offset, shape, dtype, None, capsule), strides


def _from_interface(value: Any, what: str) -> tuple[DeviceView, list[int] | None]:
    interface = value.__cuda_array_interface__
    dtype = _TYPESTRS.get(interface["typestr"].replace("=", "<"))
    if dtype is None:
        raise UsageError(f"{what} has the type {interface['typestr']!r}", _dtype_fix())
    strides = interface.get("strides")
    steps = None if strides is None else [step // _BYTES[dtype] for step in strides]
    view = DeviceView(interface["data"][0], tuple(interface["shape"]), dtype, interface.get("stream"), value)
    return view, steps


def _check_device(cuda: bool, index: int, what: str) -> None:
    if not cuda:
        raise UsageError(f"{what} is not on a CUDA GPU")
    if index != 0:
        raise UsageError(f"{what} is on GPU {index}, the engine on GPU 0", "choose the GPU with CUDA_VISIBLE_DEVICES")


def _dtype_fix() -> str:
    return f"use {', '.join(_BYTES)}"

"""One kernel as it is compiled. Launches, the cross-compilation check and the cubins for C++ use the same one."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

DTYPES = {"fp32": "torch.float32", "fp16": "torch.float16", "bf16": "torch.bfloat16"}
"""Triton's names of the dtypes that kernels are made for."""


@functools.cache
def dtype_name(dtype: object) -> str:
    """Triton's name of a torch dtype: `fp16` for torch.float16."""
    return next(name for name, value in DTYPES.items() if value == str(dtype))


@dataclass(frozen=True)
class Tiling:
    """How one kernel is cut up: its constants, `num_warps` (32 threads each) and `num_stages` (blocks loaded ahead).

    max_registers: how many registers of a thread the compiler may use; None leaves that to the compiler.
    """

    constants: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of a launch, made once: launches read them, and change nothing.

        They set multiply-add fusion, whose default is not the same everywhere.
        """
        return {**dict(self.constants), **self.compile_options()}

    def compile_options(self) -> dict[str, Any]:
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        return options if self.max_registers is None else {**options, "maxnreg": self.max_registers}


def tiling(num_warps: int, num_stages: int, constants: dict[str, Any], max_registers: int | None = None) -> Tiling:
    """A `Tiling` from a dict of the kernel's constants."""
    return Tiling(tuple(constants.items()), num_warps, num_stages, max_registers)


@dataclass(frozen=True)
class Case:
    """A kernel for one dtype, head dim and variant.

    kernel: the function, as in `twins_trt.kernels.lsa.kernel:lsa_forward_kernel`.
    variant: what else differs between cases of a kernel, as in `pads attend`; may be empty.
    float32: names of pointers that are fp32 in every dtype.
    aligned: integer arguments that are multiples of 16, so that loads are 16 bytes wide.
    grid: the launch grid in words, for programs that launch the cubin.
    types: name and type of other arguments whose type does not follow from `dtype`, as in `("p_mask", "*u8")`.
    """

    kernel: str
    dtype: str
    head_dim: int
    variant: str
    tiling: Tiling
    float32: tuple[str, ...]
    aligned: tuple[str, ...]
    grid: str
    types: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """`lsa_forward fp16 32`, and the variant behind it."""
        function = self.kernel.partition(":")[2].removesuffix("_kernel")
        return " ".join(filter(None, (function, self.dtype, str(self.head_dim), self.variant)))

    def function(self) -> Any:
        """The kernel itself. Imports triton."""
        module, _, name = self.kernel.partition(":")
        return getattr(importlib.import_module(module), name)

    def arguments(self) -> dict[str, str]:
        """Name and type of every run-time argument, in order: `*fp16`, `i32`, `fp32`."""
        constants = dict(self.tiling.constants)
        names = [name for name in self.function().arg_names if name not in constants]
        return {name: self._type(name) for name in names}

    def _type(self, name: str) -> str:
        if kind := dict(self.types).get(name):
            return kind
        if name.startswith("p_"):
            return "*fp32" if name in self.float32 else f"*{self.dtype}"
        return "fp32" if name == "scale" else "i32"

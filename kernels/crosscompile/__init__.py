"""Compiles every Triton kernel for every GPU, without a GPU: its resources, whether it spills, cubins for C++.

`twins-trt kernels` lists, checks and writes; `python -m benchmarks.crosscompile` renews the record.
"""

from twins_trt.kernels.crosscompile.compiler import (
    TARGETS,
    Compiled,
    Resources,
    compile_case,
    problems,
    triton_version,
)
from twins_trt.kernels.crosscompile.cubins import write_cubins
from twins_trt.kernels.crosscompile.record import RECORD, Record, read_record
from twins_trt.kernels.crosscompile.sweep import all_cases, select, sweep

__all__ = [
    "RECORD",
    "TARGETS",
    "Compiled",
    "Record",
    "Resources",
    "all_cases",
    "compile_case",
    "problems",
    "read_record",
    "select",
    "sweep",
    "triton_version",
    "write_cubins",
]

"""Compile every Triton kernel for every GPU with no GPU at hand: what it takes, whether it spills, cubins for C++.

`python -m twins_trt.kernels.crosscompile` checks against the record, `--record` renews it, `--cubins` writes files.
"""

from twins_trt.kernels.crosscompile.compiler import TARGETS, Compiled, Resources, compile_case, problems
from twins_trt.kernels.crosscompile.cubins import write_cubins
from twins_trt.kernels.crosscompile.record import Record, render_table
from twins_trt.kernels.crosscompile.sweep import all_cases, sweep

__all__ = [
    "TARGETS",
    "Compiled",
    "Record",
    "Resources",
    "all_cases",
    "compile_case",
    "problems",
    "render_table",
    "sweep",
    "write_cubins",
]

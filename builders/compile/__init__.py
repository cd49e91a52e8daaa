"""The engine of a bundle, compiled from the bundle's own graph: with numpy and TensorRT's bindings alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.lazy import lazy_names

if TYPE_CHECKING:
    from twins_trt.builders.compile.job import CompileJob, resolve_compile
    from twins_trt.builders.compile.run import CompileReport, compile_bundle, dry_run

__all__ = ["CompileJob", "CompileReport", "compile_bundle", "dry_run", "resolve_compile"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "twins_trt.builders.compile.job": ["CompileJob", "resolve_compile"],
        "twins_trt.builders.compile.run": ["CompileReport", "compile_bundle", "dry_run"],
    },
)

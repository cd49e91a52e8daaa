"""The whole build, from a request to a bundle. Importing this loads no compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.lazy import lazy_names

if TYPE_CHECKING:
    from twins_trt.builders.bundle.job import BuildJob
    from twins_trt.builders.bundle.run import build_bundle, resolve_build
    from twins_trt.builders.bundle.ship import BuildReport

__all__ = ["BuildJob", "BuildReport", "build_bundle", "resolve_build"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "twins_trt.builders.bundle.job": ["BuildJob"],
        "twins_trt.builders.bundle.run": ["build_bundle", "resolve_build"],
        "twins_trt.builders.bundle.ship": ["BuildReport"],
    },
)

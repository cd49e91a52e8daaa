"""Engines of TensorRT and TensorRT-RTX on a GPU: choosing one of a bundle's, loading it, running it in slots.

TensorRT builds an engine on the device that runs it. TensorRT-RTX builds one ahead of time for the GPUs that it lists,
and compiles it to the end on the GPU of this machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.runtime.tensorrt.selection import why_not

if TYPE_CHECKING:
    from twins_trt.runtime.engines.protocol import EngineSource, RuntimeOptions
    from twins_trt.runtime.tensorrt.engine import TensorRTEngine

__all__ = ["open_engine", "why_not"]


def open_engine(source: EngineSource, flavour: str, options: RuntimeOptions) -> TensorRTEngine:
    """See `twins_trt.runtime.tensorrt.opening.open_engine`, which is imported when an engine is opened."""
    from twins_trt.runtime.tensorrt.opening import open_engine

    return open_engine(source, flavour, options)

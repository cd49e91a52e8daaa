"""TensorRT 8.6 to 11: an engine built on the device it runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.runtime.engines.protocol import EngineSource, RuntimeOptions
from twins_trt.runtime.tensorrt import selection

if TYPE_CHECKING:
    from twins_trt.runtime.tensorrt.engine import TensorRTEngine

NAME = "tensorrt"


def why_not(source: EngineSource) -> str | None:
    """Why this kind cannot run `source` here, or None if it can."""
    return selection.why_not(source, NAME)


def open_engine(source: EngineSource, options: RuntimeOptions) -> TensorRTEngine:
    """The bundle's engine for this GPU. See `twins_trt.runtime.tensorrt.engine.open_engine`."""
    from twins_trt.runtime.tensorrt import engine

    return engine.open_engine(source, NAME, options)

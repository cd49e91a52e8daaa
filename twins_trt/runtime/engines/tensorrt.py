"""TensorRT 8.6 to 11: an engine built on the device it runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins_trt.runtime.engines.protocol import EngineSettings
from twins_trt.runtime.tensorrt import selection

if TYPE_CHECKING:
    from twins_trt.runtime.bundle import Bundle
    from twins_trt.runtime.tensorrt.engine import TensorRTEngine

NAME = "tensorrt"


def why_not(bundle: Bundle) -> str | None:
    """Why this kind cannot run `bundle` here, or None if it can."""
    return selection.why_not(bundle, NAME)


def open_engine(bundle: Bundle, settings: EngineSettings) -> TensorRTEngine:
    """The bundle's engine for this GPU. See `twins_trt.runtime.tensorrt.engine.open_engine`."""
    from twins_trt.runtime.tensorrt import engine

    return engine.open_engine(bundle, NAME, settings)

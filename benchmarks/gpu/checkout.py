"""Running from a checkout that was not installed, as on a machine without a network."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make_importable() -> None:
    """Makes `kernels/`, `builders/` and `calib/` import below `twins_trt` where nothing is installed."""
    import twins_trt

    if find_spec("twins_trt.kernels") is None:
        twins_trt.__path__.append(str(ROOT))

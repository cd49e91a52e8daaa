"""Packages whose names are loaded when first used, so that importing a package is cheap."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562).

        __getattr__, __dir__ = lazy_names(__name__, {"twins_trt.runtime.segmenter": ["Segmenter"]})

    package: its name. modules: by module, the names that come from it. Type checkers need the same imports below
    `if TYPE_CHECKING`.
    """
    home = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name in home:
            return getattr(importlib.import_module(home[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        """The names of the package, those that are not loaded yet included, for `help` and completion."""
        return sorted({*vars(sys.modules[package]), *home})

    return get, names

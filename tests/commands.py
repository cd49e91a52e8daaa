"""Command lines run in this process, and what their tests share: the model, and pictures."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from twins_trt.cli import main

MODEL = "twins_svt-s_fpn"
SMALL = ("--num-classes", "4", "--size", "64x96")


@dataclass(frozen=True)
class CommandResult:
    """Exit code, stdout and stderr of one command line."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Twins = Callable[..., CommandResult]
"""The fixture `twins`."""


def run_command(*words: object, on_error: Callable[[Exception], None] | None = None) -> CommandResult:
    """Runs `twins-trt WORDS`. on_error: called with the exception that ends it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words], on_error=on_error)
    return CommandResult(code, out.getvalue(), err.getvalue())


def replace_command(monkeypatch: pytest.MonkeyPatch, name: str, run: Callable[[], int]) -> None:
    """Makes `twins-trt NAME` do `run`, in place of what its module does."""
    command = SimpleNamespace(EXAMPLE="", configure=lambda parser: None, run=lambda arguments, console: run())
    monkeypatch.setitem(sys.modules, f"twins_trt.cli.{name}", command)


def scene(height: int, width: int, seed: int) -> np.ndarray:
    """Patches of colour with noise: uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3)).repeat(16, 0).repeat(16, 1)
    noisy = patches[:height, :width] + rng.integers(-30, 31, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)

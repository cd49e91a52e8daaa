"""Compiles a bundle in processes that are killed, each at a later moment, and prints what is left every time.

    python killed.py BUNDLE HOME

A process counts its moments: every step of the simulated compiler, every wait for the disk, every renamed or removed
file. It is killed at one of them. Then another process compiles the bundle to its end, and both tell what they saw.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from compiling import installer

from twins_trt import compile_engine, exchange
from twins_trt.errors import TwinsError
from twins_trt.runtime import open_bundle

MOMENTS = 100  # more than a compilation has


class Counter:
    """Kills this process at a moment. moment: its number, None for never."""

    def __init__(self, moment: int | None) -> None:
        self.left = moment

    def __call__(self) -> None:
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*given: Any, **named: Any) -> Any:
            self()
            return real(*given, **named)

        setattr(module, name, call)


def compile_once(bundle: Path, home: Path, moment: int | None) -> dict[str, Any]:
    """In a child: what it reported, or `killed`."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        counter = Counter(moment)
        with pytest.MonkeyPatch.context() as patch:
            module = installer(patch, home)("10.3.0")
            module.script.phases, module.script.during = (("Building engine", None, 3),), counter
            for name in ("fsync", "replace", "rename", "rmdir", "unlink"):
                counter.before(os, name)
            counter.before(exchange, "_renameat2")
            report = compile_engine(bundle)
            said = {"compiled": report.compiled, "resumed": report.resumed, "built": len(module.built)}
        os.write(write, json.dumps(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else {"killed": True}


def state(bundle: Path) -> str:
    """What a reader finds: the bundle as it was, or with its engine."""
    try:
        engines = open_bundle(bundle).engines
    except TwinsError as error:
        return str(error)
    return "engine" if engines else "as it was"


def main(bundle: Path, home: Path) -> None:
    found = []
    fresh = bundle.with_name("fresh")
    shutil.copytree(bundle, fresh)
    for moment in range(MOMENTS):
        first = compile_once(bundle, home, moment)
        left = state(bundle)
        second = compile_once(bundle, home, None)
        beside = sorted(path.name for path in bundle.parent.iterdir() if path.name not in ("fresh", "home"))
        found.append({"first": first, "left": left, "second": second, "then": state(bundle), "beside": beside})
        for left_behind in bundle.parent.iterdir():  # so that every process has the same moments
            if left_behind.name not in ("fresh", "home"):
                shutil.rmtree(left_behind)
        shutil.copytree(fresh, bundle)
        if "killed" not in first:
            break
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

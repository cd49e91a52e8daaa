"""Command lines in the bare environment, on a simulated Jetson."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environment import ABSENT, ROOT, SimulatedJetPack, clean_environment

TIMEOUT_S = 300
ROUNDS = ("--rounds", "6", "--calls", "2", "--warm-up", "1")
"""Of `gate --against`: the fewest."""
PROGRAMS = {
    "nvpmodel": 'echo "NV Power Mode: MAXN_SUPER"; echo 2',
    "jetson_clocks": "true",
    "sudo": 'exec "$@"',
}
"""What a Jetson has beside Python, as far as the documentation types it: name and shell script."""


@dataclass(frozen=True)
class Done:
    """What a command line gave. modules: those that its processes imported, with their files."""

    code: int
    out: str
    err: str
    modules: dict[str, str | None] = field(default_factory=dict, repr=False)

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class SimulatedJetson:
    """A Jetson with one TensorRT. python: of the bare environment. folder: its disk, which commands run in; what is
    there stays, as through an upgrade.

    modules: what all commands together imported, with the files.
    """

    def __init__(self, python: Path, folder: Path, *, tensorrt: str, jetpack: SimulatedJetPack) -> None:
        self.python, self.folder, self.tensorrt, self.jetpack = python, folder, tensorrt, jetpack
        self.modules: dict[str, str | None] = {}
        for name in ("home", "bin", "modules"):
            (folder / f".{name}").mkdir(parents=True, exist_ok=True)
        for name, script in PROGRAMS.items():
            write_program(folder / ".bin" / name, script)

    def environment(self, **simulated: str) -> dict[str, str]:
        """Of a process there. simulated: the words of `device/sitecustomize.py`, such as `SIMULATED_MS`."""
        environment = clean_environment()
        path = (self.python.parent, self.folder / ".bin", "/usr/bin", "/bin")
        return environment | {
            "HOME": str(self.folder / ".home"),
            "PATH": ":".join(map(str, path)),
            "PYTHONPATH": str(ROOT / "tests" / "jetson" / "device"),
            "SIMULATED_TENSORRT": self.tensorrt,
            "SIMULATED_GPU": self.jetpack.gpu,
            "SIMULATED_CUDA": self.jetpack.cuda,
            "SIMULATED_SERVER": sys.executable,
            "SIMULATED_MODULES": str(self.folder / ".modules"),
            **simulated,
        }

    def run(self, *words: object, **simulated: str) -> Done:
        """A command line in the folder, such as `run("twins-trt", "inspect", "x.bundle")`.

        Raises AssertionError if a process of it imported what a Jetson lacks.
        """
        done = subprocess.run(
            [str(word) for word in words],
            cwd=self.folder,
            env=self.environment(**simulated),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        modules = self._loaded()
        assert not {name.partition(".")[0] for name in modules} & set(ABSENT)
        self.modules |= modules
        return Done(done.returncode, done.stdout, done.stderr, modules)

    def twins(self, *words: object, **simulated: str) -> Done:
        """`twins-trt WORDS`."""
        done = self.run("twins-trt", *words, **simulated)
        assert "twins_trt.cli" in done.modules, "no process said what it imported"
        return done

    def copy(self, path: Path, folder: str = ".") -> Path:
        """Puts a file of the desktop on the disk, and returns where it is now."""
        (self.folder / folder).mkdir(exist_ok=True)
        return Path(shutil.copy(path, self.folder / folder / path.name))

    def package_files(self) -> list[Path]:
        """The files of this package that were imported so far."""
        named = {name: file for name, file in self.modules.items() if name.partition(".")[0] == "twins_trt"}
        return sorted(Path(file) for file in named.values() if file is not None)

    def _loaded(self) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for file in (self.folder / ".modules").iterdir():
            found |= json.loads(file.read_text())["modules"]
            file.unlink()
        return found


def write_program(path: Path, script: str) -> None:
    """Makes a program of a shell script."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


BarePython = Callable[[str], Path]
"""The fixture `bare_python`."""
MakeJetson = Callable[..., SimulatedJetson]
"""The fixture `jetson`."""

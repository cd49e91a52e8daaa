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

from environment import ABSENT, JETPACKS, ROOT, clean_environment

TIMEOUT_S = 300
NVPMODEL = '#!/bin/sh\necho "NV Power Mode: MAXN_SUPER"\necho 2\n'


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
    """A Jetson with one TensorRT. python: of the bare environment. folder: its disk, which commands run in.

    modules: what all commands together imported, with the files.
    """

    def __init__(self, python: Path, folder: Path, *, tensorrt: str) -> None:
        self.python, self.folder, self.tensorrt, self.jetpack = python, folder, tensorrt, JETPACKS[tensorrt]
        self.modules: dict[str, str | None] = {}
        for name in ("home", "bin", "modules"):
            (folder / f".{name}").mkdir(parents=True)
        nvpmodel = folder / ".bin" / "nvpmodel"
        nvpmodel.write_text(NVPMODEL)
        nvpmodel.chmod(0o755)

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
        assert modules, "no process said what it imported"
        assert not {name.partition(".")[0] for name in modules} & set(ABSENT)
        self.modules |= modules
        return Done(done.returncode, done.stdout, done.stderr, modules)

    def twins(self, *words: object, **simulated: str) -> Done:
        """`twins-trt WORDS`."""
        return self.run("twins-trt", *words, **simulated)

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


BarePython = Callable[[str], Path]
"""The fixture `bare_python`."""
MakeJetson = Callable[..., SimulatedJetson]
"""The fixture `jetson`."""

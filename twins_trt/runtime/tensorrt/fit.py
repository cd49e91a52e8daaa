"""Whether an engine fits a machine: the one rule of what runs engines and what compiles them."""

from __future__ import annotations

from dataclasses import dataclass

from twins_trt.bindings import NAMES
from twins_trt.runtime.manifest import Compiled, EngineFile


@dataclass(frozen=True)
class Place:
    """Where TensorRT times kernels: the GPU's name, the board's (of a Jetson: all Orins call their GPU `Orin`), and the
    versions of NVIDIA's kernel driver and of the CUDA that it serves. Empty where unknown."""

    gpu: str
    board: str = ""
    driver: str = ""
    cuda: str = ""

    @classmethod
    def of(cls, compiled: Compiled) -> Place:
        """Where an engine was compiled."""
        return cls(compiled.device, compiled.board, compiled.driver, compiled.cuda)

    @property
    def machine(self) -> str:
        """The GPU and its board, in words."""
        return f"{self.gpu} of {self.board}" if self.board else self.gpu

    @property
    def drivers(self) -> str:
        """The versions, in words."""
        words = (f"driver {self.driver}" if self.driver else "", f"CUDA {self.cuda}" if self.cuda else "")
        return " and ".join(word for word in words if word)


def wrong_gpu(engine: EngineFile, target: str) -> str | None:
    """Why the engine does not run on GPUs of `target`, or None if it does."""
    return None if engine.runs_on(target) else f"{engine.file} is for {'+'.join(engine.targets)}, not for {target}"


def compiled_elsewhere(engine: EngineFile, here: Place) -> bool:
    """Whether TensorRT timed the engine's kernels on another GPU or board. Engines of `build` do not say."""
    if engine.flavour != "tensorrt" or engine.compiled is None:
        return False
    then = Place.of(engine.compiled)
    return then.gpu != here.gpu or _differ(then.board, here.board)


def outdated(engine: EngineFile, version: str, *, here: Place | None = None) -> str | None:
    """Why the engine does not fit this TensorRT, or None if it does.

    version: of the installed library of the engine's flavour. here: this machine, for what compiles; None where only
    the version matters. An engine that TensorRT compiled elsewhere, or under another driver, runs. But TensorRT chose
    its kernels by timing them, so another compilation may give a faster engine. TensorRT-RTX times nothing.
    """
    name = NAMES.get(engine.flavour, engine.flavour)
    if not same_release(engine.version, version):
        return f"{engine.file} was built with {name} {engine.version}, installed is {version}"
    if here is None or engine.flavour != "tensorrt" or engine.compiled is None:
        return None
    then = Place.of(engine.compiled)
    if compiled_elsewhere(engine, here):
        return f"{engine.file} was compiled on {then.machine}, this is {here.machine}"
    if _differ(then.driver, here.driver) or _differ(then.cuda, here.cuda):
        return f"{engine.file} was compiled under {then.drivers}, here is {here.drivers}"
    return None


def _differ(one: str, other: str) -> bool:
    """Whether both are known and not the same."""
    return bool(one and other and one != other)


def same_release(built: str, installed: str) -> bool:
    """Engines are tied to the whole version. Some packages of a release leave out the build number."""
    return all(one == other for one, other in zip(built.split("."), installed.split("."), strict=False))

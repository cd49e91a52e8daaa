"""Whether an engine fits a machine: the one rule of what runs engines and what compiles them."""

from __future__ import annotations

from dataclasses import dataclass

from twins_trt.bindings import NAMES
from twins_trt.device import Device
from twins_trt.runtime.manifest import EngineFile


@dataclass(frozen=True)
class Drivers:
    """Versions of NVIDIA's kernel driver and of the CUDA that it serves; empty where unknown."""

    kernel: str = ""
    cuda: str = ""

    def __str__(self) -> str:
        words = (f"driver {self.kernel}" if self.kernel else "", f"CUDA {self.cuda}" if self.cuda else "")
        return " and ".join(word for word in words if word) or "an unknown driver"


def wrong_gpu(engine: EngineFile, target: str) -> str | None:
    """Why the engine does not run on GPUs of `target`, or None if it does."""
    return None if engine.runs_on(target) else f"{engine.file} is for {'+'.join(engine.targets)}, not for {target}"


def outdated(
    engine: EngineFile, version: str, *, device: Device | None = None, drivers: Drivers | None = None
) -> str | None:
    """Why the engine does not fit this TensorRT, or None if it does.

    version: of the installed library of the engine's flavour. device, drivers: of this machine, for what compiles; None
    where they do not matter. An engine that TensorRT compiled elsewhere, or under another driver, runs. But TensorRT
    chose its kernels by timing them, so another compilation may give a faster engine. TensorRT-RTX times nothing.
    """
    name = NAMES.get(engine.flavour, engine.flavour)
    if not same_release(engine.version, version):
        return f"{engine.file} was built with {name} {engine.version}, installed is {version}"
    if engine.flavour != "tensorrt" or engine.compiled is None:
        return None
    if device is not None and engine.compiled.device != device.name:
        return f"{engine.file} was compiled on {engine.compiled.device}, this GPU is {device.name}"
    then = Drivers(engine.compiled.driver, engine.compiled.cuda)
    if drivers is not None and then != drivers:
        return f"{engine.file} was compiled under {then}, here is {drivers}"
    return None


def same_release(built: str, installed: str) -> bool:
    """Engines are tied to the whole version. Some packages of a release leave out the build number."""
    return all(one == other for one, other in zip(built.split("."), installed.split("."), strict=False))

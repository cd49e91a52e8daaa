"""A machine with a simulated GPU: TensorRT of any version, a CUDA package, and bundles with engines for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import install_machine
from fake_engines import Faults, runtime_module, serialize
from fake_gpu import FakeGpu
from tiny_graphs import MakeBundle

from twins_trt.device import Device
from twins_trt.runtime import Bundle, EngineFile, RuntimeOptions, open_engine, write_bundle

ADA = Device("NVIDIA RTX 4000 Ada", "sm_89")
ORIN = Device("Orin", "sm_87", integrated=True)


class Machine:
    """What is installed, and the GPU. `install` makes it another machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, make_bundle: MakeBundle, home: Path) -> None:
        self._patch, self._make_bundle = monkeypatch, make_bundle
        self.made: list[Any] = []
        monkeypatch.setattr(Path, "home", lambda: home)
        self.install("10.13.3.9")

    def install(
        self,
        version: str = "10.13.3.9",
        *,
        device: Device | None = ADA,
        faults: Faults | None = None,
        package: str | None = "cuda-bindings",
        capacity: int = 1 << 30,
    ) -> None:
        self.gpu = FakeGpu(integrated=device is not None and device.integrated, capacity=capacity)
        self.device = device
        self.module = runtime_module(version, self.gpu, faults)
        self.faults: Faults = self.module.faults
        install_machine(self._patch, self.gpu, self.module, device, package=package)

    def bundle(self, height: Any = 24, width: Any = 32, *, target: str | None = None, **more: Any) -> Bundle:
        """A bundle of a tiny graph with an engine for this machine. target, version: of the engine, if other ones."""
        version = more.pop("version", self.module.__version__)
        hardware = more.pop("hardware_compatibility", "none")
        bundle = self._make_bundle(height, width, **more)
        image = bundle.interface.image
        profile = None if image.min is None else (image.min, image.opt, image.max)
        flavour = self.module.__name__
        targets = (target or (self.device or ADA).target,)
        file = EngineFile(f"engines/{flavour}.engine", flavour, version, targets, hardware)
        graph = bundle.graph.read_bytes()
        files = {"graph.onnx": graph, file.file: serialize(graph, version=version, profile=profile)}
        return write_bundle(bundle.path, replace(bundle.manifest, engines=(file,), files=()), files, overwrite=True)

    def engine(self, bundle: Bundle | None = None, **options: Any) -> Any:
        """The engine of a bundle, closed when the test ends."""
        engine = open_engine(bundle or self.bundle(), self.module.__name__, options=RuntimeOptions(**options))
        self.made.append(engine)
        return engine


class OnGpu:
    """Somebody else's array on the GPU: bytes in device memory, and the ways it says so.

    stream, strides: what it names in `__cuda_array_interface__`. Freed with the object.
    """

    def __init__(self, gpu: FakeGpu, content: Any, *, stream: int | None = None, strides: Any = None) -> None:
        self.gpu, self.shape, self.dtype = gpu, content.shape, content.dtype
        self.address = gpu.allocate(content.nbytes)
        self.stream, self.strides = stream, strides
        gpu.bytes_at(self.address, content.nbytes)[...] = np.ascontiguousarray(content).view(np.uint8).ravel()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "strides": self.strides,
            "stream": self.stream,
        }

    def part(self, start: int, stop: int) -> Part:
        """`array[start:stop]`, which shares the memory."""
        return Part(self, start, stop)

    def __del__(self) -> None:
        if self.address in self.gpu.device:
            self.gpu.free(self.address)

    def read(self) -> Any:
        """What is in the memory now."""
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        return self.gpu.bytes_at(self.address, size).view(self.dtype).reshape(self.shape).copy()


class Part(OnGpu):
    """A view of some rows of another array."""

    def __init__(self, whole: OnGpu, start: int, stop: int) -> None:
        self.gpu, self.dtype, self.stream, self.strides = whole.gpu, whole.dtype, whole.stream, None
        self.shape = (stop - start, *whole.shape[1:])
        self.address = whole.address + start * int(np.prod(whole.shape[1:])) * whole.dtype.itemsize
        self._whole = whole  # lives as long as this

    def __del__(self) -> None:
        """The memory is the whole array's."""

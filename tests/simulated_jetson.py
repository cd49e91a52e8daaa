"""One simulated Jetson, as the environment of its process describes it. `jetson/device/sitecustomize.py` has the words.

Its GPU computes in another interpreter, so this process imports none of the packages that a Jetson lacks.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from fake_arithmetic import RemoteSession, Server
from fake_builder import building_module, metadata
from fake_cuda import cuda_bindings
from fake_driver import FakeDriver
from fake_gpu import FakeGpu

from twins_trt.device import Device

DEVICES = {
    "Orin": Device("Orin", "sm_87", integrated=True),
    "Thor": Device("NVIDIA Thor", "sm_110", integrated=True),
}
MEMORY = 8 << 30  # an Orin Nano's; the GPU shares it with the processor
MILLISECONDS = {"fp32": 80.0, "fp16": 40.0, "int8": 20.0}  # far apart: the machine that simulates may be busy
KEPT = 64  # results
SHIFT = 3  # pixels


class Computed:
    """A session on the simulated GPU: a picture takes the same time whenever it comes, and its result is kept.

    milliseconds: of one run; the real time of the first run of a picture if that is longer. shifted: the masks lie a
    few pixels beside, as by a compiler that computes wrongly.
    """

    def __init__(self, session: RemoteSession, *, milliseconds: float, shifted: bool) -> None:
        self._session, self._seconds, self._shifted = session, milliseconds / 1e3, shifted
        self.inputs, self.outputs = session.inputs, session.outputs
        self._kept: dict[bytes, list[Any]] = {}

    def run(self, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        end = time.perf_counter() + self._seconds
        key = hashlib.sha256("".join(names).encode() + b"".join(feed.tobytes() for feed in feeds.values())).digest()
        if key not in self._kept:
            if len(self._kept) == KEPT:
                self._kept.clear()
            results = self._session.run(names, feeds)
            self._kept[key] = [np.roll(each, SHIFT, axis=-1) if self._shifted else each for each in results]
        time.sleep(max(0.0, end - time.perf_counter()))
        return self._kept[key]


class Jetson:
    """The packages and the driver of the simulated device."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._device = DEVICES[environment["SIMULATED_GPU"]]
        major, minor = environment["SIMULATED_CUDA"].split(".")
        self._serves = int(major), int(minor)
        self._server = [environment["SIMULATED_SERVER"]]
        self._milliseconds = MILLISECONDS | json.loads(environment.get("SIMULATED_MS", "{}"))
        self._fault = "SIMULATED_FAULT" in environment
        self._gpu = FakeGpu(integrated=True, capacity=MEMORY, clock=lambda: 1e3 * time.perf_counter())
        self.tensorrt: Any = building_module(
            environment["SIMULATED_TENSORRT"],
            self._gpu,
            open_session=self._open,
            unfused=int(environment.get("SIMULATED_UNFUSED", "0")),
        )
        self.cuda: ModuleType = cuda_bindings(self._gpu)

    def driver(self) -> FakeDriver:
        """What loading libcuda gives."""
        return FakeDriver(self._device, gpu=self._gpu, cuda=self._serves)

    def _open(self, graph: bytes) -> Computed:
        precision = dict(metadata(graph)).get("twins_trt.precision", "fp32")
        return Computed(
            _server(*self._server).open(graph),
            milliseconds=self._milliseconds[precision],
            shifted=self._fault and precision == "int8",
        )


@cache
def _server(*command: str) -> Server:
    """The interpreter that computes, started by the first graph."""
    return Server(command)


@cache
def machine() -> Jetson:
    """The machine of this process."""
    return Jetson(os.environ)

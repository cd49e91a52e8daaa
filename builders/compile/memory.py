"""The memory that a compilation will take, predicted, and the memory that is free for it.

No builder says beforehand what it needs. What is measured are builds of TensorRT-RTX 1.7 without a GPU: whole
processes with graphs of 27, 54, 104 and 252 MiB had 594, 642, 764 and 1342 MiB resident at most, those of
docs/measurements.md with engines of 62 to 267 MiB 570 to 1417 MiB. All are below `_PROCESS + _HOST_COPIES` times the
weights. What TensorRT takes on a device was not measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from twins_trt.device import Device, free_gpu_mib
from twins_trt.errors import BuildError
from twins_trt.spelling import spelled

_MIB = 1 << 20
_ZRAM = 2  # compressed memory, a Jetson's default swap: what it holds still takes about half of its size
_PROCESS = 550  # MiB: Python, the compiler's libraries, and what does not depend on the weights
_HOST_COPIES = 4  # the graph, the parsed network, the optimized one, the engine and its serialized form
_CONTEXT = 300  # MiB of the GPU: the CUDA context and the kernels of the compiler's libraries
_GPU_COPIES = 2  # the weights that are timed, and the engine that is loaded to be audited
LARGEST_WORKSPACE, SMALLEST_WORKSPACE = 2048, 128  # MiB, of those chosen where the GPU shares the host's memory


@dataclass(frozen=True)
class FreeMemory:
    """MiB that are free now; None where the system does not say.

    host: available without swapping. swap: what swap space can still take, which a GPU cannot use. gpu: of a GPU's own
    memory; None for a GPU that shares the host's (`shared`).
    """

    host: int | None
    swap: int = 0
    gpu: int | None = None
    shared: bool = False


@dataclass(frozen=True)
class Forecast:
    """What a compilation is predicted to take, MiB. workspace: a layer's scratch memory at most; None for the
    compiler's own limit. reason: where the numbers come from."""

    host: int
    gpu: int
    workspace: int | None
    free: FreeMemory
    reason: str

    def __str__(self) -> str:
        workspace = "" if self.workspace is None else f", of which {self.workspace} MiB of workspace"
        if self.gpu == 0:
            return f"predicted: {self.host} MiB of the host ({_say(self.free.host)} free)"
        if self.free.shared:
            total = f"{self.host + self.gpu} MiB of the memory that GPU and host share{workspace}"
            return f"predicted: {total} ({_say(self.free.host)} free)"
        host, gpu = (
            f"{self.host} MiB of the host ({_say(self.free.host)} free)",
            f"{self.gpu} MiB of the GPU{workspace}",
        )
        return f"predicted: {host}, {gpu} ({_say(self.free.gpu)} free)"


def free_memory(device: Device | None, root: Path = Path("/")) -> FreeMemory:
    """What is free now. root: of the file system that holds /proc."""
    available = re.search(r"^MemAvailable:\s*(\d+) kB", _text(root / "proc" / "meminfo"), re.MULTILINE)
    # File name, type, size and use in KiB, priority.
    swaps = re.findall(r"^(\S+)\s+\w+\s+(\d+)\s+(\d+)\s", _text(root / "proc" / "swaps"), re.MULTILINE)
    swap = sum((int(size) - int(used)) / (_ZRAM if "zram" in name else 1) for name, size, used in swaps)
    shared = device is not None and device.integrated
    gpu = None if device is None or shared else free_gpu_mib()
    return FreeMemory(int(available[1]) >> 10 if available else None, int(swap) >> 10, gpu, shared)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def forecast(nbytes: int, workspace: int | None, free: FreeMemory, *, on_gpu: bool) -> Forecast:
    """The memory of a compilation, and the workspace that fits.

    nbytes: of the graph. workspace: MiB, None to choose. on_gpu: whether the compiler times kernels on the GPU.
    Where the GPU shares the host's memory, the workspace that is chosen is half of what the rest leaves.
    """
    weights = -(-nbytes // _MIB)
    host, gpu = _PROCESS + _HOST_COPIES * weights, _CONTEXT + _GPU_COPIES * weights if on_gpu else 0
    reason = (
        f"{_HOST_COPIES} times the {weights} MiB of weights and {_PROCESS} MiB, measured on builds of TensorRT-RTX "
        "without a GPU"
    )
    if on_gpu:
        reason += f"; for the GPU {_GPU_COPIES} times the weights and {_CONTEXT} MiB, not measured"
        if workspace is None and free.shared and free.host is not None:
            left = (free.host - gpu - max(0, host - free.swap)) // 2
            workspace = min(LARGEST_WORKSPACE, max(SMALLEST_WORKSPACE, left))
        gpu += workspace or 0
    return Forecast(host, gpu, workspace, free, reason)


def refuse_too_large(forecast: Forecast, *, what: str) -> None:
    """Raises BuildError where a compilation cannot fit, before it takes minutes and then memory from other programs.

    what: is compiled. The GPU's share has to fit without swap; the host's may use it.
    """
    free = forecast.free
    smaller = "or use a device with more memory"
    if (forecast.workspace or 0) > SMALLEST_WORKSPACE:
        smaller = f"or lower the workspace: {spelled('workspace', SMALLEST_WORKSPACE)}"
    on_host = forecast.host + (forecast.gpu if free.shared else 0)
    if free.host is not None:
        if free.shared and forecast.gpu > free.host:
            raise BuildError(
                f"compiling {what} is predicted to take {forecast.gpu} MiB that cannot be swapped, and {free.host} MiB "
                "are free",
                f"close other programs (sudo systemctl isolate multi-user.target ends a Jetson's desktop), {smaller}",
            )
        if on_host > free.host + free.swap:
            raise BuildError(
                f"compiling {what} is predicted to take {on_host} MiB, and {free.host} MiB and {free.swap} MiB of swap "
                "are free",
                "close other programs, add swap (sudo fallocate -l 8G /swap && sudo chmod 600 /swap && sudo mkswap "
                f"/swap && sudo swapon /swap), {smaller}",
            )
    if not free.shared and free.gpu is not None and forecast.gpu > free.gpu:
        raise BuildError(
            f"compiling {what} is predicted to take {forecast.gpu} MiB of the GPU, and {free.gpu} MiB are free there",
            f"close other programs on the GPU (nvidia-smi lists them), {smaller}",
        )


def _say(mib: int | None) -> str:
    return "an unknown amount is" if mib is None else f"{mib} MiB"

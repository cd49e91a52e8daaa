"""The engine of a GPU: several lanes over one plan, taken by whoever calls."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twins_trt.compiler_cache import CacheKey, CompilerCache
from twins_trt.device import Device
from twins_trt.errors import EngineError, UsageError
from twins_trt.runtime.engines.protocol import (
    DeviceMemory,
    LayerTime,
    RuntimeOptions,
    check_input,
    check_out,
    match_interface,
    wanted_outputs,
)
from twins_trt.runtime.memory import Memory, open_memory
from twins_trt.runtime.memory.arrays import DeviceArray, DeviceView, on_device, size_of, stream_handle, view
from twins_trt.runtime.tensorrt.lane import Lane
from twins_trt.runtime.tensorrt.loaded import LoadedEngine, Shape
from twins_trt.runtime.tensorrt.selection import choose, here, load_runtime

if TYPE_CHECKING:
    import numpy.typing as npt

    from twins_trt.inference.tensors import TensorSpec
    from twins_trt.runtime.engines.protocol import EngineSource

    Array = npt.NDArray[np.generic]

log = logging.getLogger("twins_trt")


def open_engine(source: EngineSource, flavour: str, options: RuntimeOptions) -> TensorRTEngine:
    """The bundle's engine of `flavour` for this GPU, warmed up.

    Raises EngineError without a GPU, where the runtime refuses the plan or there is no room for it, BundleError where
    the bundle has none for this GPU and version or manifest and engine disagree, MissingDependencyError.
    """
    device = here()
    module = load_runtime(flavour)
    file = choose(source, flavour, module, device)
    memory = open_memory(options.memory)
    content, path = source.read(file), source.path / file.file
    with memory.entered():
        plan = LoadedEngine(module, content, owner=str(path), rebuild=source.rebuild)
        plan.specialize(
            cuda_graph=options.cuda_graph,
            stored=_runtime_cache(options, flavour, str(module.__version__), device, content),
        )
    del content  # as large as the weights on the device
    engine = TensorRTEngine(plan, memory, device, name=flavour, options=options, owner=str(path))
    try:
        match_interface(source, engine.inputs, engine.outputs, what=path.name)
        engine.inputs, engine.outputs = source.interface.inputs, source.interface.outputs
        engine.warm_up()
    except BaseException:
        engine.close()
        raise
    return engine


class TensorRTEngine:
    """A plan of TensorRT or TensorRT-RTX on the first GPU.

    plan: opened. memory: what moves data. name: the kind. owner: what errors call it.

    Threads: any number may call at once. A call takes one of `options.contexts` lanes, each with a context, a stream
    and buffers of its own, made when first needed, and waits where all are taken. Lanes do not share anything that a
    call changes. `close` must come after the last call.

    On a GPU of its own memory, data goes through pinned buffers; on an integrated one the GPU uses the host's buffer
    in place. A second call of the same shape and addresses is captured as a CUDA graph where the memory package can,
    and replayed until either changes; RTX captures by itself.
    """

    concurrent = True

    def __init__(
        self, plan: LoadedEngine, memory: Memory, device: Device, *, name: str, options: RuntimeOptions, owner: str
    ) -> None:
        self.name = name
        self.inputs: tuple[TensorSpec, ...] = plan.inputs
        self.outputs: tuple[TensorSpec, ...] = plan.outputs
        self._plan: LoadedEngine | None = plan
        self._memory, self._owner, self._settings = memory, owner, options
        self._mapped = device.integrated
        self._graphs = options.cuda_graph and memory.graphs and not plan.captures
        self._lanes: list[Lane] = []
        self._idle: list[Lane] = []
        self._most = options.contexts
        self._changed = threading.Condition()

    def __call__(
        self, image: Any, *, outputs: Sequence[str] | None = None, out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """See `Engine.__call__`. The image may also be an array on the GPU, which is then used where it lies."""
        call = self._begin(image, outputs, out, wait=True)
        assert call is not None  # it waited
        return call.result()

    def submit(self, image: Any, *, outputs: Sequence[str] | None = None, wait: bool = True) -> GpuCall | None:
        """See `Pipelined.submit`."""
        return self._begin(image, outputs, None, wait=wait)

    def run_on_device(
        self,
        image: Any,
        *,
        outputs: Sequence[str] | None = None,
        out: Mapping[str, Any] | None = None,
        stream: Any = None,
    ) -> dict[str, Any]:
        """See `RunsOnDevice.run_on_device`."""
        self._opened()
        names = wanted_outputs(self.outputs, outputs, owner=self._owner)
        wanted_outputs(self.outputs, tuple(out or ()), owner=self._owner)
        handle = None if stream is None else stream_handle(stream)
        memory = self._memory
        lane = self._take(tuple(image.shape))
        with self._using(lane):
            source = view(image, stream=lane.stream, what="the image")
            check_input(self.inputs[0], source, owner=self._owner)
            given = {n: view(a, stream=lane.stream, what=f"the buffer for {n}") for n, a in (out or {}).items()}
            views = (source, *given.values())
            streams = dict.fromkeys(s for s in (handle, *(v.stream for v in views)) if s is not None)
            for other in streams:
                memory.wait(lane.stream, other)
            # Without a stream to order what comes next by, the caller may only have finished results.
            overlaps = handle is not None or all(v.stream is not None for v in views)
            order = (handle if handle is not None else source.stream) if overlaps else None
            results, targets = self._targets(lane, source.shape, names, out or {}, given, order)
            lane.start(source, host=(), device=targets)
            for other in streams:
                memory.wait(other, lane.stream)
            if not overlaps:
                memory.synchronize(lane.stream)
        return results

    def warm_up(self) -> None:
        """Two calls of the shape it was tuned for: kernels are loaded (by RTX compiled), and the graph is captured."""
        plan = self._opened()
        image = np.zeros(plan.opt, plan.inputs[0].dtype)
        for _ in range(2):
            self(image, outputs=())
        plan.store()

    def device_memory(self) -> DeviceMemory:
        """What the engine holds of the GPU's memory at the moment."""
        plan = self._opened()
        with self._changed:
            return DeviceMemory(
                plan.weights, plan.scratch * len(self._lanes), sum(lane.buffers for lane in self._lanes)
            )

    def profile_layers(self, image: Array, *, runs: int = 10) -> tuple[LayerTime, ...]:
        """See `ProfilesLayers`."""
        if runs < 1:
            raise UsageError(f"runs is {runs}", "give 1 or more")
        self._opened()
        times: dict[str, float] = {}
        lane = self._take(image.shape)
        with self._using(lane):
            lane.profile(image, times, runs=runs)
        if not times:
            raise EngineError(f"{self._owner} reported no layer")
        return tuple(LayerTime(name, total / runs) for name, total in times.items())

    def inspect_layers(self) -> str:
        """See `InspectsLayers`."""
        return self._opened().inspect()

    def close(self) -> None:
        """Waits for what still runs and frees everything; calling it again does nothing."""
        plan, self._plan = self._plan, None
        if plan is None:
            return
        with self._changed:
            lanes, self._lanes, self._idle = self._lanes, [], []
        try:
            with self._memory.entered():
                for lane in lanes:
                    lane.close()
                plan.store()
        except EngineError as error:  # a GPU that broke takes nothing back; it was reported when it did
            log.warning("%s could not be closed in order: %s", self._owner, error.cause)
        plan.close()

    def _begin(
        self, image: Any, outputs: Sequence[str] | None, out: Mapping[str, Array] | None, *, wait: bool
    ) -> GpuCall | None:
        self._opened()
        names = wanted_outputs(self.outputs, outputs, owner=self._owner)
        specs = {spec.name: spec for spec in self.outputs}
        for name in wanted_outputs(self.outputs, tuple(out or ()), owner=self._owner):
            check_out(specs[name], (out or {})[name])
        device = on_device(image)
        if not device:
            check_input(self.inputs[0], image, owner=self._owner)
        lane = self._try_to_take(tuple(image.shape), wait=wait)
        if lane is None:
            return None
        try:
            with self._memory.entered():
                source = image
                if device:
                    source = view(image, stream=lane.stream, what="the image")
                    check_input(self.inputs[0], source, owner=self._owner)
                    if source.stream is not None:
                        self._memory.wait(lane.stream, source.stream)
                for name, shape in lane.output_shapes(tuple(source.shape)).items():
                    if out and name in out and out[name].shape != shape:
                        raise EngineError(f"the buffer for {name} is {list(out[name].shape)}, the output {list(shape)}")
                lane.start(source, host=names, device={})
        except BaseException:
            with suppress(EngineError), self._using(lane):
                lane.settle()
            raise
        return GpuCall(self, lane, names, out, source)

    def _targets(
        self,
        lane: Lane,
        shape: Shape,
        names: Sequence[str],
        out: Mapping[str, Any],
        given: Mapping[str, DeviceView],
        stream: int | None,
    ) -> tuple[dict[str, Any], dict[str, DeviceView]]:
        """What the caller gets by name, and where each output is written."""
        shapes = lane.output_shapes(shape)
        results: dict[str, Any] = {}
        targets: dict[str, DeviceView] = {}
        for spec in self.outputs:
            if spec.name in given:
                found = given[spec.name]
                if (found.dtype, found.shape) != (spec.dtype, shapes[spec.name]):
                    raise EngineError(
                        f"the buffer for {spec.name} is {found.dtype} {list(found.shape)}, the output is {spec.dtype} "
                        f"{list(shapes[spec.name])}"
                    )
                results[spec.name], targets[spec.name] = out[spec.name], found
            elif spec.name in names:
                address = self._memory.allocate(size_of(shapes[spec.name], spec.dtype))
                array = DeviceArray(address, shapes[spec.name], spec.dtype, stream=stream, free=self._free)
                results[spec.name] = array
                targets[spec.name] = DeviceView(address, array.shape, array.dtype, stream, array)
        return {name: results[name] for name in names}, targets

    def _free(self, address: int) -> None:
        with self._memory.entered():
            self._memory.free(address)

    @contextmanager
    def _using(self, lane: Lane) -> Iterator[None]:
        """Gives the lane back in the end. Whatever is raised, an interrupt too, nothing runs in it any more then."""
        try:
            with self._memory.entered():
                yield
        except BaseException:
            with suppress(EngineError), self._memory.entered():
                lane.settle()
            raise
        finally:
            self._give(lane)

    def _take(self, shape: Shape) -> Lane:
        lane = self._try_to_take(shape, wait=True)
        assert lane is not None  # it waited
        return lane

    def _try_to_take(self, shape: Shape, *, wait: bool) -> Lane | None:
        """An idle lane, best the one that last ran this shape; a new one where there may be more; else one waits."""
        with self._changed:
            while True:
                alike = next((lane for lane in self._idle if lane.shape == shape), None)
                # Of those that fit none, the one that rested longest: its graph is missed least.
                lane = alike or self._new_lane() or next(reversed(self._idle), None)
                if lane is not None:
                    if lane in self._idle:
                        self._idle.remove(lane)
                    return lane
                if not wait:
                    return None
                self._changed.wait()

    def _give(self, lane: Lane) -> None:
        with self._changed:
            self._idle.insert(0, lane)
            self._changed.notify()

    def _new_lane(self) -> Lane | None:
        """One more, or None where there may be no more. The first must come about; others are for speed."""
        if len(self._lanes) >= self._most:
            return None
        plan = self._opened()
        try:
            with self._memory.entered():
                lane = Lane(
                    plan, self._memory, mapped=self._mapped, graphs=self._graphs, observe=self._settings.observe
                )
        except EngineError as error:
            if not self._lanes:
                raise
            self._most = len(self._lanes)
            log.warning(
                "%s runs %d calls at once, for there is no room for more: %s", self._owner, self._most, error.cause
            )
            return None
        self._lanes.append(lane)
        return lane

    def _opened(self) -> LoadedEngine:
        if self._plan is None:
            raise EngineError(f"{self._owner} is closed")
        return self._plan


class GpuCall:
    """A call under way on a lane. See `Pending`."""

    def __init__(
        self, engine: TensorRTEngine, lane: Lane, names: list[str], out: Mapping[str, Array] | None, image: Any
    ) -> None:
        self._engine, self._lane, self._names, self._out = engine, lane, names, out
        self._image = image  # an array on the GPU must live until it was read

    def result(self) -> dict[str, Array]:
        """See `Pending.result`."""
        with self._engine._using(self._lane):
            return self._lane.finish(self._names, self._out)

    def discard(self) -> None:
        """See `Pending.discard`."""
        with self._engine._using(self._lane):
            self._lane.settle()


def _runtime_cache(
    options: RuntimeOptions, flavour: str, version: str, device: Device, content: bytes
) -> CompilerCache | None:
    """Where kernels that RTX compiles are kept; None for the other flavour, or where that is unwanted or impossible."""
    if flavour != "tensorrt_rtx" or options.runtime_cache == "none":
        return None
    key = CacheKey(flavour, version, device.target, device.name, hashlib.sha256(content).hexdigest()[:12])
    if options.runtime_cache != "auto":
        return CompilerCache.at(options.runtime_cache, key, "runtime cache")
    folder = Path.home() / ".cache" / "twins-trt" / "runtime"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("compiled kernels are not kept: %s", error)
        return None
    return CompilerCache.at(folder, key, "runtime cache")

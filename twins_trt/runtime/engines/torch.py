"""The PyTorch model itself on a CUDA GPU: FP16, Triton kernels, and a CUDA graph for every shape that comes back.

Everything from the uint8 image to the uint8 mask runs on the GPU, and only these two are copied. The engine does not
use the bundle's graph and its precision: it runs the weights from which the graph was made.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from twins_trt.device import current_device
from twins_trt.errors import BundleError, EngineError, TwinsError, first_line, missing
from twins_trt.inference.logits import resize_logits
from twins_trt.runtime.bundle import Bundle
from twins_trt.runtime.engines.captures import CaptureFailed, Captures, CudaCapture, CudaGraphs, Staging, settle
from twins_trt.runtime.engines.checks import check_buffer, check_input, wanted_outputs
from twins_trt.runtime.engines.protocol import OnStage, RuntimeOptions, observed
from twins_trt.runtime.manifest import WEIGHTS
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    import torch

    from twins_trt.inference.interface import GraphInterface
    from twins_trt.models.segmentor import Segmentor
    from twins_trt.runtime.engines.protocol import Array, EngineSource

log = logging.getLogger("twins_trt")

NAME = "torch"
MAX_CAPTURES = 8  # shapes; each holds the activations of one call


def why_not(source: EngineSource) -> str | None:
    """Why this kind cannot run `source` here, or None if it can. Does not import torch."""
    if _with_weights(source) is None:
        return f"the bundle holds no {WEIGHTS}: build it with {spelled('with_weights', True)}"
    if find_spec("torch") is None:
        return 'torch is not installed: pip install "twins-trt[build,triton]"'
    return None if current_device() else "there is no CUDA GPU"


def open_engine(source: EngineSource, options: RuntimeOptions) -> TorchEngine:
    """The model with the bundle's weights, or with weights from its seed.

    Raises BundleError for a bundle without weights, CheckpointError for weights that do not fit,
    MissingDependencyError without torch, EngineError without a GPU that it can use.
    """
    bundle = _with_weights(source)
    if bundle is None:
        fix = f"{source.rebuild} --with-weights --overwrite"
        raise BundleError(f"{source.path} holds no {WEIGHTS}, which the torch engine runs", fix)
    try:
        import torch
    except ImportError as error:
        raise missing("torch", extra="build", purpose="the torch engine") from error
    if not torch.cuda.is_available():
        cause = "torch finds none" if torch.version.cuda else f"torch {torch.__version__} is built without CUDA"
        raise EngineError(
            f"the torch engine needs a CUDA GPU; {cause}", f"use {spelled('engine', 'onnxruntime')} on a CPU"
        )
    return TorchEngine(load_model(bundle), source.interface, options=options, owner=str(source.path))


def load_model(bundle: Bundle) -> Segmentor:
    """The PyTorch model with the bundle's weights, float32 on the CPU, in eval mode."""
    from twins_trt.models.seeded import seed_weights
    from twins_trt.models.segmentor import build_model

    manifest, interface = bundle.manifest, bundle.interface
    if WEIGHTS in bundle.files:
        path = bundle.file(WEIGHTS)
        return build_model(manifest.model, interface.num_classes, path, padding=manifest.padding)
    model = build_model(manifest.model, interface.num_classes, padding=manifest.padding, threshold=interface.threshold)
    model.conventions = replace(model.conventions, preprocessing=interface.preprocessing)
    seed_weights(model)
    return model


class TorchEngine:
    """A model with its pre- and postprocessing, on one device.

    model: is changed, and must not be used elsewhere (see `FoldedModel`). interface: of the engine.
    device: `cuda`, or `cpu`, which has neither kernels nor CUDA graphs. dtype: of weights and activations; by default
    float16 on a GPU and float32 on a CPU. graphs: where it runs and captures; by default a stream of the GPU's own.
    Calls must not overlap; a Segmenter makes sure of that.

    A shape that cannot be captured runs without a CUDA graph, as `RuntimeOptions(cuda_graph=False)` runs all, and the
    log says why once. Where memory does not suffice, the captures of other shapes go first.
    """

    name = NAME
    concurrent = False

    def __init__(
        self,
        model: Segmentor,
        interface: GraphInterface,
        *,
        options: RuntimeOptions | None = None,
        owner: str = "the model",
        device: str = "cuda",
        dtype: torch.dtype | None = None,
        graphs: CudaGraphs | None = None,
    ) -> None:
        import torch

        from twins_trt.models.folded import FoldedModel

        self._options = options or RuntimeOptions()
        self.observe: OnStage | None = self._options.observe
        self._owner = owner
        self._interface = interface
        self.inputs, self.outputs = interface.inputs, interface.outputs
        self._device = torch.device(device)
        on_gpu = self._device.type == "cuda"
        if on_gpu and self._device.index is None:  # a call may come from a thread whose current device is another one
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._dtype = dtype or (torch.float16 if on_gpu else torch.float32)
        self._image_dtype: torch.dtype = getattr(torch, interface.image.dtype)
        self._network: FoldedModel | None = FoldedModel(
            model, device=self._device, dtype=self._dtype, takes_rgb=interface.layout == "NHWC"
        )
        if on_gpu:
            torch.cuda.synchronize(self._device)  # calls run on another stream than the one that converts the weights
        self._graphs = CudaGraphs(self._device) if graphs is None and on_gpu else graphs
        self._captures: Captures[tuple[tuple[int, ...], tuple[str, ...]], CudaCapture] | None = None
        if self._graphs is not None and self._options.cuda_graph:
            self._captures = Captures(self._capture, capacity=MAX_CAPTURES)

    def __call__(
        self, image: Array, *, outputs: Sequence[str] | None = None, out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """See `Engine.__call__`."""
        import torch

        if self._network is None:
            raise EngineError(f"{self._owner} is closed")
        check_input(self.inputs[0], image, owner=self._owner)
        names = tuple(wanted_outputs(self.outputs, outputs, owner=self._owner))
        buffers = {name: array for name, array in (out or {}).items() if name in names}
        for spec in self.outputs:
            if spec.name in buffers:
                check_buffer(spec, buffers[spec.name])
        try:
            with torch.inference_mode(), self._numerics():
                results = self._run_with_room(image, names, self.observe)
        except TwinsError:
            raise
        except torch.cuda.OutOfMemoryError as error:
            fix = "use a smaller batch or size, or close what else runs there"
            raise EngineError(
                f"{self._owner}: the GPU's memory does not suffice for {list(image.shape)}", fix
            ) from error
        except Exception as error:  # torch, cuDNN and CUDA raise RuntimeError, but Triton's errors have another base
            raise EngineError(f"{self._owner} failed on {list(image.shape)}: {first_line(error)}") from error
        return {name: _deliver(results[name], buffers.get(name)) for name in names}

    def close(self) -> None:
        """Frees the CUDA graphs and the weights."""
        if self._captures is not None:
            self._captures.clear()
        self._network = None

    def _run_with_room(self, image: Array, names: tuple[str, ...], observe: OnStage | None) -> Mapping[str, Array]:
        """Runs once more without the captures of other shapes if memory does not suffice beside them."""
        import torch

        try:
            return self._run(image, names, observe)
        except torch.cuda.OutOfMemoryError:
            if not self._captures:
                raise
        # Here the error is gone, and with it what the frames of its traceback held.
        self._captures.shrink()
        self._start_afresh()
        torch.cuda.empty_cache()
        return self._run(image, names, observe)

    def _run(self, image: Array, names: tuple[str, ...], observe: OnStage | None) -> Mapping[str, Array]:
        import torch

        captured = None if self._captures is None else self._captures.get((image.shape, names))
        if captured is not None:
            return captured(image, observe)
        stream = None if self._graphs is None else self._graphs.stream
        with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
            with observed(observe, "copy_in"):
                staging = Staging(image.shape, self._image_dtype, self._device)
                staging.fill(image)
                settle(stream, observe)
            with observed(observe, "engine"):
                results = self._program(staging.device, names=names)
                settle(stream, observe)
            with observed(observe, "copy_out"):
                return {name: x.cpu().numpy() for name, x in results.items()}

    def _program(self, image: torch.Tensor, *, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """The outputs of an image, both on the device."""
        import torch

        from twins_trt.kernels.postprocess import resize_argmax
        from twins_trt.kernels.preprocess import resize_normalize

        assert self._network is not None  # checked by the call
        if self._interface.layout == "NHWC":
            size = (image.shape[1], image.shape[2])
            mean, std = self._interface.preprocessing.statistics
            x = resize_normalize(image, size, mean=mean, std=std, dtype=self._dtype, channels_last=True)
        else:
            size = (image.shape[2], image.shape[3])
            x = image.to(self._dtype, memory_format=torch.channels_last)
        logits = self._network(x)
        results = {}
        for spec in self.outputs:
            if spec.name not in names:
                continue
            if spec.name == "mask":
                results[spec.name] = resize_argmax(logits, size)[0]
            elif spec.name == "probability":
                results[spec.name] = resize_logits(logits[:, 1:2], size)[:, 0].float().sigmoid()
            else:
                wide = getattr(torch, spec.dtype)
                results[spec.name] = logits.to(wide, memory_format=torch.contiguous_format)
        return results

    def _capture(self, key: tuple[tuple[int, ...], tuple[str, ...]]) -> CudaCapture | None:
        """See `Captures`. Raises what the model raises when it merely runs, and OutOfMemoryError if giving up other
        captures may help."""
        import torch

        assert self._graphs is not None  # otherwise there are no captures
        shape, names = key
        try:
            return self._graphs.capture(functools.partial(self._program, names=names), shape, self._image_dtype)
        except CaptureFailed as failed:
            reason = str(failed)
            if failed.out_of_memory and self._captures:
                raise torch.cuda.OutOfMemoryError(reason) from failed
        self._start_afresh()
        log.warning("%s: %s runs without a CUDA graph, since capturing it failed: %s", self._owner, list(shape), reason)
        return None

    def _start_afresh(self) -> None:
        """Leaves the stream and the pool of a capture that failed, and the captures that were made with them. These
        are captured again when they come back."""
        assert self._graphs is not None and self._captures is not None
        self._captures.clear()
        self._graphs.start_afresh()

    @contextlib.contextmanager
    def _numerics(self) -> Iterator[None]:
        """Lets cuDNN try its algorithms and keep the fastest, unless results have to be the same every time.

        `torch.backends.cudnn.flags` would set the precision of float32 too, and raises where the user has set it for
        convolutions alone.
        """
        from torch.backends import cudnn

        before = cudnn.benchmark, cudnn.deterministic
        cudnn.benchmark, cudnn.deterministic = not self._options.deterministic, self._options.deterministic
        try:
            yield
        finally:
            cudnn.benchmark, cudnn.deterministic = before


def _deliver(array: Array, buffer: Array | None) -> Array:
    """The result in `buffer`, or in a copy, because the next call overwrites `array`."""
    if buffer is None:
        return array.copy()
    np.copyto(buffer, array)
    return buffer


def _with_weights(source: EngineSource) -> Bundle | None:
    """The source if it is a bundle with weights or a seed, else None."""
    if isinstance(source, Bundle) and (WEIGHTS in source.files or source.manifest.source.seeded):
        return source
    return None

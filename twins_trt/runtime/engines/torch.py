"""The PyTorch model itself on a CUDA GPU: FP16, Triton kernels, and a CUDA graph for every shape that comes back.

Everything from the uint8 image to the uint8 mask runs on the GPU, and only these two are copied. The engine does not
use the bundle's graph and its precision: it runs the weights from which the graph was made.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from twins_trt.device import current_device
from twins_trt.errors import BundleError, EngineError, first_line, missing
from twins_trt.runtime.bundle import Bundle
from twins_trt.runtime.engines.captures import Captures, CudaCapture, Staging
from twins_trt.runtime.engines.checks import check_buffer, check_input, wanted_outputs
from twins_trt.runtime.engines.protocol import OnStage, RuntimeOptions, observed
from twins_trt.runtime.manifest import WEIGHTS
from twins_trt.spelling import spelled

if TYPE_CHECKING:
    import torch

    from twins_trt.inference.interface import GraphInterface
    from twins_trt.models.segmentor import Segmentor
    from twins_trt.runtime.engines.protocol import Array, EngineSource

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

    manifest = bundle.manifest
    weights = bundle.file(WEIGHTS) if WEIGHTS in bundle.files else None
    model = build_model(manifest.model, bundle.interface.num_classes, weights, padding=manifest.padding)
    if weights is None:
        seed_weights(model)
    return model


class TorchEngine:
    """A model with its pre- and postprocessing, on one device.

    model: is changed, and must not be used elsewhere (see `FoldedModel`). interface: of the engine.
    device: `cuda`, or `cpu`, which has neither kernels nor CUDA graphs. dtype: of weights and activations; by default
    float16 on a GPU and float32 on a CPU. Calls must not overlap; a Segmenter makes sure of that.
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
    ) -> None:
        import torch

        from twins_trt.models.folded import FoldedModel

        self._options = options or RuntimeOptions()
        self.observe: OnStage | None = self._options.observe
        self._owner = owner
        self._interface = interface
        self.inputs, self.outputs = interface.inputs, interface.outputs
        self._device = torch.device(device)
        self._dtype = dtype or (torch.float16 if self._device.type == "cuda" else torch.float32)
        self._image_dtype: torch.dtype = getattr(torch, interface.image.dtype)
        self._network: FoldedModel | None = FoldedModel(model, device=self._device, dtype=self._dtype)
        self._stream: Any = None
        self._pool: Any = None
        self._captures: Captures[tuple[tuple[int, ...], tuple[str, ...]], CudaCapture] | None = None
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)
            if self._options.cuda_graph:
                self._pool = torch.cuda.graph_pool_handle()
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
                results = self._run(image, names)
        except torch.OutOfMemoryError as error:
            fix = "use a smaller batch or size, or close what else runs there"
            raise EngineError(
                f"{self._owner}: the GPU's memory does not suffice for {list(image.shape)}", fix
            ) from error
        except RuntimeError as error:  # what torch, cuDNN and CUDA raise
            raise EngineError(f"{self._owner} failed on {list(image.shape)}: {first_line(error)}") from error
        return {name: _deliver(results[name], buffers.get(name)) for name in names}

    def close(self) -> None:
        """Frees the CUDA graphs and the weights."""
        if self._captures is not None:
            self._captures.clear()
        self._network = None

    def _run(self, image: Array, names: tuple[str, ...]) -> Mapping[str, Array]:
        import torch

        observe = self.observe
        captured = None if self._captures is None else self._captures.get((image.shape, names))
        if captured is not None:
            return captured(image, observe)
        on_stream = contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with on_stream:
            with observed(observe, "copy_in"):
                staging = Staging(image.shape, self._image_dtype, self._device)
                staging.fill(image)
            with observed(observe, "engine"):
                results = self._program(staging.device, names=names)
                if self._stream is not None:
                    self._stream.synchronize()
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
            facts = self._interface.preprocessing
            x = resize_normalize(image, size, mean=facts.mean, std=facts.std, dtype=self._dtype, channels_last=True)
        else:
            size = (image.shape[2], image.shape[3])
            x = image.to(self._dtype, memory_format=torch.channels_last)
        logits = self._network(x)
        results = {}
        for spec in self.outputs:
            if spec.name in names:
                wide = getattr(torch, spec.dtype)
                results[spec.name] = (
                    resize_argmax(logits, size)[0]
                    if spec.name == "mask"
                    else logits.to(wide, memory_format=torch.contiguous_format)
                )
        return results

    def _capture(self, key: tuple[tuple[int, ...], tuple[str, ...]]) -> CudaCapture:
        import torch

        shape, names = key
        program = functools.partial(self._program, names=names)
        try:
            return CudaCapture(program, shape, self._image_dtype, stream=self._stream, pool=self._pool)
        except torch.OutOfMemoryError:
            raise  # tells more than that the capture failed
        except RuntimeError as error:
            raise EngineError(
                f"{self._owner}: {list(shape)} cannot be captured as a CUDA graph: {first_line(error)}",
                "RuntimeOptions(cuda_graph=False)",
            ) from error

    def _numerics(self) -> contextlib.AbstractContextManager[Any]:
        """Lets cuDNN try its algorithms and keep the fastest, unless results have to be the same every time."""
        import torch

        free = not self._options.deterministic
        return torch.backends.cudnn.flags(enabled=True, benchmark=free, deterministic=not free)


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

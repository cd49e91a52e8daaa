"""What can be measured: a bundle, a plain ONNX file, a PyTorch model.

Each becomes a `Segmenter`. So all do the same work, from the picture to the mask at its own size, and are timed at the
same places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from twins_trt.errors import EngineError, UsageError, first_line
from twins_trt.files import sha256_of
from twins_trt.inference.interface import GraphInterface
from twins_trt.models.source import warn_of_random_weights
from twins_trt.profiling.machine import describe_machine
from twins_trt.profiling.results import Subject
from twins_trt.runtime import RuntimeOptions, Segmenter, Source, TensorSpec, open_bundle
from twins_trt.runtime.advice import for_gpus
from twins_trt.runtime.engines import CPU_KINDS, Engine, LayerTime
from twins_trt.runtime.engines.checks import check_input
from twins_trt.runtime.engines.onnxruntime import OnnxRuntimeEngine
from twins_trt.runtime.engines.protocol import OnStage, Stage, observed

if TYPE_CHECKING:
    from twins_trt.models.segmentor import Segmentor
    from twins_trt.runtime.engines.protocol import Array


@dataclass(frozen=True)
class Candidate:
    """Something to measure. open: opens it again and returns a segmenter and its description."""

    label: str
    open: Callable[[RuntimeOptions], tuple[Segmenter, Subject]]


def bundle_candidate(path: str | Path, engine: str = "auto", *, label: str | None = None) -> Candidate:
    """A bundle on an engine of the kind `engine`.

    Raises BundleError for a bundle that does not fit its manifest; opening raises as `Segmenter` does.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    named = label or bundle.path.name.removesuffix(".bundle")

    def open_bundle_on(options: RuntimeOptions) -> tuple[Segmenter, Subject]:
        segmenter = Segmenter(bundle, engine, options=options)
        subject = replace(
            _subject(segmenter, options, label=named, kind="bundle", name=bundle.path.name),
            precision=manifest.precision,
            simulated=segmenter.engine.name in CPU_KINDS and for_gpus(bundle),
            model=manifest.model,
            graph_sha256=manifest.graph_sha256,
            weights_sha256=manifest.source.sha256,
        )
        return segmenter, subject

    return Candidate(named, open_bundle_on)


def onnx_candidate(path: str | Path, *, label: str | None = None) -> Candidate:
    """An ONNX file on ONNX Runtime.

    Its one input is pixels uint8 [N, H, W, 3] or normalized planes float [N, 3, H, W]; its first output is logits
    [N, classes, h, w] or a mask [N, H, W]. What the graph does not do (normalize, resize logits, argmax) is done as for
    a bundle. Raises UsageError for a path that is no file; opening raises EngineError for any other graph.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"{file} {'is no file' if file.exists() else 'does not exist'}", "give an ONNX file")
    named = label or file.stem

    def open_graph(options: RuntimeOptions) -> tuple[Segmenter, Subject]:
        sha256 = sha256_of(file)
        engine = PlainGraph(OnnxRuntimeEngine(file, options=options), str(file))
        segmenter = Segmenter(_interface(engine, engine.num_classes), engine, options=options)
        subject = replace(
            _subject(segmenter, options, label=named, kind="onnx", name=file.name),
            precision="fp16" if segmenter.interface.image.dtype == "float16" else None,
            graph_sha256=sha256,
        )
        return segmenter, subject

    return Candidate(named, open_graph)


def torch_candidate(
    name: str,
    load: Callable[[], tuple[Segmentor, Source]],
    *,
    size: tuple[int, int],
    device: str = "cpu",
    label: str | None = None,
) -> Candidate:
    """A PyTorch model, eager, in float32, at (height, width) `size`.

    name: of the model. load: called when it is opened, returns the model and where its weights came from. device: `cpu`
    or `cuda`.
    """
    named = label or f"{name} PyTorch eager"

    def open_model(options: RuntimeOptions) -> tuple[Segmenter, Subject]:
        model, source = load()
        if source.seeded:
            warn_of_random_weights(name)
        engine = EagerEngine(model, size, device=device, options=options)
        segmenter = Segmenter(_interface(engine, model.num_classes), engine, options=options)
        subject = replace(
            _subject(segmenter, options, label=named, kind="torch", name=name),
            precision="fp32",
            model=name,
            weights_sha256=source.sha256,
        )
        return segmenter, subject

    return Candidate(named, open_model)


class EagerEngine:
    """A PyTorch model as an engine, from uint8 [N, H, W, 3] to the mask uint8 [N, H, W].

    It computes as mmsegmentation does: normalize, run, resize the logits, argmax. device: `cpu` or `cuda`. The number
    of threads holds for PyTorch in the whole process.
    """

    name = "pytorch"
    concurrent = False

    def __init__(
        self, model: Segmentor, size: tuple[int, int], *, device: str = "cpu", options: RuntimeOptions | None = None
    ) -> None:
        import torch

        options = options or RuntimeOptions()
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._torch = torch
        self._device = torch.device(device)
        self._owner = model.spec.name
        self._model = model.eval().to(self._device)
        told = model.conventions.preprocessing
        self._bgr = told.channels == "bgr"
        self._mean, self._std = (
            torch.tensor(values, device=self._device).view(1, 3, 1, 1) for values in (told.mean, told.std)
        )
        self.observe = options.observe
        batch = (1, 1, 1 << 16)  # whatever memory allows
        self.inputs = (TensorSpec.image(*size, batch=batch),)
        self.outputs = (TensorSpec.mask(*size, batch=batch),)

    def __call__(
        self, image: Array, *, outputs: Sequence[str] | None = None, out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """See `Engine.__call__`; `out` is not supported."""
        torch = self._torch
        check_input(self.inputs[0], image, owner=self._owner)
        try:
            with torch.inference_mode():
                return {"mask": self._run(image)}
        except RuntimeError as error:  # out of memory is one of them
            raise EngineError(f"{self._owner} failed in PyTorch: {first_line(error)}") from error

    def _run(self, image: Array) -> Array:
        torch = self._torch
        observe = self.observe if self.on_gpu else None  # on a CPU nothing is copied, and the run is one stage
        with self._timed(observe, "copy_in"):
            pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self._device)
        with self._timed(observe, "engine"):
            pixels = pixels.flip(3) if self._bgr else pixels
            planes = (pixels.permute(0, 3, 1, 2) - self._mean) / self._std
            logits = self._model.class_logits(self._model(planes.contiguous()))
            full = torch.nn.functional.interpolate(logits, image.shape[1:3], mode="bilinear", align_corners=False)
            mask = full.argmax(1).to(torch.uint8)
        with self._timed(observe, "copy_out"):
            return mask.cpu().numpy()

    @property
    def on_gpu(self) -> bool:
        return bool(self._device.type == "cuda")

    def close(self) -> None:
        """Does nothing: the model belongs to the caller."""

    @contextmanager
    def _timed(self, observe: OnStage | None, stage: Stage) -> Iterator[None]:
        with observed(observe, stage):
            yield
            if observe is not None:  # only a stage that is waited for can be timed
                self._torch.cuda.synchronize()


class PlainGraph:
    """A graph that is not ours as an engine. Its first output takes the name that a Segmenter looks for, `mask` or
    `logits`. Raises EngineError where it is neither.
    """

    name = OnnxRuntimeEngine.name
    concurrent = True

    def __init__(self, engine: OnnxRuntimeEngine, owner: str) -> None:
        self._engine = engine
        first = engine.outputs[0]
        if len(first.shape) == 4 and first.dtype in ("float16", "float32") and isinstance(first.shape[1], int):
            self.num_classes, name, dtype = first.shape[1], "logits", str(first.dtype)
        elif len(first.shape) == 3 and first.dtype in ("uint8", "int32", "int64"):
            self.num_classes, name, dtype = 255, "mask", "uint8"  # a mask does not say how many
        else:
            raise EngineError(f"{owner} gives {first}, neither logits [N, classes, h, w] nor a mask [N, H, W]")
        self._output = first.name
        self.inputs = engine.inputs
        self.observe = engine.observe
        self.outputs = (TensorSpec(name, dtype, first.shape),)  # type: ignore[arg-type]

    def __call__(
        self, image: Array, *, outputs: Sequence[str] | None = None, out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        spec = self.outputs[0]
        result = self._engine(image, outputs=(self._output,))[self._output]
        return {spec.name: result.astype(spec.dtype, copy=False)}

    def profile_layers(self, image: Array, *, runs: int = 10) -> tuple[LayerTime, ...]:
        return self._engine.profile_layers(image, runs=runs)

    def close(self) -> None:
        self._engine.close()


def noise(segmenter: Segmenter, size: tuple[int, int], count: int) -> Array:
    """A batch of `count` pictures of noise, (height, width) `size`, in the engine's layout and data type."""
    rng = np.random.default_rng(0)
    if segmenter.interface.layout == "NHWC":
        return rng.integers(0, 256, (count, *size, 3), np.uint8)
    return rng.standard_normal((count, 3, *size), np.float32).astype(segmenter.interface.image.dtype)


def _subject(
    segmenter: Segmenter, options: RuntimeOptions, *, label: str, kind: Literal["bundle", "onnx", "torch"], name: str
) -> Subject:
    """What every segmenter tells of itself; its precision and where it came from are for the caller to add."""
    interface, engine = segmenter.interface, segmenter.engine
    machine = describe_machine()
    on_cpu = engine.name in CPU_KINDS or (isinstance(engine, EagerEngine) and not engine.on_gpu)
    return Subject(
        label=label,
        kind=kind,
        name=name,
        engine=engine.name,
        precision=None,
        size=interface.opt_size or (0, 0),
        input=str(interface.image),
        output=", ".join(map(str, interface.outputs)),
        measured_on=machine.processor if on_cpu else machine.gpu or machine.processor,
        batch=interface.batch_limits[0],
        threads=options.threads,
    )


def _interface(engine: Engine, num_classes: int) -> GraphInterface:
    """The interface of an engine that is not of a bundle."""
    return GraphInterface.unnamed(replace(engine.inputs[0], name="image"), engine.outputs, num_classes)

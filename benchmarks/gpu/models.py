"""Whole models, from a uint8 image to a uint8 mask. Both lie on the device; for ours also on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.timing import peak_memory, time_call, time_wall
from benchmarks.gpu.workload import Workload
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.models.folded import FoldedModel
from twins_trt.models.seeded import seed_weights
from twins_trt.models.segmentor import Segmentor

Row = dict[str, Any]

FORMS = ("eager fp32", "eager amp", "compiled amp", "ours", "ours compiled", "ours, host to host")
CLASSES = 150


def jobs(workload: Workload) -> Iterator[tuple[str, Callable[[], Row]]]:
    """The name of each figure, and the function that measures it."""
    for model in workload.models:
        for batch in workload.batches:
            for form in FORMS:
                yield f"{model} batch {batch} {form}", _job(model, batch, form, workload)


def seeded_model(name: str, workload: Workload, *, attention: str) -> Segmentor:
    """A model with weights that keep activations in range."""
    model = Segmentor(workload.spec(name), CLASSES, attention=attention).eval()
    seed_weights(model)
    return model


def _job(name: str, batch: int, form: str, workload: Workload) -> Callable[[], Row]:
    def measure() -> Row:
        image = torch.randint(0, 256, (batch, *workload.size, 3), dtype=torch.uint8)
        memory = None  # only eager forms have it: the others replay CUDA graphs, whose memory torch does not count
        if form == "ours, host to host":
            engine = _engine(name, batch, workload)
            array: np.ndarray[Any, Any] = image.numpy()

            def run() -> object:
                return engine(array, outputs=["mask"])

            for _ in range(3):  # the second call of a shape captures it
                run()
            times = time_wall(run, workload.pace(4))
            engine.close()
        else:
            on_device = image.to(workload.device)
            network = _network(name, form, workload)

            def call() -> object:
                with torch.inference_mode():
                    return network(on_device)

            ours = form.startswith("ours")  # ours runs as a CUDA graph, the others as they are
            times = time_call(call, workload.pace(4), graph=ours)
            if form.startswith("eager"):
                memory = peak_memory(call, device=workload.device)
        return {
            "model": name,
            "batch": batch,
            "form": form,
            "images_per_second": 1e3 * batch / times.median,
            "peak_bytes": memory,
            **times.to_json(),
        }

    return measure


def _network(name: str, form: str, workload: Workload) -> Callable[[Tensor], Tensor]:
    """From uint8 [B, H, W, 3] to uint8 [B, H, W]."""
    facts = Preprocessing()
    if form.startswith("ours"):
        from twins_trt.kernels.postprocess import resize_argmax
        from twins_trt.kernels.preprocess import resize_normalize

        model = FoldedModel(
            seeded_model(name, workload, attention=workload.kernels),
            device=workload.device,
            dtype=workload.dtype,
            compiler=workload.compiler if form == "ours compiled" else None,
        )

        def ours(image: Tensor) -> Tensor:
            size = workload.size
            x = resize_normalize(
                image,
                size,
                mean=facts.mean,
                std=facts.std,
                dtype=workload.dtype,
                channels_last=True,
                backend=workload.kernels,
            )
            return resize_argmax(model(x), size, backend=workload.kernels)[0]

        return ours
    plain = seeded_model(name, workload, attention="reference").to(workload.device).requires_grad_(False)
    mean, std = (torch.tensor(v, device=workload.device)[:, None, None] for v in (facts.mean, facts.std))

    def theirs(image: Tensor) -> Tensor:
        x = (image.permute(0, 3, 1, 2).float() - mean) / std
        half = torch.float16 if workload.device.type == "cuda" else torch.bfloat16
        with torch.autocast(workload.device.type, dtype=half, enabled=form != "eager fp32"):
            logits = plain(x)
        return F.interpolate(logits, workload.size, mode="bilinear", align_corners=False).argmax(1).to(torch.uint8)

    if form != "compiled amp":
        return theirs
    mode = None if workload.smoke else "max-autotune"
    compiled: Callable[[Tensor], Tensor] = torch.compile(theirs, dynamic=False, backend=workload.compiler, mode=mode)
    return compiled


def _engine(name: str, batch: int, workload: Workload) -> Any:
    from twins_trt.inference.interface import GraphInterface
    from twins_trt.inference.tensors import TensorSpec
    from twins_trt.runtime.engines import RuntimeOptions
    from twins_trt.runtime.engines.torch import TorchEngine

    image, mask = (kind(*workload.size, batch=batch) for kind in (TensorSpec.image, TensorSpec.mask))
    interface = GraphInterface.unnamed(image, (mask,), CLASSES)
    model = seeded_model(name, workload, attention=workload.kernels)
    options = RuntimeOptions(deterministic=False)
    return TorchEngine(model, interface, options=options, device=workload.device.type, dtype=workload.dtype)

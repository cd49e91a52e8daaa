"""Whole models from a uint8 image to a uint8 mask, both on the device; ours from the host to the host as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.settings import Settings
from benchmarks.gpu.timing import peak_memory, time_call, time_wall
from twins_trt.data.preprocessing import Preprocessing
from twins_trt.models.folded import FoldedModel
from twins_trt.models.seeded import seed_weights
from twins_trt.models.segmentor import Segmentor

Row = dict[str, Any]

FORMS = ("eager fp32", "eager amp", "compiled amp", "ours", "ours compiled", "ours, host to host")
CLASSES = 150


def jobs(settings: Settings) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Each figure's name and how to measure it."""
    for model in settings.models:
        for batch in settings.batches:
            for form in FORMS:
                yield f"{model} batch {batch} {form}", _job(model, batch, form, settings)


def seeded_model(name: str, settings: Settings, *, attention: str) -> Segmentor:
    """With weights that keep activations in range; in miniature for a rehearsal."""
    model = Segmentor(settings.spec(name), CLASSES, attention=attention).eval()
    seed_weights(model)
    return model


def _job(name: str, batch: int, form: str, settings: Settings) -> Callable[[], Row]:
    def measure() -> Row:
        image = torch.randint(0, 256, (batch, *settings.size, 3), dtype=torch.uint8)
        memory = None  # of the eager forms alone: the others replay CUDA graphs, whose memory torch does not count
        if form == "ours, host to host":
            engine = _engine(name, batch, settings)
            array: np.ndarray[Any, Any] = image.numpy()

            def run() -> object:
                return engine(array, outputs=["mask"])

            for _ in range(3):  # the second call of a shape captures it
                run()
            times = time_wall(run, device=settings.device, seconds=4 * settings.seconds, least=settings.least)
            engine.close()
        else:
            on_device = image.to(settings.device)
            network = _network(name, form, settings)

            def call() -> object:
                with torch.inference_mode():
                    return network(on_device)

            ours = form.startswith("ours")  # a graph is part of ours, and not of what it is compared with
            times = time_call(
                call, device=settings.device, graph=ours, seconds=4 * settings.seconds, least=settings.least
            )
            if form.startswith("eager"):
                memory = peak_memory(call, device=settings.device)
        return {
            "model": name,
            "batch": batch,
            "form": form,
            "images_per_second": 1e3 * batch / times.median,
            "peak_bytes": memory,
            **times.to_json(),
        }

    return measure


def _network(name: str, form: str, settings: Settings) -> Callable[[Tensor], Tensor]:
    """From uint8 [B, H, W, 3] to uint8 [B, H, W]."""
    facts = Preprocessing()
    if form.startswith("ours"):
        from twins_trt.kernels.postprocess import resize_argmax
        from twins_trt.kernels.preprocess import resize_normalize

        model = FoldedModel(
            seeded_model(name, settings, attention=settings.kernels),
            device=settings.device,
            dtype=settings.dtype,
            compiler=settings.compiler if form == "ours compiled" else None,
        )

        def ours(image: Tensor) -> Tensor:
            size = settings.size
            x = resize_normalize(
                image,
                size,
                mean=facts.mean,
                std=facts.std,
                dtype=settings.dtype,
                channels_last=True,
                backend=settings.kernels,
            )
            return resize_argmax(model(x), size, backend=settings.kernels)[0]

        return ours
    plain = seeded_model(name, settings, attention="reference").to(settings.device).requires_grad_(False)
    mean, std = (torch.tensor(v, device=settings.device)[:, None, None] for v in (facts.mean, facts.std))

    def theirs(image: Tensor) -> Tensor:
        x = (image.permute(0, 3, 1, 2).float() - mean) / std
        half = torch.float16 if settings.device.type == "cuda" else torch.bfloat16
        with torch.autocast(settings.device.type, dtype=half, enabled=form != "eager fp32"):
            logits = plain(x)
        return F.interpolate(logits, settings.size, mode="bilinear", align_corners=False).argmax(1).to(torch.uint8)

    if form != "compiled amp":
        return theirs
    mode = None if settings.smoke else "max-autotune"
    compiled: Callable[[Tensor], Tensor] = torch.compile(theirs, dynamic=False, backend=settings.compiler, mode=mode)
    return compiled


def _engine(name: str, batch: int, settings: Settings) -> Any:
    from twins_trt.inference.tensors import TensorSpec
    from twins_trt.models.source import Source
    from twins_trt.runtime.engines import RuntimeOptions
    from twins_trt.runtime.engines.torch import TorchEngine
    from twins_trt.runtime.manifest import Manifest

    height, width = settings.size
    manifest = Manifest(
        model=name,
        num_classes=CLASSES,
        classes=tuple(map(str, range(CLASSES))),
        palette=((0, 0, 0),) * CLASSES,
        inputs=(TensorSpec.image(height, width, batch=batch),),
        outputs=(TensorSpec.mask(height, width, batch=batch),),
        padding="parity",
        precision="fp16",
        opset=17,
        source=Source(seeded=True),
        rebuild="python -m benchmarks.gpu",
    )
    model = seeded_model(name, settings, attention=settings.kernels)
    free = RuntimeOptions(deterministic=False)
    return TorchEngine(model, manifest, settings=free, device=settings.device.type, dtype=settings.dtype)

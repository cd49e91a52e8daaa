"""A training step: forward, loss of all heads, backward and AdamW, under autocast, in time and in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu.models import CLASSES, seeded_model
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.timing import peak_memory, time_call
from twins_trt.training.step.losses import SegmentationLoss

Row = dict[str, Any]

FORMS = {"eager amp": "reference", "sdpa amp": "sdpa", "ours amp": "kernels"}


def jobs(settings: Settings) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Each figure's name and how to measure it."""
    for model in settings.models:
        for form in FORMS:
            yield f"{model} batch {settings.train_batch} {form}", _job(model, form, settings)


def _job(name: str, form: str, settings: Settings) -> Callable[[], Row]:
    def measure() -> Row:
        torch.manual_seed(0)
        attention = settings.kernels if FORMS[form] == "kernels" else FORMS[form]
        model = seeded_model(name, settings, attention=attention).to(settings.device).train()
        loss = SegmentationLoss(model, aux_weight=0.4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        images = torch.randn(settings.train_batch, 3, *settings.size, device=settings.device)
        labels = torch.randint(0, CLASSES, (settings.train_batch, *settings.size), device=settings.device)

        def step() -> object:
            with torch.autocast(settings.device.type, dtype=torch.bfloat16):
                value = loss(images, labels)["loss"]
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            return value

        times = time_call(step, device=settings.device, graph=False, seconds=4 * settings.seconds, least=settings.least)
        return {
            "model": name,
            "batch": settings.train_batch,
            "form": form,
            "images_per_second": 1e3 * settings.train_batch / times.median,
            "peak_bytes": peak_memory(step, device=settings.device),
            **times.to_json(),
        }

    return measure

"""Time and memory of a training step: forward, loss of all heads, backward and AdamW, under autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu.models import CLASSES, seeded_model
from benchmarks.gpu.timing import peak_memory, time_call
from benchmarks.gpu.workload import Workload
from twins_trt.training.step.losses import SegmentationLoss

Row = dict[str, Any]

FORMS = {"eager amp": "reference", "sdpa amp": "sdpa", "ours amp": "kernels"}


def jobs(workload: Workload) -> Iterator[tuple[str, Callable[[], Row]]]:
    """The name of each figure, and the function that measures it."""
    for model in workload.models:
        for form in FORMS:
            yield f"{model} batch {workload.train_batch} {form}", _job(model, form, workload)


def _job(name: str, form: str, workload: Workload) -> Callable[[], Row]:
    def measure() -> Row:
        torch.manual_seed(0)
        attention = workload.kernels if FORMS[form] == "kernels" else FORMS[form]
        model = seeded_model(name, workload, attention=attention).to(workload.device).train()
        loss = SegmentationLoss(model, aux_weight=0.4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        images = torch.randn(workload.train_batch, 3, *workload.size, device=workload.device)
        labels = torch.randint(0, CLASSES, (workload.train_batch, *workload.size), device=workload.device)

        def step() -> object:
            with torch.autocast(workload.device.type, dtype=torch.bfloat16):
                value = loss(images, labels)["loss"]
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            return value

        times = time_call(step, workload.pace(4), graph=False)
        return {
            "model": name,
            "batch": workload.train_batch,
            "form": form,
            "images_per_second": 1e3 * workload.train_batch / times.median,
            "peak_bytes": peak_memory(step, device=workload.device),
            **times.to_json(),
        }

    return measure

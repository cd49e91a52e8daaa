"""Time and memory of a training step: forward, loss of all heads, backward and AdamW, under autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu.jobs import Job, Row
from benchmarks.gpu.models import free_numerics
from benchmarks.gpu.networks import CLASSES, seeded_model
from benchmarks.gpu.timing import peak_memory, time_call
from benchmarks.gpu.workload import Workload, model_rests_on
from twins_trt.training.step.losses import SegmentationLoss

FORMS = {
    "eager amp": "reference",
    "sdpa amp": "sdpa",
    "ours amp": "kernels",
    "compiled amp": "reference",
    "ours compiled amp": "kernels",
}
"""The attention of each; the compiled ones are compiled by torch.compile, with their losses."""


def jobs(workload: Workload) -> Iterator[Job]:
    """Each figure, and the function that measures it."""
    batch = workload.train_batch
    for model in workload.models:
        for form in FORMS:
            rests_on: tuple[str, ...] = ()
            if form.startswith("ours"):
                rests_on = model_rests_on(model, batch, workload, training=True, compiled="compiled" in form)
            yield Job(
                f"{model} batch {batch} {form}",
                _job(model, form, workload),
                form=form,
                model=model,
                batch=batch,
                rests_on=rests_on,
            )


def _job(name: str, form: str, workload: Workload) -> Callable[[], Row]:
    def measure() -> Row:
        torch.manual_seed(0)
        model = seeded_model(name, workload, attention=FORMS[form]).to(workload.device).train()
        loss: Callable[..., dict[str, torch.Tensor]] = SegmentationLoss(model, aux_weight=0.4)
        if "compiled" in form:
            loss = torch.compile(loss, dynamic=False, backend=workload.compiler)
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

        with free_numerics():
            times = time_call(step, workload.pace(4), graph=False)
            memory = peak_memory(step, device=workload.device)
        return {
            "model": name,
            "batch": workload.train_batch,
            "form": form,
            "images_per_second": 1e3 * workload.train_batch / times.median,
            "peak_bytes": memory,
            **times.to_json(),
        }

    return measure

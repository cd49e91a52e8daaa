"""Whole models, from a uint8 image to a uint8 mask. Both lie on the device; for ours also on the host."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import between, networks
from benchmarks.gpu.jobs import Job, Row
from benchmarks.gpu.networks import CLASSES, Form, graphs_skipped, network_of, seeded_model
from benchmarks.gpu.timing import Times, peak_memory, time_call, time_wall
from benchmarks.gpu.workload import Workload, model_rests_on

HOST = "ours, host to host"
FORMS = (*networks.FORMS, HOST)
AROUND = ("preprocess", "postprocess", between.PART)
"""What our forms rest on beside their attentions. Compiled ones have torch's operators between them."""
ENGINE = (*AROUND, "torch engine")
"""The same of what the torch engine runs."""


def jobs(workload: Workload) -> Iterator[Job]:
    """Each figure, and the function that measures it."""
    for model in workload.models:
        for batch in workload.batches:
            for form in FORMS:
                beside = ENGINE if form == HOST else AROUND
                rests_on: tuple[str, ...] = ()
                if form.startswith("ours"):
                    compiled = form != HOST and bool(networks.FORMS[form].compiled)
                    rests_on = (*model_rests_on(model, batch, workload, compiled=compiled), *beside)
                yield Job(
                    f"{model} batch {batch} {form}",
                    _job(model, batch, form, workload),
                    form=form,
                    model=model,
                    batch=batch,
                    rests_on=rests_on,
                )


def _job(name: str, batch: int, form: str, workload: Workload) -> Callable[[], Row]:
    def measure() -> Row:
        expected = plain_mask_of(name, batch, workload)
        measured = _host_to_host if form == HOST else functools.partial(_on_device, networks.FORMS[form])
        with free_numerics():
            mask, times, facts = measured(name, batch, workload)
        return {
            "model": name,
            "batch": batch,
            "form": form,
            "images_per_second": 1e3 * batch / times.median,
            "same_pixels": float((mask == expected).double().mean()),
            **times.to_json(),
            **facts,
        }

    return measure


def picture(batch: int, workload: Workload) -> Tensor:
    """uint8 [B, H, W, 3] on the CPU, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, *workload.size, 3), dtype=torch.uint8, generator=generator)


@functools.cache
def plain_mask_of(name: str, batch: int, workload: Workload) -> Tensor:
    """What every form's mask is held against: the plain model's in fp32, uint8 [B, H, W] on the CPU."""
    network = network_of(name, networks.FORMS["eager fp32"], workload)
    return network(picture(batch, workload).to(workload.device)).cpu()


@contextlib.contextmanager
def free_numerics() -> Iterator[None]:
    """Lets cuDNN try its algorithms and keep the fastest, in every form alike."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _on_device(form: Form, name: str, batch: int, workload: Workload) -> tuple[Tensor, Times, Row]:
    with _stream_of(form, workload):
        image = picture(batch, workload).to(workload.device)
        skipped = graphs_skipped() if form.graph == "torch" else 0
        start = time.perf_counter()
        network = network_of(name, form, workload)
        network(image).cpu()
        first = time.perf_counter() - start

        replayed: list[Tensor] = []

        def call() -> object:
            mask = network(image)
            if form.graph == "ours":  # while it is captured, this is where every replay writes
                replayed[:] = [mask]
            return mask

        # ours is captured here; what has torch's own graphs never is, because captures do not nest
        times = time_call(call, workload.pace(2), graph=form.graph == "ours")
        # of a call from Python, also of ours: torch does not count the memory of a CUDA graph, nor of its own graphs
        memory = peak_memory(call, device=workload.device) if form.graph != "torch" else None
        facts: Row = {"peak_bytes": memory, "first_s": round(first, 3)}
        if times.how == "events" and form.graph == "torch" and graphs_skipped() == skipped:
            facts["timed"] = "torch graph"
        # the mask is of what was timed: torch, too, replays its graph by now
        return (replayed[0] if replayed else network(image)).cpu(), times, facts


def _host_to_host(name: str, batch: int, workload: Workload) -> tuple[Tensor, Times, Row]:
    array = picture(batch, workload).numpy()
    start = time.perf_counter()
    with contextlib.closing(engine_of(name, batch, workload)) as engine:
        engine(array, outputs=["mask"])
        first = time.perf_counter() - start
        for _ in range(2):  # the second call of a shape captures it
            engine(array, outputs=["mask"])
        times = time_wall(lambda: engine(array, outputs=["mask"]), workload.pace(2))
        mask = torch.from_numpy(engine(array, outputs=["mask"])["mask"])
    return mask, times, {"peak_bytes": None, "first_s": round(first, 3)}


def engine_of(name: str, batch: int, workload: Workload) -> Any:
    """The torch engine with our kernels, for uint8 [B, H, W, 3] arrays of the host."""
    from twins_trt.inference.interface import GraphInterface
    from twins_trt.inference.tensors import TensorSpec
    from twins_trt.runtime.engines import RuntimeOptions
    from twins_trt.runtime.engines.torch import TorchEngine

    image, mask = (kind(*workload.size, batch=batch) for kind in (TensorSpec.image, TensorSpec.mask))
    interface = GraphInterface.unnamed(image, (mask,), CLASSES)
    model = seeded_model(name, workload, attention="kernels")
    options = RuntimeOptions(deterministic=False)
    return TorchEngine(model, interface, options=options, device=workload.device.type, dtype=workload.dtype)


def _stream_of(form: Form, workload: Workload) -> contextlib.AbstractContextManager[object]:
    """The default stream for torch's own graphs, which are recorded on a stream of their own and tested from it; the
    current one for ours, because the default one cannot be captured."""
    if workload.device.type != "cuda" or form.graph != "torch":
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.default_stream(workload.device))

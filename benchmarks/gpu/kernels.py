"""Every attention of every stage, forward and backward, in every form; and the kernels around and between them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.gpu import between
from benchmarks.gpu.forms import Form, forms
from benchmarks.gpu.jobs import Job, Row
from benchmarks.gpu.networks import CLASSES, amp_dtype
from benchmarks.gpu.timing import time_call
from benchmarks.gpu.workload import Core, Workload, cores
from twins_trt.data.preprocessing import Preprocessing

BY_PIXELS = "ours, by pixels"
"""The kernel of any ratio of sizes, where `ours` takes the one of 4 × 4 cells."""


def jobs(workload: Workload) -> Iterator[Job]:
    """Each figure, and the function that measures it."""
    for batch in workload.batches:
        for what, measure, part, names in (
            ("resize_argmax", _postprocess, "postprocess", ("ours", BY_PIXELS, "torch")),
            ("resize_normalize", _preprocess, "preprocess", ("ours", "torch")),
        ):
            for name in names:
                rests_on = () if name == "torch" else (part,)
                label = f"{what} batch {batch} {name}"
                yield Job(label, measure(batch, name, workload), form=name, batch=batch, rests_on=rests_on)
    yield from between.jobs(workload)
    for name in forms("lsa", kernels=workload.kernels, compiler=workload.compiler):  # gsa has the same
        for core in cores(workload):
            for direction in ("forward", "backward"):
                label = f"{core.name} {direction}"
                yield Job(
                    f"{label} {name}",
                    _attention(core, name, direction, workload),
                    form=name,
                    model=core.model,
                    batch=core.batch,
                    rests_on=(core.attention, label) if name.startswith("ours") else (),
                )


def inputs(core: Core, workload: Workload) -> tuple[Tensor, Tensor, Tensor]:
    """(qkv, bias) or (q, kv), and a gradient of the result."""
    torch.manual_seed(0)
    c, positions = core.channels, (core.height, core.width)
    first: tuple[int, ...] = (core.batch, *positions, 3 * c)
    second: tuple[int, ...] = (3 * c,)
    out: tuple[int, ...] = (core.batch, *positions, c)
    if core.attention == "gsa":
        first = out = (core.batch, core.height * core.width, c)
        second = (core.batch, core.keys, 2 * c)
    x, y, grad = (torch.randn(shape, device=workload.device).to(workload.dtype) for shape in (first, second, out))
    return x.requires_grad_(), y.requires_grad_(), grad


def _attention(core: Core, name: str, direction: str, workload: Workload) -> Callable[[], Row]:
    def measure() -> Row:
        form = forms(core.attention, kernels=workload.kernels, compiler=workload.compiler)[name]
        x, y, grad = inputs(core, workload)
        # autocast, as mmsegmentation runs: it decides what its softmax is computed in, and nothing in the other forms
        with torch.autocast(workload.device.type, dtype=amp_dtype(workload), enabled=name.startswith("mmseg")):
            if direction == "forward":
                call = _forward(form, x, y, core.heads)
            else:
                call = _backward(form, x, y, core.heads, grad)
            times = time_call(call, workload.pace(), graph=True, in_row=True)
        return {
            "what": core.attention,
            "model": core.model,
            "stage": core.stage,
            "batch": core.batch,
            "heads": core.heads,
            "head_dim": core.head_dim,
            "direction": direction,
            "form": name,
            "bytes": core.bytes(direction, x.element_size()),
            "flops": core.flops(direction),
            "exponentials": core.exponentials,
            **times.to_json(),
        }

    return measure


def _forward(form: Form, x: Tensor, y: Tensor, heads: int) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return form(x, y, heads)

    return call


def _backward(form: Form, x: Tensor, y: Tensor, heads: int, grad: Tensor) -> Callable[[], object]:
    """The gradient alone: forward is run once, outside what is timed."""
    out = form(x, y, heads)
    grad = grad.to(out.dtype)
    return lambda: torch.autograd.grad(out, (x, y), grad, retain_graph=True, allow_unused=True)


def padded_logits(batch: int, height: int, width: int, *, workload: Workload) -> Tensor:
    """Logits as our models give them: [B, 150, h, w], classes side by side and padded to a multiple of 16."""
    padded = torch.randn(batch, CLASSES + -CLASSES % 16, height, width, device=workload.device).to(workload.dtype)
    return padded.contiguous(memory_format=torch.channels_last)[:, :CLASSES]


def _postprocess(batch: int, name: str, workload: Workload) -> Callable[[], Row]:
    def measure() -> Row:
        from twins_trt.kernels.postprocess import resize_argmax, resize_argmax_reference
        from twins_trt.kernels.postprocess.launch import resize_argmax_forward

        height, width = workload.size
        logits = padded_logits(batch, height // 4, width // 4, workload=workload)

        def call() -> object:
            if name == BY_PIXELS and workload.device.type == "cuda":
                return resize_argmax_forward(logits, height, width, probability=False, cells=False)
            if name == "ours":
                return resize_argmax(logits, workload.size, backend=workload.kernels)
            return resize_argmax_reference(logits, workload.size)

        times = time_call(call, workload.pace(), graph=True, in_row=True)
        traffic = logits.numel() * logits.element_size() + batch * height * width
        return {"what": "resize_argmax", "batch": batch, "form": name, "bytes": traffic, **times.to_json()}

    return measure


def _preprocess(batch: int, name: str, workload: Workload) -> Callable[[], Row]:
    def measure() -> Row:
        from twins_trt.kernels.preprocess import resize_normalize, resize_normalize_reference

        height, width = workload.size
        facts = Preprocessing()
        shape = (batch, height * 3 // 2, width * 3 // 2, 3)
        image = torch.randint(0, 256, shape, dtype=torch.uint8, device=workload.device)

        form: Callable[..., Tensor] = resize_normalize_reference
        if name == "ours":
            form = functools.partial(resize_normalize, backend=workload.kernels)

        def call() -> object:
            return form(image, workload.size, mean=facts.mean, std=facts.std, dtype=workload.dtype, channels_last=True)

        times = time_call(call, workload.pace(), graph=True, in_row=True)
        traffic = image.numel() + 3 * batch * height * width * workload.dtype.itemsize
        return {"what": "resize_normalize", "batch": batch, "form": name, "bytes": traffic, **times.to_json()}

    return measure

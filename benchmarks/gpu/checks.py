"""Checks of what is timed: the tests that need a GPU, and our kernels at the timed sizes.

Each says what it covers. A figure that rests on what a red check covers is excluded; the others are measured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import gpu_tests
from benchmarks.gpu.jobs import TESTS, Job
from benchmarks.gpu.kernels import CLASSES, inputs, padded_logits
from benchmarks.gpu.store import ROOT, gpu_test_files
from benchmarks.gpu.workload import Core, Workload, all_cores
from twins_trt.kernels.gsa import gsa, gsa_reference
from twins_trt.kernels.lsa import lsa, lsa_reference

Row = dict[str, Any]

SOME = 1e-6  # a smaller error passes: beside the reference's own it means nothing


def jobs(workload: Workload) -> Iterator[Job]:
    """Each check, and the function that makes it. Its row has `passed`. On a CPU, tests are only collected."""
    for path in gpu_test_files():
        file = path.relative_to(ROOT).as_posix()
        run = functools.partial(gpu_tests.run_file, file, collect_only=workload.device.type != "cuda")
        yield Job(f"{TESTS}{file}", run, covers=gpu_tests.covered_by_file(file))
    for core in all_cores(workload):
        for direction in ("forward", "backward"):
            name = f"{core.name} {direction}"  # apart, because no backward is needed to infer
            check = functools.partial(check_core, core, workload, direction=direction)
            yield Job(name, check, batch=core.batch, covers=(name,))
    yield Job("resize_argmax", functools.partial(check_postprocess, workload), covers=("postprocess",))
    yield Job("resize_normalize", functools.partial(check_preprocess, workload), covers=("preprocess",))


def check_core(
    core: Core, workload: Workload, *, direction: str = "backward", ours: Callable[..., Tensor] | None = None
) -> Row:
    """Ours against the reference in fp64: at most twice the error of the reference itself.

    direction: `forward` checks the result alone, `backward` the gradients as well. ours: by default our operator with
    the workload's kernels.
    """
    operator, reference = (lsa, lsa_reference) if core.attention == "lsa" else (gsa, gsa_reference)
    ours = ours or functools.partial(operator, backend=workload.kernels)
    x, y, grad = (tensor.detach() for tensor in inputs(core, workload))
    run = _run if direction == "backward" else _forward
    exact = run(reference, core, x.double(), y.double(), grad.double())
    theirs = run(reference, core, x, y, grad)
    results = run(ours, core, x, y, grad)
    errors, limits = [], []
    for mine, other, value in zip(results, theirs, exact, strict=True):
        errors.append(_error(mine, value))
        limits.append(max(2 * _error(other, value), SOME))
    passed = all(error <= limit for error, limit in zip(errors, limits, strict=True))  # false for NaN
    return {"passed": passed, "errors": errors, "limits": limits}


def check_postprocess(workload: Workload) -> Row:
    """The mask is the reference's, but where two classes are equal to fp32's last bits.

    Padded logits without probability are what models give, and go to a kernel of their own.
    """
    from twins_trt.kernels.postprocess import resize_argmax

    torch.manual_seed(0)
    logits = torch.randn(2, CLASSES, 16, 24, device=workload.device).to(workload.dtype)
    size = (64, 96)
    errors = []
    padded = padded_logits(2, 16, 24, workload=workload)
    for form in (logits, logits.contiguous(memory_format=torch.channels_last), padded):
        full = torch.nn.functional.interpolate(form.double(), size, mode="bilinear", align_corners=False)
        for probability in (True, False):
            mask, best = resize_argmax(form, size, probability=probability, backend=workload.kernels)
            chosen = full.gather(1, mask[:, None].long())[:, 0]
            errors.append(float((full.amax(1) - chosen).max()))
            if best is not None:
                errors.append(float((best - full.softmax(1).amax(1)).abs().max()))
    passed = all(error <= 1e-5 for error in errors)  # false for NaN
    return {"passed": passed, "errors": errors, "limits": [1e-5] * len(errors)}


def check_preprocess(workload: Workload) -> Row:
    """Bit for bit the reference."""
    from twins_trt.data.preprocessing import Preprocessing
    from twins_trt.kernels.preprocess import resize_normalize

    torch.manual_seed(0)
    facts = Preprocessing()
    differing = 0
    for size in ((37, 53), (96, 128), (200, 333)):
        image = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8, device=workload.device)
        ours, theirs = (
            resize_normalize(image, size, mean=facts.mean, std=facts.std, backend=backend)
            for backend in (workload.kernels, "reference")
        )
        differing += int((ours != theirs).sum())
    return {"passed": differing == 0, "errors": [float(differing)], "limits": [0.0]}


def _forward(form: Callable[..., Tensor], core: Core, x: Tensor, y: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Result of an attention, alone in a tuple."""
    with torch.no_grad():
        return (form(x, y, num_heads=core.heads),)


def _run(form: Callable[..., Tensor], core: Core, x: Tensor, y: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Result and gradients of an attention."""
    x, y = x.requires_grad_(), y.requires_grad_()
    out = form(x, y, num_heads=core.heads)
    return (out.detach(), *torch.autograd.grad(out, (x, y), grad, materialize_grads=True))


def _error(x: Tensor, exact: Tensor) -> float:
    size = float(exact.norm())
    return float((x.double() - exact).norm()) / (size if size > 1e-9 else exact.numel() ** 0.5)

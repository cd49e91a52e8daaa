"""Checks that must pass before anything is timed: the tests that need a GPU, and our kernels at the timed sizes."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.kernels import inputs
from benchmarks.gpu.workload import Core, Workload, cores
from twins_trt.kernels.gsa import gsa, gsa_reference
from twins_trt.kernels.lsa import lsa, lsa_reference

Row = dict[str, Any]

ROOT = Path(__file__).parents[2]
TEST_SECONDS = 600
SOME = 1e-6  # a smaller error passes: beside the reference's own it means nothing


def jobs(workload: Workload, *, tests: bool) -> Iterator[tuple[str, Callable[[], Row]]]:
    """The name of each check, and the function that makes it. Its row has `passed`.

    tests: run the tests marked gpu as well.
    """
    if tests and workload.device.type == "cuda":
        yield "tests are there", _tests_are_there
        for test in gpu_tests():
            yield f"test {test}", functools.partial(run_tests, test)
    for core in cores(workload):
        yield core.name, functools.partial(check_core, core, workload)
    yield "resize_argmax", lambda: check_postprocess(workload)
    yield "resize_normalize", lambda: check_preprocess(workload)


def check_core(core: Core, workload: Workload, *, ours: Callable[..., Tensor] | None = None) -> Row:
    """Ours, forward and backward, against the reference in fp64: at most twice the error of the reference itself.

    ours: by default our operator with the workload's kernels.
    """
    operator, reference = (lsa, lsa_reference) if core.attention == "lsa" else (gsa, gsa_reference)
    ours = ours or functools.partial(operator, backend=workload.kernels)
    x, y, grad = inputs(core, workload)
    exact = _run(reference, core, x.detach().double(), y.detach().double(), grad.double())
    theirs = _run(reference, core, x.detach(), y.detach(), grad)
    results = _run(ours, core, x.detach(), y.detach(), grad)
    errors, limits = [], []
    for mine, other, value in zip(results, theirs, exact, strict=True):
        errors.append(_error(mine, value))
        limits.append(max(2 * _error(other, value), SOME))
    passed = all(error <= limit for error, limit in zip(errors, limits, strict=True))  # false for NaN
    return {"passed": passed, "errors": errors, "limits": limits}


def check_postprocess(workload: Workload) -> Row:
    """The mask is the reference's, but where two classes are equal to fp32's last bits."""
    from twins_trt.kernels.postprocess import resize_argmax

    torch.manual_seed(0)
    logits = torch.randn(2, 150, 16, 24, device=workload.device).to(workload.dtype)
    size = (64, 96)
    worst = 0.0
    for form in (logits, logits.contiguous(memory_format=torch.channels_last)):
        mask, best = resize_argmax(form, size, probability=True, backend=workload.kernels)
        full = torch.nn.functional.interpolate(form.double(), size, mode="bilinear", align_corners=False)
        chosen = full.gather(1, mask[:, None].long())[:, 0]
        worst = max(worst, float((full.amax(1) - chosen).max()))
        assert best is not None  # asked for
        worst = max(worst, float((best - full.softmax(1).amax(1)).abs().max()))
    return {"passed": worst <= 1e-5, "errors": [worst], "limits": [1e-5]}


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


def gpu_tests() -> list[str]:
    """File and function of every test marked gpu; none without pytest."""
    if find_spec("pytest") is None:
        return []
    # only files that have the mark: others may import what this machine lacks
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    done = _pytest("--collect-only", "-q", *files)
    names = re.findall(r"^(tests/\S+?\.py::\w+)", done.stdout, re.MULTILINE)
    return list(dict.fromkeys(names))


def run_tests(test: str, *, limit_s: float = TEST_SECONDS) -> Row:
    """Runs one function of the tests, with all its parameters. limit_s: seconds after which it has failed."""
    try:
        done = _pytest("-q", "-x", "--tb=short", test, limit_s=limit_s)
    except subprocess.TimeoutExpired:
        return {"passed": False, "said": f"took more than {limit_s} s"}
    summary = (done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]])[-1]
    passed = done.returncode == 0 and "passed" in summary and "skipped" not in summary
    return {"passed": passed, "said": summary, **({} if passed else {"output": done.stdout[-3000:]})}


def _tests_are_there() -> Row:
    there = find_spec("pytest") is not None and bool(gpu_tests())
    said = "" if there else "pytest is missing, or finds no tests: install it, or give --no-tests"
    return {"passed": there, "said": said}


def _pytest(*words: str, limit_s: float = TEST_SECONDS) -> subprocess.CompletedProcess[str]:
    """Runs pytest in a process of its own, because a kernel that crashes ruins its process's CUDA context.

    The package need not be installed.
    """
    code = "from benchmarks.gpu.checkout import make_importable; make_importable(); import sys, pytest; "
    command = [sys.executable, "-c", code + "sys.exit(pytest.main(sys.argv[1:]))", "-m", "gpu", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit_s)


def _run(form: Callable[..., Tensor], core: Core, x: Tensor, y: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Result and gradients of an attention."""
    x, y = x.requires_grad_(), y.requires_grad_()
    out = form(x, y, num_heads=core.heads)
    return (out.detach(), *torch.autograd.grad(out, (x, y), grad, materialize_grads=True))


def _error(x: Tensor, exact: Tensor) -> float:
    size = float(exact.norm())
    return float((x.double() - exact).norm()) / (size if size > 1e-9 else exact.numel() ** 0.5)
